"""The Tracker protocol: the only way for domain code to speak while it works.

Implementations: `console` (progress bars or plain lines), `jsonlines` (a file), `mlflow`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Column:
    """One named column, or one tensor, of what a model takes or gives.

    Attributes:
        name: of the column; empty where the whole is one tensor.
        kind: `text`, `integer`, `uint8` or `float32`; the first two are columns of a table.
        shape: of a tensor, -1 for any number of rows; empty for a column of a table.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrackedModel:
    """A trained network as a folder of safetensors and JSON, and what one must know to call it.

    Attributes:
        name: within the run.
        folder: its files; they are copied as they are.
        loader: importable module whose `_load_pyfunc(folder, config)` opens it.
        inputs: what it takes.
        outputs: what it gives.
        example: an input: an array for a tensor, a list of rows (dicts) for a table.
        facts: JSON values that go with it: class names, image size, arm.
        config: settings that a caller of the loader may change.
        registry: name of the registered model that a version of it is entered in; empty: none.
        tags: labels of the model and its version: decision, gain, digests.
    """

    name: str
    folder: Path
    loader: str
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    example: Any
    facts: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    registry: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


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

    def series(self, points: Mapping[str, Mapping[int, float]]) -> None:
        """Record finished curves, name -> step -> value; said again, no point is doubled."""
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

    def image(self, path: Path, key: str, step: int) -> None:
        """Keep a picture of a series: pictures of one key are looked through by step."""
        ...

    def model(self, model: TrackedModel) -> None:
        """Keep a trained network, and enter it in the registry if it names one."""
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

    def series(self, points: Mapping[str, Mapping[int, float]]) -> None:
        """See Tracker."""

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""

    def note(self, message: str) -> None:
        """See Tracker."""

    def artifact(self, path: Path, name: str) -> None:
        """See Tracker."""

    def image(self, path: Path, key: str, step: int) -> None:
        """See Tracker."""

    def model(self, model: TrackedModel) -> None:
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

    def series(self, points: Mapping[str, Mapping[int, float]]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.series(points)

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

    def image(self, path: Path, key: str, step: int) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.image(path, key, step)

    def model(self, model: TrackedModel) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.model(model)

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
