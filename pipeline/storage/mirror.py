"""Copies of finished stage folders in a store, where no folder can be renamed.

A stage is kept as `<stage>/objects/<sha256>`, one object a file named by its content, and
`<stage>/stored.json`, the folder's manifest to the byte. That one is written last, and replaced as
a whole: who reads it sees the old folder or the new one, never a mixture, and a sending that was
interrupted goes on with the objects that are missing. The name differs from `manifest.json` so that
such a folder, met by its path, is not taken for a plain one.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, StageError
from pipeline.folders import (
    MANIFEST,
    WORK,
    Manifest,
    read_manifest,
    replace_folder,
    safe_join,
    write_bytes,
)
from pipeline.hashing import digest_file, digest_json
from pipeline.storage import transfers
from pipeline.storage.locations import Location

STORED = "stored.json"
OBJECTS = "objects"
_RECORD_BYTES = 256 << 20  # a manifest of a million files
_SPARE_BYTES = 256 << 20  # left free on the disk
_TRIES = 3
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5  # names of damaged files that are listed


@dataclass(frozen=True)
class Record:
    """What a store says of a stage.

    Attributes:
        data: the manifest's bytes.
        manifest: the same, read and checked.
    """

    data: bytes
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Return the sha256 of the manifest's bytes."""
        return hashlib.sha256(self.data).hexdigest()


def read_record(location: Location, name: str) -> Record | None:
    """Return what the store says of a stage, or None where it has no finished one.

    Raises:
        InputError: no rights, or a plain folder of the stage stands there.
        StageError: the record is damaged or hostile, or the store fails.
    """
    data = transfers.read(location, location.path(name, STORED), _RECORD_BYTES)
    if data is None:
        if location.scheme == "file" and MANIFEST in transfers.listing(location, name):
            raise InputError(
                f"{location.shown(name)}: a plain stage folder; give its path, without file://"
            )
        return None
    shown = location.shown(name, STORED)
    try:
        manifest = Manifest(**json.loads(data))
        for file, digest in manifest.files.items():
            safe_join(Path("/stage"), file)
            whole = PurePosixPath(file)
            if (
                file in (MANIFEST, STORED)
                or whole.as_posix() != file  # two names of one file
                or any(parent.as_posix() in manifest.files for parent in whole.parents)
                or not _DIGEST.fullmatch(digest)
            ):
                raise ValueError(f"{file!r} does not belong into a manifest")
        if manifest.stage != name or digest_json(manifest.files) != manifest.digest:
            raise ValueError("its stage or its digest is another")
        if not (isinstance(manifest.params, dict) and isinstance(manifest.inputs, dict)):
            raise ValueError("params and inputs are no objects")
    except (ValueError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise StageError(
            f"{shown}: damaged ({error}); delete {location.shown(name)} and run again"
        ) from None
    return Record(data, manifest)


def fetch_stage(location: Location, name: str, folder: Path) -> Record | None:
    """Make the local `folder` the one that the store has; None and no change where it has none.

    Files that are in the folder already are not fetched again; all are checked by their digest.
    The new folder is made in `<folder>/../.work` and moved into place by one rename.

    Raises:
        InputError: other things stand at `folder`; or no rights.
        StageError: an object is missing or damaged, the record is hostile, too little disk space,
            or the store fails.
    """
    for _ in range(_TRIES):
        record = read_record(location, name)
        if record is None or _has(folder, record):
            return record
        try:
            _fetch(location, name, folder, record)
            return record
        except FileNotFoundError:
            # A newer folder was sent meanwhile, and the objects of the old one were removed.
            newer = read_record(location, name)
            if newer is None or newer.digest == record.digest:
                break
    raise StageError(
        f"{location.shown(name)}: damaged: objects are missing; delete it and run again"
    )


def send_stage(
    folder: Path, location: Location, name: str, check: Callable[[], None] = lambda: None
) -> Record:
    """Send a finished folder: objects that the store lacks, then the record, then tidy up.

    Args:
        folder: local folder of the stage.
        location: of the artifacts.
        name: of the stage.
        check: raises where the store is not this run's any more; called before the record is
            written and before anything is removed.

    Raises:
        InputError: the folder is not a finished one of the stage; or no rights.
        StageError: a file is not what the manifest says, or the store fails.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.stage != name:
        raise InputError(f"{folder}: no finished folder of `{name}`; run the stage first")
    record = Record((folder / MANIFEST).read_bytes(), manifest)
    there = transfers.listing(location, name, OBJECTS)
    missing = {
        digest: folder / file
        for file, digest in manifest.files.items()
        if there.get(digest) != _size(folder / file)
    }
    for digest, path in missing.items():
        if digest_file(path) != digest:
            raise StageError(
                f"{path}: not what {folder / MANIFEST} says; delete {folder} and run again"
            )
    pairs = [
        (path, location.path(name, OBJECTS, digest)) for digest, path in sorted(missing.items())
    ]
    transfers.send_files(location, pairs)
    check()
    target = location.path(name, STORED)
    if transfers.read(location, target, _RECORD_BYTES) != record.data:
        transfers.write(location, target, record.data)
    check()
    prune(location, name, record)
    return record


def prune(location: Location, name: str, record: Record) -> int:
    """Remove the objects of a stage that its record does not name; return how many.

    What a killed sender left half-written goes too.

    Only for who holds the location's lock: another sender's objects would go as well.
    """
    wanted = set(record.manifest.files.values())
    old = [
        location.path(name, OBJECTS, one)
        for one in transfers.listing(location, name, OBJECTS)
        if one not in wanted
    ]
    if not location.whole:
        old += transfers.unfinished(location, name)
    transfers.remove(location, old)
    return len(old)


def outline_stage(location: Location, name: str, folder: Path) -> bool:
    """Write the manifest and empty files: enough to say whether the stage is up to date.

    Returns:
        Whether the store has a finished folder of the stage.
    """
    record = read_record(location, name)
    if record is None:
        return False
    there = transfers.listing(location, name, OBJECTS)
    for file, digest in record.manifest.files.items():
        if digest in there:
            path = safe_join(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    write_bytes(folder / MANIFEST, record.data)
    return True


def _has(folder: Path, record: Record) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.read_bytes() != record.data:
        return False
    return all((folder / file).is_file() for file in record.manifest.files)


def _fetch(location: Location, name: str, folder: Path, record: Record) -> None:
    present = _local_files(folder, name)
    work = folder.parent / WORK / f"{name}.fetch"
    objects, built = work / OBJECTS, work / "folder"
    objects.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(built, ignore_errors=True)
    for left in objects.iterdir():  # by a fetch that was interrupted, or by a crash
        if digest_file(left) != left.name:
            left.unlink()
    wanted = sorted(set(record.manifest.files.values()))
    for digest in wanted:
        if digest in present and not (objects / digest).exists():
            _link(present[digest], objects / digest)
    lacking = [digest for digest in wanted if not (objects / digest).exists()]
    sizes = transfers.listing(location, name, OBJECTS) if lacking else {}
    if any(digest not in sizes for digest in lacking):
        raise FileNotFoundError
    _need_space(work, sum(sizes[digest] for digest in lacking), location.shown(name))
    parts = [objects / f"{digest}.part" for digest in lacking]
    transfers.fetch_files(
        location,
        [(location.path(name, OBJECTS, d), part) for d, part in zip(lacking, parts, strict=True)],
        [sizes[digest] for digest in lacking],
    )
    damaged = []
    for digest, part in zip(lacking, parts, strict=True):
        if digest_file(part) == digest:
            part.replace(objects / digest)
        else:
            part.unlink()
            damaged.append(digest)
    if damaged:
        raise StageError(_damage(location, name, record.manifest.files, set(damaged)))
    for file, digest in record.manifest.files.items():
        target = safe_join(built, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(objects / digest, target)
    write_bytes(built / MANIFEST, record.data)
    replace_folder(built, folder)
    shutil.rmtree(work)


def _local_files(folder: Path, name: str) -> dict[str, Path]:
    """Return digest -> file of a finished local folder, by the content and not by its manifest."""
    if not folder.exists():
        return {}
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise InputError(f"{folder}: holds other things than the stage `{name}`; move it away")
    manifest = read_manifest(folder)
    if manifest is not None and manifest.stage != name:
        raise InputError(f"{folder}: holds the stage `{manifest.stage}`; move it away")
    files = [folder / file for file in (manifest.files if manifest else ())]
    return {digest_file(path): path for path in files if path.is_file()}


def _need_space(folder: Path, needed: int, shown: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise StageError(
            f"{shown}: {needed / 2**30:.2f} GiB to fetch, and {free / 2**30:.2f} GiB free at "
            f"{folder}; free some space, or give another folder with --cache"
        )


def _damage(location: Location, name: str, files: Mapping[str, str], damaged: set[str]) -> str:
    names = sorted(file for file, digest in files.items() if digest in damaged)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"{location.shown(name)}: damaged: changed: {', '.join(names[:_SHOWN])}{more}; delete "
        f"{location.shown(name)} and run again"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise StageError(f"{path}: missing; delete {path.parent} and run the stage again") from None


def _link(source: Path, target: Path) -> None:
    # No copy where the disk can link: a finished file is replaced, never changed.
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
