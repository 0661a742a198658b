"""Shared fixtures: a tracker that remembers, and folders of small real images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.device import torch_threads
from pipeline.tracking.tracker import NullTracker, Scalar

# Files of minutes, the longest first: one that begins last would leave the other core idle.
_LONG = (
    "e2e/test_cancellation",
    "e2e/test_workers",
    "faults/test_kills",
    "e2e/test_versioning",
    "e2e/test_together",
    "faults/test_kill",
    "e2e/test_drivers",
    "flows/test_deployments",
    "curation/test_planted",
    "stages/test_evaluate",
    "stages/test_synthesize",
    "stages/test_train",
    "stages/test_controls",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first; the others, and the tests of a file, stay in their order."""
    places = {Path(__file__).parent / f"{name}.py": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="session")
def _stage_arithmetic() -> Iterator[None]:
    """Compute as stages do: denormals flushed, and no fight of threads over two cores."""
    with torch_threads(1):
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured of this machine out of the user's cache folder; children inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


MakeImageFolder = Callable[..., Path]


class RecordingTracker(NullTracker):
    """Keeps every call in a list, in order."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.metrics_calls: list[tuple[dict[str, float], int | None]] = []
        self.progress_calls: list[tuple[str, int, int, str]] = []
        self.artifacts: list[tuple[Path, str]] = []
        self.arms: list[tuple[str, dict[str, Scalar], dict[str, float]]] = []
        self.datasets: list[tuple[str, str, int, str]] = []
        self.params_calls: list[dict[str, Scalar]] = []
        self.tags_calls: list[dict[str, str]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield

    def params(self, values: Mapping[str, Scalar]) -> None:
        self.params_calls.append(dict(values))

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.metrics_calls.append((dict(values), step))

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        self.progress_calls.append((task, done, total, unit))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def artifact(self, path: Path, name: str) -> None:
        self.artifacts.append((path, name))

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        self.datasets.append((name, digest, rows, context))

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        self.arms.append((name, dict(params), dict(metrics)))

    def tags(self, values: Mapping[str, str]) -> None:
        self.tags_calls.append(dict(values))

    def last_metric(self, name: str) -> float:
        """Return the last value recorded under `name`."""
        return [values[name] for values, _ in self.metrics_calls if name in values][-1]


@pytest.fixture
def recording_tracker() -> RecordingTracker:
    return RecordingTracker()


@pytest.fixture
def make_image_folder() -> MakeImageFolder:
    """Return `make(root, {"cat": 8}, side_px=12, mode="RGB", seed=0)`, which returns `root`.

    Writes root/<class>/000.png ...: stripes whose angle is the class, in seeded noise, so that
    classes can be told apart and no two images are equal.
    """

    def make(
        root: Path,
        counts: Mapping[str, int],
        side_px: int = 12,
        mode: str = "RGB",
        seed: int = 0,
    ) -> Path:
        random = np.random.default_rng(seed)
        channels = {"L": 1, "RGB": 3}[mode]
        y, x = np.mgrid[:side_px, :side_px]
        for index, (name, count) in enumerate(counts.items()):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            angle = np.pi * index / len(counts)
            wave = np.sin(1.5 * (np.cos(angle) * x + np.sin(angle) * y))
            for i in range(count):
                noise = random.normal(0, 25, (side_px, side_px, channels))
                pixels = (128 + 90 * wave[:, :, None] + noise).clip(0, 255).astype(np.uint8)
                image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
                image.save(folder / f"{i:03d}.png")
        return root

    return make
