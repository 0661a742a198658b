"""Folders that are either whole or absent: manifests, atomic moves, safe paths.

A stage writes into `<artifacts>/.work/<stage>/<key>`, writes `manifest.json` last, and moves the
folder into place in one rename. Only a folder with a manifest counts as done.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError, StageError
from pipeline.hashing import digest_folder, digest_json

MANIFEST = "manifest.json"
WORK = ".work"
REPLACED = "old-"
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Manifest:
    """What a finished stage folder says of itself.

    Attributes:
        stage: name of the stage.
        key: digest of all that decides the result: params, inputs and source code.
        params: the stage's own section, without `execution`.
        inputs: name of each input -> its content digest; `<name>/<file>` -> the digest of that
            file, where nothing else of the input counts.
        files: relative path -> sha256 of each file, the manifest excepted.
        digest: content digest of the folder, over `files`.
    """

    stage: str
    key: str
    params: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    digest: str


def write_manifest(
    folder: Path, stage: str, key: str, params: dict[str, Any], inputs: Mapping[str, str]
) -> Manifest:
    """Hash every file of `folder` and write its manifest, the last file to appear."""
    files = digest_folder(folder)
    files.pop(MANIFEST, None)
    manifest = Manifest(stage, key, params, dict(inputs), files, digest_json(files))
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, or None where the folder is missing or unfinished.

    Raises:
        StageError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        for name in manifest.files:
            safe_join(folder, name)
    except (ValueError, TypeError, AttributeError, InputError) as error:
        raise StageError(
            f"{path}: damaged manifest ({error}); delete {folder} and run again"
        ) from None
    return manifest


def made_from(manifest: Manifest, found: Mapping[str, Manifest]) -> dict[str, tuple[str, str]]:
    """Return input -> (digest that the folder was made from, digest at hand) where they differ.

    Args:
        manifest: of the folder in question.
        found: stage name -> manifest at hand; inputs that are not among them are not looked at.
    """
    differing: dict[str, tuple[str, str]] = {}
    for name, digest in manifest.inputs.items():
        needed, _, file = name.partition("/")
        if needed in found:
            here = found[needed].files.get(file, "nothing") if file else found[needed].digest
            if here != digest:
                differing[needed] = (digest, here)
    return differing


def replace_folder(finished: Path, target: Path) -> None:
    """Move `finished` to `target`; what stood there is removed afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = finished.parent / f"{REPLACED}{uuid.uuid4().hex}"
        target.rename(old)
        finished.rename(target)
        shutil.rmtree(old)
    else:
        finished.rename(target)


def temporary_name(path: Path, mark: str = "unfinished") -> Path:
    """Return a name beside `path` that readers pass over and `drop_temporary_files` removes."""
    return path.with_name(f".{path.name}.{mark}{_TEMPORARY}")


def write_bytes(path: Path, data: bytes, make_folder: bool = True) -> None:
    """Write a file that is never seen half-written: temporary name, flush to disk, rename.

    Without `make_folder` the folder has to be there: one that was moved away is not made again.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path, uuid.uuid4().hex[:8])
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write ids in sorted order, one a line, atomically."""
    write_bytes(path, "".join(f"{one}\n" for one in sorted(ids)).encode())


def drop_temporary_files(folder: Path) -> None:
    """Remove the temporary files below `folder` that a process left when it was killed."""
    for path in folder.rglob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, atomically; non-finite numbers are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def safe_join(root: Path, name: str) -> Path:
    """Return `root / name` for a relative name that stays inside `root`, links included.

    Raises:
        InputError: the name is absolute, climbs out with `..`, or leads out through a link.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise InputError(f"{name!r}: not a path inside {root}; use a relative path without `..`")
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path}: a link leads out of {root}; replace the link by the file")
    return path
