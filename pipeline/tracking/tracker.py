"""The Tracker protocol: the only way for domain code to speak while it works.

Implementations: `console` (progress bars or plain lines), `jsonlines` (a file), `mlflow`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

Scalar = str | int | float | bool | None


class Tracker(Protocol):
    """Receives what a stage wants known. Nothing that is sent here changes a result."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Enter a stage; what follows belongs to it until the context ends."""
        ...

    def params(self, values: Mapping[str, Scalar]) -> None:
        """Record settings, flat: `section.key` -> value."""
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers by stable names such as `train/loss`."""
        ...

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """Say how far a named piece of work is; the last call has done == total."""
        ...

    def note(self, message: str) -> None:
        """Say one line to the user."""
        ...

    def artifact(self, path: Path, name: str) -> None:
        """Keep a copy of a file under `name`, a relative POSIX path."""
        ...

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """Record a dataset that went into the run; context is `training` or `evaluation`."""
        ...

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """Record one finished classifier arm: a child run where the tracker has such a thing."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Label the run: git commit, decision, Prefect run."""
        ...


class NullTracker:
    """Keeps nothing; the base of trackers that care for a part of the protocol."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """See Tracker."""
        return nullcontext()

    def params(self, values: Mapping[str, Scalar]) -> None:
        """See Tracker."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See Tracker."""

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""

    def note(self, message: str) -> None:
        """See Tracker."""

    def artifact(self, path: Path, name: str) -> None:
        """See Tracker."""

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """See Tracker."""

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """See Tracker."""

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""


class FanOut(NullTracker):
    """Sends everything to several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Keep the trackers to send to."""
        self._trackers = tuple(trackers)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker."""
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.enter_context(tracker.stage(name))
            yield

    def params(self, values: Mapping[str, Scalar]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.params(values)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.metrics(values, step)

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.progress(task, done, total, unit)

    def note(self, message: str) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.note(message)

    def artifact(self, path: Path, name: str) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.artifact(path, name)

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.dataset(name, digest, rows, context)

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.arm(name, params, metrics)

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.tags(values)
