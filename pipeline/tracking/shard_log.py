"""A line for each shard, written by whoever did it: runs/shards/<run id>.<host>.jsonl.

A worker asks for `shard_log()`, which finds its run in the environment; outside of a run it writes
nothing. Nothing here ends the work: a line that cannot be written is lost.
"""

import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tracking.identity import inherited_run
from pipeline.tracking.lines import append_line, parse_lines
from pipeline.tracking.peaks import memory_peaks
from pipeline.tracking.schema import line_text, utc_now

SHARDS = "shards"
SHARD_BYTES = 1 << 25  # of a part; with 400 bytes a line, one holds 80,000 shards
STAGE = "synthesize"


@dataclass(frozen=True)
class ShardLog:
    """Writes a line a shard.

    Attributes:
        path: the file; None writes nothing.
        run_id: of the run.
    """

    path: Path | None
    run_id: str = ""

    def done(
        self, shard: str, images: int, seconds: float, attempt: int = 1, sha256: str = ""
    ) -> None:
        """Write that a shard is on disk.

        Args:
            shard: its name.
            images: candidates in it; 0 where it was there already.
            seconds: that it took.
            attempt: the how manieth.
            sha256: of its file, where it is known.
        """
        self._write(
            "shard_done",
            shard=shard,
            images=images,
            seconds=round(seconds, 4),
            attempt=attempt,
            sha256=sha256,
        )

    def failed(self, shard: str, message: str, attempt: int = 1) -> None:
        """Write that an attempt failed, and why."""
        self._write("shard_failed", shard=shard, message=message[:300], attempt=attempt)

    def retried(self, shard: str, message: str, attempt: int) -> None:
        """Write that a shard is given to another worker, as attempt 2 or a later one, and why."""
        self._write("shard_retried", shard=shard, message=message[:300], attempt=attempt)

    def _write(self, event: str, **fields: Any) -> None:
        if self.path is None:
            return
        text = line_text(self.run_id, STAGE, event, {**fields, "worker": _worker()}, utc_now())
        try:
            append_line(self.path, text, SHARD_BYTES)
        except OSError:
            pass


def shard_log() -> ShardLog:
    """Return the shard log of the run that this process works for."""
    found = inherited_run()
    if found is None:
        return ShardLog(None)
    run_id, logs = found
    # A file for each host: on a shared folder, appending is safe within one host alone.
    host = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:64]
    return ShardLog(logs / SHARDS / f"{run_id}.{host}.jsonl", run_id)


def _worker() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "memory_bytes": memory_peaks(),
    }


@dataclass
class ShardTally:
    """Counts the shards of a run; `update` reads what is new in its files.

    Attributes:
        logs: folder of the run logs.
        run_id: of the run.
        done: shards that were drawn.
        failed: attempts that failed.
        retried: shards that were given away again.
        images: candidates that were drawn.
        memory_bytes: kind -> the largest peak of a worker.
    """

    logs: Path
    run_id: str
    done: int = 0
    failed: int = 0
    retried: int = 0
    images: int = 0
    memory_bytes: dict[str, int] = field(default_factory=dict)
    _read: dict[int, int] = field(default_factory=dict)

    def update(self) -> None:
        """Count the lines that were written since."""
        for path in sorted((self.logs / SHARDS).glob(f"{self.run_id}.*.jsonl")):
            try:
                self._count(path)
            except OSError:
                continue

    def _count(self, path: Path) -> None:
        with path.open("rb") as file:
            # By its inode: a file that was full goes on under another name.
            inode = os.fstat(file.fileno()).st_ino
            start = self._read.get(inode, 0)
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[inode] = start + len(whole)
        for line in parse_lines(whole):
            fields = line.get("fields")
            if isinstance(fields, dict):
                self._add(str(line.get("event")), fields)

    def _add(self, event: str, fields: dict[str, Any]) -> None:
        if event == "shard_done" and (images := int(fields.get("images") or 0)):
            self.done += 1
            self.images += images
        self.failed += event == "shard_failed"
        self.retried += event == "shard_retried"
        worker = fields.get("worker")
        peaks = worker.get("memory_bytes") if isinstance(worker, dict) else None
        for kind, size in (peaks if isinstance(peaks, dict) else {}).items():
            self.memory_bytes[kind] = max(self.memory_bytes.get(kind, 0), int(size))
