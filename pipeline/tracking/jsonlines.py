"""The run as JSON lines: one object a line, for programs, and for people after a failure.

    {"time": "2026-01-31T09:30:00.123456+00:00", "stage": "train", "event": "metrics", ...}

Events: stage_begin, stage_end, params, metrics, series, progress, note, artifact, image, model,
dataset, arm, tags.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pipeline.tracking.tracker import NullTracker, Scalar, TrackedModel

PROGRESS_EVERY_SECONDS = 1.0


def _nothing(_: str) -> None:
    pass


def _utc_now() -> datetime:
    return datetime.now(UTC)


def new_run_log(folder: Path, driver: str, now: Callable[[], datetime] = _utc_now) -> Path:
    """Return a free path below `folder`: `20260131T093000Z-run.jsonl`, `...-run-2.jsonl`."""
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}-{driver}.jsonl"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stamp}-{driver}-{number}.jsonl"
    return path


class JsonLinesTracker(NullTracker):
    """Appends every event to a file, a line each, flushed at once.

    A file that cannot be written never stops the work: `warn` is told once, and what can be
    written later is written.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Append to `path`, whose folder is made; `clock` in seconds paces progress lines."""
        self.path = path
        self._warn = warn
        self._clock = clock
        self._now = now
        self._stages: list[str] = []
        self._said: dict[str, float] = {}
        self._file: IO[str] | None = None
        self._warned = False

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._complain(error)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker; the end says the seconds and the type of the error, if any."""
        began = self._clock()
        self._stages.append(name)
        self._write("stage_begin")
        failure: str | None = None
        try:
            yield
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            self._write("stage_end", seconds=round(self._clock() - began, 3), error=failure)
            self._stages.pop()

    def params(self, values: Mapping[str, Scalar]) -> None:
        """See Tracker."""
        self._write("params", values=dict(values))

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See Tracker; numbers that are not finite become null."""
        self._write("metrics", step=step, values=dict(values))

    def series(self, points: Mapping[str, Mapping[int, float]]) -> None:
        """See Tracker."""
        self._write("series", points={name: dict(values) for name, values in points.items()})

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker; at most one line a second for each task, and the last one."""
        now = self._clock()
        said = self._said.get(task)
        if done < total and said is not None and now - said < PROGRESS_EVERY_SECONDS:
            return
        self._said[task] = now
        self._write("progress", task=task, done=done, total=total, unit=unit)

    def note(self, message: str) -> None:
        """See Tracker."""
        self._write("note", message=message)

    def artifact(self, path: Path, name: str) -> None:
        """See Tracker; the file is named, not copied."""
        self._write("artifact", path=str(path), name=name)

    def image(self, path: Path, key: str, step: int) -> None:
        """See Tracker; the file is named, not copied."""
        self._write("image", path=str(path), key=key, step=step)

    def model(self, model: TrackedModel) -> None:
        """See Tracker; the folder is named, not copied."""
        self._write("model", name=model.name, path=str(model.folder), tags=dict(model.tags))

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """See Tracker."""
        self._write("dataset", name=name, digest=digest, rows=rows, context=context)

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._write("arm", name=name, params=dict(params), metrics=dict(metrics))

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        self._write("tags", values=dict(values))

    def _write(self, event: str, **fields: Any) -> None:
        line = {
            "time": self._now().isoformat(),
            "stage": self._stages[-1] if self._stages else None,
            "event": event,
            **fields,
        }
        # Escaped to ASCII: no text of a user's can break a line or the encoding.
        text = json.dumps(_finite(line), allow_nan=False, default=str) + "\n"
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="ascii")
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(f"{self.path}: the run's log cannot be written ({error}); the work goes on")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # NumPy's scalars are numbers here too; `item` gives the plain one.
    item = getattr(value, "item", None)
    return _finite(item()) if callable(item) else value
