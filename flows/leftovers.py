"""What runs left on the disk: work that was given up, and old logs.

Nothing outside the folder that was named is looked at or touched: no link is followed, and only
what a stage or a run has written under its own name counts.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.folders import MANIFEST, WORK
from pipeline.params import SECTIONS

LOG_NAMES = "[0-9]*T[0-9]*Z-*.jsonl"  # as pipeline.tracking.jsonlines names them
_DEPTH = 4  # of artifacts folders below the one that was named: a sweep's points are at 2


def _nothing() -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Leftover:
    """Something that may go.

    Attributes:
        kind: what it is, for people.
        name: which one.
        bytes: what removing it frees.
        delete: removes it; raises where that cannot be done.
        guard: lock that is held meanwhile; raises `Timeout` where a run is at work on it.
    """

    kind: str
    name: str
    bytes: int
    delete: Callable[[], None]
    guard: Callable[[], AbstractContextManager[Any]] = field(default=_nothing)


def remove(one: Leftover, warn: Callable[[str], None]) -> bool:
    """Remove it, and say whether it is gone; `warn` is told why it is not."""
    try:
        with one.guard():
            one.delete()
    except Timeout:
        warn(f"{one.kind} {one.name}: stays, a run is at work on it")
        return False
    except Exception as error:  # a server, a database, a permission: the others can go all the same
        warn(f"{one.kind} {one.name}: stays ({type(error).__name__}: {error})")
        return False
    return True


def old_work(root: Path, before: float) -> list[Leftover]:
    """Return the work folders below `root` that no run is at work on and nobody touched since.

    An interrupted run goes on from its work folder: one that is young may still be wanted.

    Args:
        root: an artifacts folder, or one that holds such folders.
        before: seconds since the epoch; what was written later stays.
    """
    found: list[Leftover] = []
    for work in _work_folders(root, _DEPTH):
        for stage in SECTIONS:
            guard = partial(_stage_lock, work / f"{stage}.lock")
            for folder in _plain_folders(work / stage):
                size, newest = _size_and_time(folder)
                if newest >= before or _is_held(guard):
                    continue
                name = folder.relative_to(root).as_posix()
                delete = partial(_remove_folder, folder, before)
                found.append(Leftover("work folder", name, size, delete, guard))
    return found


def old_logs(folder: Path, keep: int, before: float) -> list[Leftover]:
    """Return the logs of runs in `folder` beyond the newest `keep` that are older than `before`."""
    if not folder.is_dir() or folder.is_symlink():
        return []
    logs = [one for one in folder.glob(LOG_NAMES) if one.is_file() and not one.is_symlink()]
    logs.sort(key=lambda one: (one.stat().st_mtime, one.name), reverse=True)
    return [
        Leftover("log", f"{folder.name}/{one.name}", one.stat().st_size, one.unlink)
        for one in logs[keep:]
        if one.stat().st_mtime < before
    ]


def _work_folders(root: Path, depth: int) -> Iterator[Path]:
    if (root / MANIFEST).exists():  # a finished stage: nothing in it is looked at
        return
    if (root / WORK).is_dir() and not (root / WORK).is_symlink():
        yield root / WORK
    if depth == 0:
        return
    for folder in _plain_folders(root):
        if not folder.name.startswith("."):
            yield from _work_folders(folder, depth - 1)


def _plain_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none of it where links lead there."""
    if folder.is_symlink():
        return []
    try:
        with os.scandir(folder) as listing:
            return sorted(Path(one.path) for one in listing if one.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Return bytes and the newest change in seconds since the epoch, links not followed."""
    size, newest = 0, folder.lstat().st_mtime
    for here, _, files in os.walk(folder):
        newest = max(newest, os.lstat(here).st_mtime)
        for name in files:
            found = Path(here, name).lstat()
            size += found.st_size
            newest = max(newest, found.st_mtime)
    return size, newest


def _stage_lock(path: Path) -> AbstractContextManager[Any]:
    return FileLock(path).acquire(timeout=0)


def _is_held(guard: Callable[[], AbstractContextManager[Any]]) -> bool:
    try:
        with guard():
            return False
    except Timeout:
        return True


def _remove_folder(folder: Path, before: float) -> None:
    # Under the stage's lock now: a run that took it up since then has left its mark.
    if _size_and_time(folder)[1] >= before:
        raise ValueError("it was taken up again")
    shutil.rmtree(folder)
