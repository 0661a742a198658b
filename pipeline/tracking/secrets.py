"""Keep passwords and keys out of what is recorded: logs, MLflow, side files."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_NAME = r"(?:token|secret|passw(?:or)?d|pwd|passphrase|credentials?|api[_-]?key|access[_-]?key)"
# A password may hold an `@` of its own: all up to the last one before the path goes.
_LOGIN = re.compile(r"://[^/?#\s]*@")
_QUERY = re.compile(
    rf"([?&;](?:[\w.-]*(?:{_NAME}|signature)[\w.-]*|sig|key|auth)=)[^&#\s\"']*", re.IGNORECASE
)
_BEARER = re.compile(r"\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
# Keys that say what they are: Hugging Face, GitHub, AWS.
_KNOWN = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|AKIA|ASIA)[A-Za-z0-9_]{12,}")
_KEY = re.compile(rf"(?:^|[._-]){_NAME}$", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return a text without the names and passwords in its addresses, and without known keys."""
    text = _LOGIN.sub("://", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _KNOWN.sub(HIDDEN, text)


def clean(value: Any, key: str = "") -> Any:
    """Return plain data with every text in it cleaned.

    What stands under a key such as `password` or `remote.access_key` is hidden as a whole.
    """
    if isinstance(value, Mapping):
        return {without_secrets(str(name)): clean(one, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean(one, key) for one in value]
    if isinstance(value, str):
        return HIDDEN if value and _KEY.search(key) else without_secrets(value)
    return value
