"""Controls of the gate: rows that must be refused, and rows that must be accepted.

`replenish evaluate --controls` puts rows of a known worth in the place of the synthetic ones and
asks for the verdict: shuffled labels, noise and copies of the training rows must never be a reason
to use them; real rows that the baselines do not see must be.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.data.images import Images
from pipeline.data.store import (
    Samples,
    StoreInfo,
    make_samples,
    read_info,
    read_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.errors import InputError
from pipeline.folders import write_json
from pipeline.params import ArmName, EvaluateParams
from pipeline.seeds import numpy_generator
from pipeline.stages.evaluate import evaluate
from pipeline.tracking.tracker import NullTracker, Tracker

Kind = Literal["negative", "positive"]
Planted = tuple[Samples, Samples]  # real rows of all splits, rows in the place of the synthetic

ARMS: tuple[ArmName, ...] = ("real_balanced", "real_augmented", "mixed", "mixed_downweighted")


@dataclass(frozen=True)
class Control:
    """What the gate says of rows of a known worth.

    Attributes:
        name: of the control.
        kind: negative ones must be refused, positive ones accepted.
        decision: of the gate.
        gain_points: of the best arm with these rows.
        low_points: low end of its interval.
        high_points: high end of its interval.
        as_expected: is the decision the right one?
    """

    name: str
    kind: Kind
    decision: str
    gain_points: float
    low_points: float
    high_points: float
    as_expected: bool


def run_controls(
    params: EvaluateParams,
    dataset: Path,
    accepted: Path,
    out: Path,
    tracker: Tracker,
    arms: tuple[ArmName, ...] = ARMS,
) -> tuple[Control, ...]:
    """Run all controls and write `controls.json` into `out`.

    An interrupted run goes on from the classifiers that are finished.

    Args:
        params: of the stage evaluate; no learning curve is drawn.
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows: as many rows are planted.
        out: folder of the controls.
        tracker: told how far the work is.
        arms: of each comparison; few are enough.

    Raises:
        InputError: a class has so few training rows that none can be held out.
    """
    settings = params.model_copy(
        update={"arms": arms, "curve_fractions": (), "commands": {}, "max_seeds": None}
    )
    info = read_info(dataset)
    found = []
    for number, (name, (kind, plant)) in enumerate(CONTROLS.items()):
        tracker.progress("controls", number, len(CONTROLS), "verdicts")
        random = numpy_generator(params.seed, "controls", name)
        rows, planted = plant(read_samples(dataset), read_samples(accepted), random)
        found.append(_run_one(name, kind, settings, info, rows, planted, out / name, tracker))
        write_json(out / "controls.json", {"rows": [asdict(one) for one in found]})
    tracker.progress("controls", len(CONTROLS), len(CONTROLS), "verdicts")
    return tuple(found)


def shuffled_labels(rows: Samples, synthetic: Samples, random: np.random.Generator) -> Planted:
    """Plant the synthetic images with their labels shuffled."""
    images, labels = _like(rows, synthetic)
    return rows, _planted(images, random.permutation(labels))


def noise(rows: Samples, synthetic: Samples, random: np.random.Generator) -> Planted:
    """Plant images of uniform noise."""
    images, labels = _like(rows, synthetic)
    return rows, _planted(random.integers(0, 256, images.shape, dtype=np.uint8), labels)


def copies(rows: Samples, synthetic: Samples, random: np.random.Generator) -> Planted:
    """Plant exact copies of training rows, as many of each class as there are synthetic ones."""
    _, labels = _like(rows, synthetic)
    train = _train(rows)
    chosen = [
        random.choice(np.flatnonzero(train.labels == k), int((labels == k).sum()))
        for k in np.unique(labels)
        if (train.labels == k).any()
    ]
    again = train.take(np.concatenate(chosen))
    return rows, _planted(again.images, again.labels)


def held_out_real(rows: Samples, synthetic: Samples, random: np.random.Generator) -> Planted:
    """Plant half of each class's training rows, which the real side then lacks.

    Raises:
        InputError: no class has two training rows.
    """
    train = np.asarray([split == "train" for split in rows.splits])
    taken = np.zeros(len(rows), dtype=bool)
    for label in np.unique(rows.labels[train]):
        members = np.flatnonzero(train & (rows.labels == label))
        taken[random.permutation(members)[: len(members) // 2]] = True
    if not taken.any():
        raise InputError("controls: every class has a single training row; none can be held out")
    return rows.take(~taken), _planted(rows.images[taken], rows.labels[taken])


CONTROLS: dict[str, tuple[Kind, Callable[[Samples, Samples, np.random.Generator], Planted]]] = {
    "shuffled_labels": ("negative", shuffled_labels),
    "noise": ("negative", noise),
    "copies": ("negative", copies),
    "held_out_real": ("positive", held_out_real),
}


def _run_one(
    name: str,
    kind: Kind,
    settings: EvaluateParams,
    info: StoreInfo,
    rows: Samples,
    planted: Samples,
    folder: Path,
    tracker: Tracker,
) -> Control:
    stores = folder / "dataset", folder / "planted"
    for store, samples in zip(stores, (rows, planted), strict=True):
        write_store(store, samples, info.classes, info.image_size_px, info.image_mode)
    verdict = evaluate(settings, *stores, folder, _Quiet(tracker, name))
    low, high = verdict["interval_points"]
    used = verdict["decision"] != "do_not_use"
    return Control(
        name,
        kind,
        verdict["decision"],
        verdict["gain_points"],
        low,
        high,
        used == (kind == "positive"),
    )


class _Quiet(NullTracker):
    """Passes on how far the work is, and nothing else: a control is no run of its own."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        self._tracker.progress(f"{self._name}: {task}", done, total, unit)


def _like(rows: Samples, synthetic: Samples) -> tuple[Images, Any]:
    """Return images and labels of the synthetic rows; of the training rows where there is none."""
    source = synthetic if len(synthetic) else _train(rows)
    return source.images, source.labels


def _train(rows: Samples) -> Samples:
    return rows.take(np.asarray([split == "train" for split in rows.splits]))


def _planted(images: Images, labels: Any) -> Samples:
    return make_samples(images, labels, "train", "synthetic")
