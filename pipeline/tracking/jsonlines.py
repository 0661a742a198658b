"""The run as JSON lines: one object a line, for programs, and for people after a failure.

Every line keeps to the schema in `pipeline.tracking.schema`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.tracking.identity import inherited_run
from pipeline.tracking.lines import append_line
from pipeline.tracking.schema import Level, line_text, utc_now
from pipeline.tracking.secrets import without_secrets
from pipeline.tracking.tracker import NullTracker, Scalar, TrackedModel

PROGRESS_EVERY_SECONDS = 1.0
LOG_BYTES = 1 << 25  # of a part of a log; there are two at most
# A new part says these again, so that each one tells of which run it is.
_HEAD = ("run_begin", "params")


def _nothing(_: str) -> None:
    pass


def new_run_log(folder: Path, driver: str, now: Callable[[], datetime] = utc_now) -> Path:
    """Return a free path below `folder`: `20260131T093000Z-run.jsonl`, `...-run-2.jsonl`."""
    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}-{driver}.jsonl"
    number = 1
    while path.exists():
        number += 1
        path = folder / f"{stamp}-{driver}-{number}.jsonl"
    return path


def first_words(error: BaseException) -> str:
    """Return the first line of what an error says, without secrets."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0])[:300] if lines else ""


class JsonLinesTracker(NullTracker):
    """Appends every event to a file, a line each, which is there at once.

    A file that cannot be written never stops the work: `warn` is told once, and what can be
    written later is written. A file that grows past the bound becomes `<name>.1.jsonl`.
    """

    def __init__(
        self,
        path: Path,
        warn: Callable[[str], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        run_id: str | None = None,
        most_bytes: int = LOG_BYTES,
    ) -> None:
        """Append to `path`, whose folder is made.

        Args:
            path: the file.
            warn: told once when it cannot be written.
            clock: in seconds; paces progress lines.
            now: the time.
            run_id: of the run; None is the one that this process works for.
            most_bytes: bound of the file; with its older part twice as much.
        """
        self.path = path
        inherited = inherited_run()
        self._run_id = run_id if run_id is not None else inherited[0] if inherited else ""
        self._warn = warn
        self._clock = clock
        self._now = now
        self._most_bytes = most_bytes
        self._stages: list[str] = []
        self._said: dict[str, tuple[float, int]] = {}  # task -> clock and count of its last line
        self._head: dict[str, str] = {}
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
        """Do nothing: every line is there already."""

    @contextmanager
    def run(self, **facts: Any) -> Iterator[None]:
        """Write how the run begins, with the facts of `run_begin`, and how it ends."""
        with self._span("run", **facts):
            yield

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker; the end says the seconds and the type of the error, if any."""
        self._stages.append(name)
        try:
            with self._span("stage"):
                yield
        finally:
            self._stages.pop()

    @contextmanager
    def _span(self, what: str, **facts: Any) -> Iterator[None]:
        """Write how something begins, and how it ends: seconds, and the error if there is one."""
        began = self._clock()
        self._write(f"{what}_begin", **facts)
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            self._end(f"{what}_end", began, failure)

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
        """See Tracker; at most one line a second for each task, its first ones and its last."""
        now = self._clock()
        said, before = self._said.get(task, (float("-inf"), 0))
        begins = done < before  # again: another round
        if done < total and not begins and now - said < PROGRESS_EVERY_SECONDS:
            return
        self._said[task] = now, done
        self._write("progress", task=task, done=done, total=total, unit=unit)

    def note(self, message: str) -> None:
        """See Tracker."""
        self._write("note", message=message)

    def warning(self, message: str) -> None:
        """Write what went wrong beside the work."""
        self._write("warning", message=message)

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

    def _end(self, event: str, began: float, failure: BaseException | None) -> None:
        self._write(
            event,
            level="error" if failure is not None else "info",
            seconds=round(self._clock() - began, 3),
            error=None if failure is None else type(failure).__name__,
            message=None if failure is None else first_words(failure),
        )

    def _write(self, event: str, *, level: Level | None = None, **fields: Any) -> None:
        stage = self._stages[-1] if self._stages else None
        text = line_text(self._run_id, stage, event, fields, self._now(), level)
        try:
            if append_line(self.path, text, self._most_bytes):
                for line in self._head.values():
                    append_line(self.path, line, self._most_bytes)
        except OSError as error:
            self._complain(error)
        if event in _HEAD:
            self._head[event] = text

    def _complain(self, error: OSError) -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(f"{self.path}: the run's log cannot be written ({error}); the work goes on")
