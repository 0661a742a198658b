"""Reads and writes of a store: parallel, tried again when they fail, and explained."""

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pipeline.errors import InputError, StageError
from pipeline.storage.locations import Location, without_secrets

WAITS_SECONDS = (0.5, 2.0, 8.0)
_TEMPORARY = ".tmp"
_AT_ONCE = 16  # transfers in flight
_BATCH_FILES = 64  # a failed batch is sent again as a whole
_BATCH_BYTES = 256 << 20
_DRIVERS = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3")
_NO_RIGHTS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


def attempt(location: Location, action: Callable[[], T]) -> T:
    """Do `action`, which may be repeated, again after failures that can pass.

    Raises:
        FileNotFoundError: from `action`, as it is.
        FileExistsError: likewise.
        InputError: the store refuses for want of rights.
        StageError: the store failed four times over 10 seconds, or is full.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            return action()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if not _of_store(error):
                raise
            final = _explain(location, error)
            if wait is None or final is not None:
                # Without the cause: a driver's error can carry signed URLs.
                raise final or _silent(location, error) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def listing(location: Location, *parts: str) -> dict[str, int]:
    """Return name -> bytes of the objects right below a folder; empty where there is none."""
    path = location.path(*parts)

    def read() -> dict[str, int]:
        found = location.fs.find(path, maxdepth=1, detail=True)
        return {PurePosixPath(name).name: int(info["size"]) for name, info in found.items()}

    try:
        return attempt(location, read)
    except FileNotFoundError:
        return {}


def read(location: Location, path: str, limit_bytes: int) -> bytes | None:
    """Return an object, or None where there is none.

    Raises:
        InputError: no rights.
        StageError: larger than the limit, or the store fails.
    """

    def load() -> bytes:
        size = int(location.fs.info(path)["size"])
        if size > limit_bytes:
            raise StageError(
                f"{location.url}: {PurePosixPath(path).name} has {size:,} bytes, more than "
                f"{limit_bytes:,}; it is none of Replenish's: give another URL"
            )
        return bytes(location.fs.cat_file(path))

    try:
        return attempt(location, load)
    except FileNotFoundError:
        return None


def write(location: Location, path: str, data: bytes) -> None:
    """Write an object; a reader sees the old one or all of the new one."""

    def put() -> None:
        if location.whole:
            location.fs.pipe_file(path, data)
        else:
            temporary = _temporary(path)
            location.fs.pipe_file(temporary, data)
            location.fs.mv(temporary, path)

    _writing(location, put)


def create(location: Location, path: str, data: bytes) -> bool:
    """Write an object unless there is one; say whether it was written.

    Of two who try at once, one succeeds: S3 by `If-None-Match`, Google's store by its generation,
    a folder by a hard link.
    """

    def put() -> None:
        if location.scheme == "file":
            temporary = Path(_temporary(path))
            location.fs.pipe_file(str(temporary), data)
            try:
                os.link(temporary, path)
            finally:
                temporary.unlink()
        else:
            location.fs.pipe_file(path, data, mode="create")

    return _if_met(location, put)


def replace(location: Location, path: str, data: bytes, tag: str | None) -> bool:
    """Write over the object that `tag` was of; say whether it was still that one.

    Without a tag, the object is replaced whatever it is.
    """
    if tag is None:
        write(location, path, data)
        return True
    return _if_met(location, lambda: location.fs.pipe_file(path, data, IfMatch=tag))


def tag_of(location: Location, path: str) -> str | None:
    """Return what names the present state of an object; None where the store can compare none.

    Raises:
        FileNotFoundError: no such object.
    """
    if location.scheme != "s3":
        return None
    return str(attempt(location, lambda: location.fs.info(path))["ETag"])


def remove(location: Location, paths: Sequence[str]) -> None:
    """Remove objects; those that are gone already are no fault."""
    for path in paths:
        try:
            attempt(location, partial(location.fs.rm_file, path))
        except FileNotFoundError:
            continue


def unfinished(location: Location, *parts: str) -> list[str]:
    """Return the paths right below a folder of what a killed process left half-written."""
    return [
        location.path(*parts, name)
        for name in listing(location, *parts)
        if name.startswith(".") and name.endswith(_TEMPORARY)
    ]


def send_files(location: Location, pairs: Sequence[tuple[Path, str]]) -> None:
    """Send local files to their paths; each appears whole."""
    for batch in _batches(pairs, [source.stat().st_size for source, _ in pairs]):
        _writing(location, partial(_put, location, batch))


def fetch_files(
    location: Location, pairs: Sequence[tuple[str, Path]], sizes: Sequence[int]
) -> None:
    """Fetch objects into local files, of which the folders exist.

    Raises:
        FileNotFoundError: an object is not there.
    """
    for batch in _batches(pairs, sizes):
        sources, targets = [one[0] for one in batch], [str(one[1]) for one in batch]
        attempt(location, partial(location.fs.get, sources, targets, **_parallel(location)))


def _put(location: Location, batch: Sequence[tuple[Path, str]]) -> None:
    targets = [path for _, path in batch]
    names = targets if location.whole else [_temporary(path) for path in targets]
    location.fs.put([str(source) for source, _ in batch], names, **_parallel(location))
    for name, path in zip(names, targets, strict=True):
        if name != path:
            location.fs.mv(name, path)


def _parallel(location: Location) -> dict[str, int]:
    return {"batch_size": _AT_ONCE} if location.fs.async_impl else {}


B = TypeVar("B")


def _batches(pairs: Sequence[B], sizes: Sequence[int]) -> Iterator[list[B]]:
    batch: list[B] = []
    total = 0
    for pair, size in zip(pairs, sizes, strict=True):
        if batch and (len(batch) == _BATCH_FILES or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(pair)
        total += size
    if batch:
        yield batch


def _temporary(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}"


def _writing(location: Location, action: Callable[[], None]) -> None:
    try:
        attempt(location, action)
    except FileNotFoundError:
        raise InputError(
            f"{location.url}: no such bucket or folder; create it, or give another URL"
        ) from None


def _if_met(location: Location, action: Callable[[], None]) -> bool:
    """Do a conditional write; say whether its condition was met."""

    def try_it() -> bool:
        try:
            action()
        except FileExistsError:
            return False
        except Exception as error:
            if _precondition_failed(error):
                return False
            raise
        return True

    try:
        return attempt(location, try_it)
    except FileNotFoundError:
        raise InputError(
            f"{location.url}: no such bucket or folder; create it, or give another URL"
        ) from None


def _precondition_failed(error: BaseException) -> bool:
    if str(getattr(error, "code", "")) == "412":
        return True
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return code in ("PreconditionFailed", "ConditionalRequestConflict")


def _of_store(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _DRIVERS


def _explain(location: Location, error: Exception) -> InputError | StageError | None:
    """Return what to tell the user of an error that trying again does not mend, or None."""
    told = without_secrets(str(error))
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_RIGHTS:
        return InputError(
            f"{location.url}: may not be read or written ({told}); check the credentials in the "
            f"environment ({location.credentials}) and their rights"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return StageError(
            f"{location.url}: no space left ({told}); free some and run the same command again: "
            "it goes on from where it stopped"
        )
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return InputError(f"{location.url}: a file stands in the way ({told}); give another URL")
    return None


def _silent(location: Location, error: Exception) -> StageError:
    return StageError(
        f"{location.url}: the store fails ({type(error).__name__}: {without_secrets(str(error))}); "
        "check network and endpoint, and run the same command again: it goes on from where it "
        "stopped"
    )
