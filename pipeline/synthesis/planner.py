"""The balance planner: how many of the images that were drawn each class is better off with.

A pilot of accepted images is at hand. Classifiers are trained with none, a quarter, a half and all
of it, the same number for every class and the same seeds; what each number brings each class is
read off validation rows. Then each class gets what its own curve speaks for, within a budget, and
the whole plan is tried before it is believed: one that takes more than a margin from a head class
is cut down.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.special import softmax

from pipeline.data.images import Images
from pipeline.data.store import Samples, without_held_out_repeats
from pipeline.device import torch_threads
from pipeline.downstream.arms import Arm, make_pools
from pipeline.downstream.bench import Bench
from pipeline.downstream.fitting import fit_pair
from pipeline.downstream.tail import tail_classes
from pipeline.features.classifier import predict
from pipeline.folders import write_bytes
from pipeline.params import EvaluateParams

_SHARES = (0.25, 0.5, 1.0)  # of the pilot that are tried, besides none
# As the middle one of evaluate's mixed arms is by default.
_ARM = Arm("mixed", "synthetic", 0.5, "light", True, "synthetic")
_BASELINE = Arm("real_augmented", "baseline", None, "light", True)
_CUTS = (1.0, 0.5, 0.25)  # of a plan, tried one after the other until one spares the head classes
_POINTS = 100.0
_Array = npt.NDArray[np.float64]


class Tried(BaseModel):
    """What one number of images brought one class.

    Attributes:
        images: synthetic images that every class had.
        gain_points: the classifiers' mean probability of the right class on validation rows of this
            class, over that without synthetic images, in percentage points.
        error_points: its standard error, over validation rows and seeds.
        shrunk_points: the gain, drawn towards the mean of all classes as far as its error says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    gain_points: float
    error_points: float
    shrunk_points: float


class ClassPlan(BaseModel):
    """The plan of one class.

    Attributes:
        name: class name.
        training_images: real ones.
        validation_images: that its curve was read off.
        images: planned synthetic images.
        tried: its learning curve.
        confirmed_points: change of its recall on validation rows with the whole plan.
        head: is it a class that the plan must not take from?
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    training_images: int
    validation_images: int
    images: int
    tried: list[Tried]
    confirmed_points: float | None
    head: bool


class Plan(BaseModel):
    """How many images each class gets, and why.

    Attributes:
        classes: by label.
        reason: in words.
        budget_images: most images of the plan; None is no limit.
        margin_points: recall that it may take from a head class at most.
        seeds: classifiers of each kind.
        expected_points: mean of the classes' shrunk gains at what they get.
        confirmed_points: change of the balanced accuracy on validation rows with the whole plan;
            None where there was nothing to try.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: list[ClassPlan]
    reason: str
    budget_images: int | None
    margin_points: float
    seeds: int
    expected_points: float
    confirmed_points: float | None

    @property
    def images(self) -> list[int]:
        """Return the planned images of each class, by label."""
        return [one.images for one in self.classes]


@dataclass(frozen=True)
class _Curves:
    """What was tried: S sizes, K classes; in points.

    Attributes:
        sizes: (S, K) images of each class.
        gain: (S, K) over none.
        error: (S, K) standard errors.
    """

    sizes: npt.NDArray[np.int64]
    gain: _Array
    error: _Array


def plan_images(
    classes: Sequence[str],
    training: Samples,
    validation: Samples,
    images: Images,
    labels: npt.NDArray[np.int64],
    budget_images: int | None,
    margin_points: float,
    params: EvaluateParams,
    device: torch.device,
    workers: int,
    on_done: Callable[[int, int], None],
) -> Plan:
    """Decide how many of a pilot's images each class gets.

    The score is the mean probability of the right class: with a handful of validation rows a class
    it tells more than the recall, which moves in steps of whole rows. Head classes are guarded by
    their recall, which is what a user loses.

    A class's curve is drawn towards the mean curve of all (empirical Bayes with the variance
    between classes by the method of moments; Efron and Morris 1973). Of these gains the sum is
    maximised within the budget; a class that nothing helps gets no image.

    Args:
        classes: class names by label.
        training: real training rows.
        validation: real rows to read the curves off; no test row is among them.
        images: (N, H, W, C) uint8 accepted images, those to be kept first coming first in a class.
        labels: (N,) their classes.
        budget_images: most images of the plan; None is no limit.
        margin_points: recall in percentage points that a head class may lose; head classes are all
            but the three with the fewest training rows.
        params: how the classifiers are trained; `seeds` of each kind.
        device: to train on.
        workers: threads that train, on a processor; changes nothing in the result.
        on_done: told finished and total classifiers; the total may shrink in the end.
    """
    validation = without_held_out_repeats(validation)
    trainer = _Trainer(
        training, validation, images, labels, len(classes), params, device, workers, on_done
    )
    counts = np.bincount(training.labels, minlength=len(classes))
    pilot = np.bincount(labels, minlength=len(classes))
    head = _head(counts)
    if not len(validation) or not len(images):
        what = "validation images to decide by" if len(images) else "accepted images"
        return _plan(
            classes, counts, trainer.rows, head, _nothing(pilot), pilot, None,
            f"there are no {what}: all of the pilot is kept", budget_images, margin_points, params,
        )  # fmt: skip
    sizes = np.unique(
        np.array([np.ceil(share * pilot) for share in _SHARES], dtype=np.int64), axis=0
    )
    trainer.total = params.seeds * (1 + len(sizes) + len(_CUTS))
    without = trainer.scores(None)
    curves = _curves(sizes, without, [trainer.scores(size) for size in sizes], trainer.labels)
    shrunk = _shrink(curves)
    wanted = allocate(curves.sizes, shrunk, budget_images)
    if not wanted.any():
        return _plan(
            classes, counts, trainer.rows, head, curves, wanted, None,
            "no class gains from the pilot's images on validation rows", budget_images,
            margin_points, params,
        )  # fmt: skip
    for cut in _CUTS:
        tried = np.ceil(cut * wanted).astype(np.int64)
        change = _recall_change(without, trainer.scores(tried), trainer.labels, len(classes))
        spared = np.round(change + margin_points, 9) >= 0
        lost = [name for name, fine in zip(classes, spared | ~head, strict=True) if not fine]
        if not lost:
            reason = "each class gets what its own curve speaks for"
            if cut < 1:
                reason += f", cut to {cut:.0%}: more took over {margin_points:g} points from a head"
                reason += " class"
            return _plan(
                classes, counts, trainer.rows, head, curves, tried, change, reason, budget_images,
                margin_points, params,
            )  # fmt: skip
    return _plan(
        classes, counts, trainer.rows, head, curves, np.zeros_like(wanted), None,
        f"every plan took more than {margin_points:g} points from a head class on validation rows, "
        f"at last from {', '.join(lost)}: no image is kept", budget_images, margin_points, params,
    )  # fmt: skip


def allocate(
    sizes: npt.NDArray[np.int64], gain: _Array, budget_images: int | None
) -> npt.NDArray[np.int64]:
    """Return (K,) images of each class, one of the sizes that were tried or none.

    The sum of the gains is maximised exactly; of equal sums the one with the fewest images.

    Args:
        sizes: (S, K) images of each class.
        gain: (S, K) over none, in points.
        budget_images: most images in all; None is no limit.
    """
    every = np.vstack([np.zeros_like(sizes[:1]), sizes])  # (S + 1, K)
    value = np.vstack([np.zeros_like(gain[:1]), gain])
    limit = int(every.max(axis=0).sum()) if budget_images is None else budget_images
    count = every.shape[1]
    one_each = np.kron(np.ones(len(every)), np.eye(count))  # (K, (S + 1) K), sizes varying slowest
    # A thousandth of a point for all images there are tells equals apart.
    cost = -value.ravel() + 1e-3 * every.ravel() / max(1, int(every.max(axis=0).sum()))
    found = milp(
        cost,
        integrality=np.ones(every.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(every.ravel()[None, :], 0, limit),
        ],
    )
    chosen = np.round(found.x).reshape(every.shape).astype(np.int64)
    return np.asarray((chosen * every).sum(axis=0), dtype=np.int64)


def write_plan(path: Path, plan: Plan) -> None:
    """Write the learning curves as CSV, a row a class and size."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["class", "training_images", "images", "gain_points", "error_points", "shrunk_points",
         "planned"]
    )  # fmt: skip
    for one in plan.classes:
        for tried in one.tried:
            values = (tried.gain_points, tried.error_points, tried.shrunk_points)
            writer.writerow(
                [
                    one.name,
                    one.training_images,
                    tried.images,
                    *(f"{value:.6f}" for value in values),
                    int(tried.images == one.images),
                ]
            )
    write_bytes(path, buffer.getvalue().encode())


class _Trainer:
    """Trains classifiers of some plan, several at a time, and scores them on validation rows."""

    def __init__(
        self,
        training: Samples,
        validation: Samples,
        images: Images,
        labels: npt.NDArray[np.int64],
        classes: int,
        params: EvaluateParams,
        device: torch.device,
        workers: int,
        on_done: Callable[[int, int], None],
    ) -> None:
        self._training, self._validation = training, validation
        self._images, self._labels, self._classes = images, labels, classes
        self._params, self._device, self._on_done = params, device, on_done
        # A GPU does one training after the other.
        self._workers = 1 if device.type == "cuda" else max(1, workers)
        self.labels = validation.labels
        self.rows = np.bincount(validation.labels, minlength=classes)
        self.total, self._done = 0, 0

    def scores(self, wanted: npt.NDArray[np.int64] | None) -> _Array:
        """Return the probabilities, (seeds, N, K), of classifiers with so many images a class."""
        bench, arm = self._bench(wanted), _BASELINE if wanted is None else _ARM

        def train(seed: int) -> _Array:
            with torch_threads(1):  # as evaluate trains them
                model = fit_pair(bench, self._params, (arm, seed), self._device)
                found = predict(model, bench.validation)
            return np.asarray(softmax(found.astype(np.float64), axis=1))

        with ThreadPoolExecutor(self._workers) as pool:
            parts = []
            for part in pool.map(train, range(self._params.seeds)):
                parts.append(part)
                self._done += 1
                self._on_done(self._done, max(self._done, self.total))
        return np.stack(parts)

    def _bench(self, wanted: npt.NDArray[np.int64] | None) -> Bench:
        kept = np.zeros(0, dtype=np.int64)
        if wanted is not None:
            kept = np.concatenate(
                [np.flatnonzero(self._labels == k)[: wanted[k]] for k in range(self._classes)]
            )
        training = self._training
        labels = np.concatenate([training.labels, self._labels[kept]])
        images = training.images
        if len(kept):
            images = np.concatenate([images, self._images[kept]])
        return Bench(
            images=images,
            labels=labels,
            pools=make_pools(labels, np.arange(len(labels)) >= len(training), self._classes),
            validation=self._validation.images,
            test=self._validation.images[:0],
            classes=self._classes,
            real_images=len(training),
        )


def _curves(
    sizes: npt.NDArray[np.int64],
    without: _Array,
    with_images: Sequence[_Array],
    labels: npt.NDArray[np.int64],
) -> _Curves:
    """Return what each size brings each class, in points."""
    right = np.arange(len(labels))
    gain, error = np.full(sizes.shape, 0.0), np.full(sizes.shape, math.inf)
    for i, found in enumerate(with_images):
        gap = _POINTS * (found[:, right, labels] - without[:, right, labels])  # (seeds, N)
        for k in range(sizes.shape[1]):
            own = gap[:, labels == k]
            if not own.size:
                continue
            gain[i, k] = own.mean()
            # Rows and seeds are both drawn; what they share is counted twice, on the safe side.
            variance = 0.0
            for means in (own.mean(axis=0), own.mean(axis=1)):
                variance += means.var(ddof=1) / len(means) if len(means) > 1 else math.inf
            error[i, k] = math.sqrt(variance)
    return _Curves(sizes, gain, error)


def _shrink(curves: _Curves) -> _Array:
    """Return the gains, each drawn towards the mean of all classes at its size."""
    shrunk = np.zeros_like(curves.gain)
    for i in range(len(curves.gain)):
        gain, variance = curves.gain[i], curves.error[i] ** 2
        known = np.isfinite(variance)
        if not known.any():
            continue
        mean = float(gain[known].mean())
        spread = float(gain[known].var(ddof=1)) if known.sum() > 1 else 0.0
        between = max(0.0, spread - float(variance[known].mean()))
        weight = np.zeros_like(gain)
        if between > 0:
            weight[known] = between / (between + variance[known])
        shrunk[i] = mean + weight * (gain - mean)
    return shrunk


def _recall_change(
    without: _Array, with_plan: _Array, labels: npt.NDArray[np.int64], classes: int
) -> _Array:
    """Return the change of each class's recall, (K,), in points; 0 without validation rows."""
    change = np.zeros(classes)
    for k in range(classes):
        own = labels == k
        if own.any():
            right = [(one[:, own].argmax(axis=2) == k).mean() for one in (with_plan, without)]
            change[k] = _POINTS * (right[0] - right[1])
    return change


def _head(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    head = np.ones(len(counts), dtype=np.bool_)
    head[list(tail_classes(counts.tolist()))] = False
    return head


def _nothing(pilot: npt.NDArray[np.int64]) -> _Curves:
    return _Curves(np.zeros((0, len(pilot)), np.int64), *np.zeros((2, 0, len(pilot))))


def _plan(
    classes: Sequence[str],
    counts: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    head: npt.NDArray[np.bool_],
    curves: _Curves,
    images: npt.NDArray[np.int64],
    change: _Array | None,
    reason: str,
    budget_images: int | None,
    margin_points: float,
    params: EvaluateParams,
) -> Plan:
    shrunk = _shrink(curves)

    def tried(k: int) -> list[Tried]:
        return [
            Tried(
                images=int(curves.sizes[i, k]),
                gain_points=float(curves.gain[i, k]),
                error_points=float(curves.error[i, k]),
                shrunk_points=float(shrunk[i, k]),
            )
            for i in range(len(curves.sizes))
            if math.isfinite(curves.error[i, k])
        ]

    plans = [
        ClassPlan(
            name=name,
            training_images=int(counts[k]),
            validation_images=int(rows[k]),
            images=int(images[k]),
            tried=tried(k),
            confirmed_points=None if change is None else float(change[k]),
            head=bool(head[k]),
        )
        for k, name in enumerate(classes)
    ]
    known = [k for k in range(len(classes)) if rows[k]]
    return Plan(
        classes=plans,
        reason=reason,
        budget_images=budget_images,
        margin_points=margin_points,
        seeds=params.seeds,
        expected_points=_expected(curves, shrunk, images),
        confirmed_points=None if change is None else float(change[known].mean()),
    )


def _expected(curves: _Curves, shrunk: _Array, images: npt.NDArray[np.int64]) -> float:
    """Return the mean over classes of the gain at the planned size, read between those tried."""
    values = [
        np.interp(images[k], [0, *curves.sizes[:, k].tolist()], [0.0, *shrunk[:, k].tolist()])
        for k in range(len(images))
    ]
    return float(np.mean(values)) if values else 0.0
