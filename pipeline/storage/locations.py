"""Where results are kept: a local folder by its path, or a store by its URL.

A URL carries no credentials: drivers take them from the environment. What is shown of one, in
messages and logs, has neither user, password nor query.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

from pipeline.errors import InputError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_LIKE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:{1,2}/|.*://", re.DOTALL)
# Patterns of fsspec, escapes that stores read differently, and what hides a name from a reader.
_REFUSED = re.compile(r"[*?\[\]#%\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class _Scheme:
    """How to reach the stores of one scheme.

    Attributes:
        whole: does an object appear only when all of it is there? Elsewhere it is written under a
            temporary name and renamed.
        options: of the filesystem.
        package: that fsspec needs for it; empty for none.
        extra: of Replenish that brings the package.
        credentials: where the driver finds them, in words.
    """

    whole: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    extra: str = ""
    credentials: str = "the rights of the folder"


# Listings are never remembered: another machine may have written since.
_FRESH = {"use_listings_cache": False, "skip_instance_cache": True}
_SCHEMES = {
    "file": _Scheme(whole=False, options={"auto_mkdir": True}),
    "memory": _Scheme(whole=True),
    "s3": _Scheme(
        whole=True,
        options={
            **_FRESH,
            "config_kwargs": {
                "connect_timeout": 5,
                "read_timeout": 60,
                "retries": {"max_attempts": 2},
            },
        },
        package="s3fs",
        extra="s3",
        credentials="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and "
        "AWS_ENDPOINT_URL for a store that is not Amazon's",
    ),
    "gs": _Scheme(
        whole=True,
        options=_FRESH,
        package="gcsfs",
        extra="gs",
        credentials="GOOGLE_APPLICATION_CREDENTIALS",
    ),
}


@dataclass(frozen=True)
class Location:
    """A folder of a store.

    Attributes:
        url: of the folder, fit to be shown; without a slash at its end.
        root: its path in `fs`.
        fs: filesystem that reaches it.
        scheme: of the URL.
    """

    url: str
    root: str
    fs: AbstractFileSystem = field(repr=False)
    scheme: str

    def path(self, *parts: str) -> str:
        """Return the path in `fs` of what lies below the folder."""
        return "/".join((self.root, *parts))

    def shown(self, *parts: str) -> str:
        """Return the URL of what lies below the folder, fit to be shown."""
        return "/".join((self.url, *parts))

    @property
    def whole(self) -> bool:
        """Say whether an object of this store appears only when all of it is there."""
        return _SCHEMES[self.scheme].whole

    @property
    def credentials(self) -> str:
        """Return where the driver looks for credentials, in words."""
        return _SCHEMES[self.scheme].credentials


def is_url(text: str) -> bool:
    """Say whether `text` is meant as a URL; `s3:/bucket`, with a slash lost, is too."""
    return _LIKE_URL.match(text) is not None


def open_location(url: str) -> Location:
    """Return the location of a URL; nothing is read or written.

    Raises:
        InputError: no URL, an unknown scheme, credentials or a query in it, a name that stores read
            differently, or the driver's package is missing.
    """
    shown = without_secrets(url)
    found = _URL.fullmatch(url)
    if found is None:
        raise InputError(f"{shown}: no URL; write it with two slashes, as in s3://bucket/run1")
    scheme, rest = found[1].lower(), found[2]
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise InputError(f"{shown}: unknown scheme `{scheme}`; one of {known} or a folder's path")
    entry = _SCHEMES[scheme]
    if "?" in rest or "@" in rest.partition("/")[0]:
        raise InputError(
            f"{shown}: no place for user, password or a query, for URLs are recorded; leave them "
            f"out and set them in the environment ({entry.credentials})"
        )
    parts = rest.rstrip("/").split("/")
    if scheme == "file":
        if parts[0]:
            raise InputError(f"{shown}: names a host; write file:///folder, with three slashes")
        parts = parts[1:]
    plain = bool(parts) and all(part.strip(". ") for part in parts)
    if not plain or _REFUSED.search(rest):
        raise InputError(
            f"{shown}: not a folder of a store; use plain names, without `..`, empty parts, "
            "escapes or any of * ? [ ] # %"
        )
    if entry.package and importlib.util.find_spec(entry.package) is None:
        raise InputError(
            f"{shown}: {scheme}:// needs the package {entry.package}; run "
            f'`pip install "replenish[{entry.extra}]"`'
        )
    rooted = "/" if scheme in ("file", "memory") else ""
    fs = fsspec.filesystem(scheme, **entry.options)
    clean = f"{scheme}://{'/' if scheme == 'file' else ''}{'/'.join(parts)}"
    return Location(clean, rooted + "/".join(parts), fs, scheme)


def refuse_url(path: str, remedy: str) -> None:
    """Refuse a URL where a local folder is needed.

    Raises:
        InputError: `path` is a URL; says the remedy.
    """
    if is_url(path):
        raise InputError(f"{without_secrets(path)}: a local folder is needed here; {remedy}")


def without_secrets(text: str) -> str:
    """Return text without the users, passwords, queries and fragments of the URLs in it."""
    text = re.sub(r"(:/{1,2})[^\s'\"]*@", r"\1", text)
    return re.sub(r"(:/[^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text)
