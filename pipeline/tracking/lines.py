"""Files of JSON lines that several processes append to, and that cannot grow without end.

A line is written in one call to a file opened for appending, so that lines of several processes do
not mix. A file that would grow past its bound becomes `<name>.1.jsonl`, in the place of the one
before it.
"""

import errno
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

RUNS_BYTES = 1 << 29  # all run logs of a folder together
_KEEP_SECONDS = 86_400.0  # a log that was written to this lately is never removed
_RUN_LOG = re.compile(r"\d{8}T\d{6}Z-.+\.jsonl")


def older_part(path: Path) -> Path:
    """Return where a file's earlier lines are once it was too large."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


def append_line(path: Path, text: str, most_bytes: int) -> bool:
    """Append one line, and say whether a new file was begun for it because the old one was full.

    Args:
        path: the file; its folder is made.
        text: ASCII, without the end of the line.
        most_bytes: bound of the file; with its older part twice as much.

    Raises:
        OSError: it cannot be written.
    """
    data = text.encode("ascii") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = _is_full(path, len(data), most_bytes)
    if turned:
        with FileLock(path.with_name(f".{path.name}.lock")):
            turned = _is_full(path, len(data), most_bytes)  # another process may have been first
            if turned:
                path.replace(older_part(path))
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(handle)
    return turned


def read_lines(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """Return the objects of a file, or of its last bytes; a damaged line is passed over."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = 0 if last_bytes is None else max(0, size - last_bytes)
            file.seek(start)
            data = file.read()
    except OSError:
        return []
    if start:
        data = data.partition(b"\n")[2]  # the first line is most likely a half
    return parse_lines(data)


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the objects in JSON lines; what is none is passed over."""
    found = []
    for line in data.splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return found


def prune_run_logs(folder: Path, most_bytes: int = RUNS_BYTES) -> None:
    """Remove the oldest run logs beyond the bound, but none of the last day, and nothing else."""
    logs = [path for path in folder.glob("*.jsonl") if _RUN_LOG.fullmatch(path.name)]
    logs += (folder / "shards").glob("*.jsonl")
    found = []
    for path in logs:
        try:
            told = path.stat()
        except OSError:
            continue
        found.append((told.st_mtime, told.st_size, path))
    total = sum(size for _, size, _ in found)
    for modified, size, path in sorted(found):
        if total <= most_bytes or time.time() - modified < _KEEP_SECONDS:
            return
        try:
            path.unlink()
        except OSError:
            continue
        total -= size


def _is_full(path: Path, more: int, most_bytes: int) -> bool:
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return size > 0 and size + more > most_bytes
