"""Who labels the unlabelled images, and what becomes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import limits
from pipeline.data.store import UNLABELLED, make_samples
from pipeline.data.store_writer import write_store
from pipeline.downstream import pool_arms
from pipeline.downstream.arms import Arm
from pipeline.downstream.bench import read_bench, read_rivals
from pipeline.downstream.fitting import fit_pair
from pipeline.errors import StageError
from pipeline.features.classifier import Classifier
from pipeline.params import EvaluateParams, Execution

SIDE = 4


class Threshold(Classifier):
    """Tells bright images from dark ones; a fool tells them the wrong way round."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign
        self.head = torch.nn.Linear(1, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 1) brightness."""
        return x.mean(dim=(1, 2, 3))[:, None].float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 2) logits."""
        brightness = self.sign * self.features(x)
        return torch.cat([-brightness, brightness], dim=1)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    labels = np.array([0, 1] * 6 + [UNLABELLED] * 5)
    splits = ["train"] * 6 + ["validation"] * 4 + ["test"] * 2 + ["pool"] * 5
    bright = np.where(labels == 1, 200, 20)[:, None, None, None]
    images = (bright + random.integers(0, 40, (17, SIDE, SIDE, 1))).astype(np.uint8)
    rows = make_samples(images, labels, splits, "real")
    write_store(tmp_path / "dataset", rows, ("dark", "bright"), SIDE, "L")
    none = rows.take(np.zeros(0, dtype=np.int64))
    write_store(tmp_path / "accepted", none, ("dark", "bright"), SIDE, "L")
    return tmp_path / "dataset", tmp_path / "accepted"


def params(**changes: Any) -> EvaluateParams:
    return EvaluateParams(execution=Execution(device="cpu"), steps=2, base_channels=8, **changes)


def test_the_kind_that_does_best_on_validation_teaches(stores, tmp_path, monkeypatch) -> None:
    trained: list[tuple[str, int]] = []

    def fit(_bench: Any, _params: Any, pair: tuple[Arm, int], _device: Any) -> Classifier:
        arm, seed = pair
        trained.append((arm.name, seed - pool_arms._TEACHER_SEED))
        return Threshold(1.0 if arm.name == "real_augmented_strong" else -1.0)

    monkeypatch.setattr(pool_arms, "fit_pair", fit)
    said: list[str] = []

    class Tracker(pool_arms.Tracker):
        def progress(self, *_: Any) -> None: ...
        def note(self, message: str) -> None:
            said.append(message)

    path = tmp_path / "rivals.npz"
    wanted = ["pseudo_labels_soft", "retrieval"]
    found = pool_arms.make_rivals(params(), *stores, wanted, path, Tracker())  # type: ignore
    assert found == path
    assert trained == [
        ("real_augmented", 0),
        ("real_augmented_strong", 0),
        ("cutmix", 0),
        ("real_augmented_strong", 1),
        ("real_augmented_strong", 2),
    ]
    assert said == ["evaluate: real_augmented_strong classifiers label the unlabelled images"]
    rivals = read_rivals(path)
    soft = rivals.mask("pseudo_labels_soft")
    bright = rivals.images[soft].mean(axis=(1, 2, 3)) > 127
    assert (rivals.labels[soft] == bright).all()
    assert (rivals.probabilities.argmax(axis=1) == bright).all()
    # An interrupted run finds the file.
    trained.clear()
    pool_arms.make_rivals(params(), *stores, wanted, path, Tracker())  # type: ignore
    assert trained == []


def test_soft_rows_are_trained_on_with_their_probabilities(stores, tmp_path, recording_tracker):
    path = tmp_path / "rivals.npz"
    pool_arms.make_rivals(params(), *stores, ["pseudo_labels_soft"], path, recording_tracker)
    bench = read_bench(*stores, path)
    rows = np.arange(len(bench.labels))
    targets = bench.targets(rows)
    assert bench.soft is not None
    np.testing.assert_allclose(targets[-5:], bench.soft, rtol=1e-3)
    assert (targets[:6].max(axis=1) == 1).all()
    assert (targets[:6].argmax(axis=1) == bench.labels[:6]).all()
    arm = Arm("pseudo_labels_soft", "baseline", 0.9, added="pseudo_labels_soft")
    before = fit_pair(bench, params(), (arm, 0), torch.device("cpu")).head.weight
    bench.soft[:] = bench.soft[:, ::-1]
    after = fit_pair(bench, params(), (arm, 0), torch.device("cpu")).head.weight
    assert not torch.equal(before, after)


def test_without_rivals_no_row_has_probabilities(stores) -> None:
    with pytest.raises(StageError, match="no row has probabilities"):
        read_bench(*stores).targets(np.arange(2))


def test_a_large_pool_is_thinned_by_rows_and_bytes(
    stores, tmp_path, monkeypatch, recording_tracker
):
    monkeypatch.setattr(limits, "MOST_BYTES", 3 * SIDE * SIDE)
    path = tmp_path / "rivals.npz"
    pool_arms.make_rivals(params(), *stores, ["pseudo_labels_soft"], path, recording_tracker)
    assert len(read_rivals(path).labels) == 3
