"""Every metric of the images that were kept, each beside its ceiling.

A value alone says little: every metric moves with the number of rows, most with the encoder. So
each stands beside its ceiling: the same metric, at the same number of rows, of real images in the
place of the fake ones. What is told of quality is measured against held-out rows, with training
rows as the ceiling; what is told of copying against training rows, with held-out rows.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from pipeline.errors import StageError
from pipeline.folders import write_bytes
from pipeline.metrics.authenticity import authenticity
from pipeline.metrics.estimate import Estimate, Rows, normal_interval
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel import Kernel, class_kernel, kernel_distance
from pipeline.metrics.membership import membership_auc, tpr_at_fpr
from pipeline.metrics.memorization import copy_share_estimate
from pipeline.metrics.nearest_distance import closer_to_training, nearest_ratio
from pipeline.metrics.prdc import prdc_estimates
from pipeline.metrics.sliced import sliced_distance
from pipeline.metrics.vendi import class_vendi, vendi_score
from pipeline.seeds import numpy_generator

Better = Literal["low", "high", "middle"]

MOST_ROWS = 5_000  # of a side
MOST_TRAINING_ROWS = 20_000  # that copies are looked for among
_CHANCE = 0.5  # of a test whose two real sets are alike
_FALSE_ALARMS = 0.01  # of the attack on single rows
_NO_ROWS = np.zeros(0, dtype=np.int64)
_NUMBERS = ("value", "low", "high", "ceiling", "ceiling_low", "ceiling_high")
_Against = Literal["heldout", "training", "nothing"]
_Source = Literal["features", "pixels", "classifier"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Some images, as the metrics see them; row i of all is the same image.

    Attributes:
        features: (N, D) of an encoder, finite.
        pixels: (N, P) in [0, 1].
        labels: (N,) classes: of real images what they show, of fake ones what they are meant to.
        probabilities: (N, K) of each class, by a classifier; None where there is none.
    """

    features: npt.NDArray[np.floating]
    pixels: npt.NDArray[np.floating]
    labels: npt.NDArray[np.integer]
    probabilities: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        """Refuse what does not belong together.

        Raises:
            StageError: numbers of rows that differ, or features that are no finite (N, D).
        """
        sizes = {"features": len(self.features), "pixels": len(self.pixels)}
        if self.probabilities is not None:
            sizes["probabilities"] = len(self.probabilities)
        for name, size in sizes.items():
            if size != len(self.labels):
                raise StageError(f"quality: {size} rows of {name}, but {len(self.labels)} labels")
        if self.features.ndim != 2 or not np.isfinite(self.features).all():
            raise StageError(
                f"quality: features of the shape {self.features.shape} that are not all finite; "
                "look for broken images or an encoder that overflows"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.integer]) -> "LabelledFeatures":
        """Return some rows."""
        p = self.probabilities
        return LabelledFeatures(
            self.features[rows],
            self.pixels[rows],
            self.labels[rows],
            None if p is None else p[rows],
        )


@dataclass(frozen=True)
class RowLosses:
    """Losses of the network on real images, all under the same noises.

    Attributes:
        training: (N,) of training rows.
        heldout: (M,) of held-out rows.
    """

    training: npt.NDArray[np.floating]
    heldout: npt.NDArray[np.floating]


class Measured(BaseModel):
    """A metric, as tables and summaries hold it.

    Attributes:
        name: of the metric.
        label: the same in words.
        encoder: whose numbers it was taken from; values of two do not compare.
        value: None where it was refused, and so are all numbers but the counts.
        low: lower end of the 95 % interval.
        high: upper end.
        n_real: real rows that the fake ones were compared with; 0 where there are none.
        n_fake: fake rows; of a membership attack, training rows.
        ceiling: the same of real images.
        ceiling_low: lower end of its interval; None where the ceiling is known.
        ceiling_high: upper end, likewise.
        better: which values are good; `middle` is near the ceiling.
        refusal: why there is no value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    label: str
    encoder: str
    value: float | None
    low: float | None
    high: float | None
    n_real: int
    n_fake: int
    ceiling: float | None
    ceiling_low: float | None
    ceiling_high: float | None
    better: Better
    refusal: str | None


def measure_table(
    training: LabelledFeatures,
    heldout: LabelledFeatures,
    fake: LabelledFeatures,
    encoder: str,
    seed: int,
    losses: RowLosses | None = None,
) -> list[Measured]:
    """Measure how good fake images are, and whether they are copies.

    From each set the same number of rows of each class is drawn: as many as the smallest of the
    three has, at most `MOST_ROWS` in all, in the same shares where that cuts. So a value and its
    ceiling differ in nothing but whose images they are; classes without a fake image are left out.
    Copies are looked for among all training rows, since each row that is left out hides its own
    copies; beyond `MOST_TRAINING_ROWS` it is so many, drawn at random.

    Two ceilings are not those of training rows: a classifier is too sure of the rows that it was
    trained on, so the scores that look at one set alone take held-out rows; and where training and
    held-out rows are asked which is nearer, or has the lower loss, rows that are alike give 0.5.

    Args:
        training: real rows that the network was trained on.
        heldout: real rows that it has not seen.
        fake: the images to judge.
        encoder: the name of what made the features, the same in all three.
        seed: root seed of the draws and of the directions of projections.
        losses: of the network on real rows; without them no attack is tried.

    Returns:
        A row a metric. Below its least number of rows, a metric's row says so and has no value.

    Raises:
        StageError: features of different widths.
    """
    widths = {rows.features.shape[1] for rows in (training, heldout, fake)}
    if len(widths) > 1:
        raise StageError(
            f"quality: features of {sorted(widths)} columns; take all from one encoder"
        )
    few_training, few_heldout, few_fake = same_shares((training, heldout, fake), seed)
    known = training
    if len(training) > MOST_TRAINING_ROWS:
        order = numpy_generator(seed, "quality", "known").permutation(len(training))
        known = training.take(np.sort(order[:MOST_TRAINING_ROWS]))

    rows: list[Measured] = []
    for names, against, source, measure in _MEASURES:
        if source == "classifier" and fake.probabilities is None:
            continue
        real, best = {
            "heldout": (few_heldout, few_training),
            "training": (known, few_heldout),
            "nothing": (few_heldout.take(_NO_ROWS), few_heldout),
        }[against]
        rows += _judge(
            names,
            encoder if source == "features" else source,
            (len(real), len(few_fake)),
            partial(measure, real, few_fake, seed),
            partial(measure, real, best, seed),
        )
    three = (few_training.features, few_heldout.features, few_fake.features)
    rows += _judge(
        ("closer_to_training",),
        encoder,
        (len(few_heldout), len(few_fake)),
        lambda: (closer_to_training(*three),),
        lambda: (_CHANCE,),
    )
    if losses is not None:
        pair = losses.training, losses.heldout
        counts = len(losses.heldout), len(losses.training)
        auc, tpr = partial(membership_auc, *pair), partial(tpr_at_fpr, *pair, _FALSE_ALARMS)
        rows += _judge(("membership_auc",), "network", counts, lambda: (auc(),), lambda: (_CHANCE,))
        rows += _judge(
            ("membership_tpr",), "network", counts, lambda: (tpr(),), lambda: (_FALSE_ALARMS,)
        )
    return rows


def same_shares(
    sets: Sequence[LabelledFeatures], seed: int, most: int = MOST_ROWS
) -> list[LabelledFeatures]:
    """Draw the same number of rows of each class from each set, class after class.

    Args:
        sets: to draw from.
        seed: root seed of the draws.
        most: rows drawn from a set.
    """
    classes = max((int(rows.labels.max()) for rows in sets if len(rows)), default=-1) + 1
    counts = np.min([np.bincount(rows.labels, minlength=classes) for rows in sets], axis=0)
    if counts.sum() > most:
        exact = counts * (most / counts.sum())
        counts = np.floor(exact).astype(np.int64)
        # What is left over goes to the largest remainders.
        counts[np.argsort(counts - exact, kind="stable")[: most - counts.sum()]] += 1
    drawn = []
    for which, rows in enumerate(sets):
        chosen = [_NO_ROWS]
        for label in np.flatnonzero(counts):
            own = np.flatnonzero(rows.labels == label)
            random = numpy_generator(seed, "quality", which, int(label))
            chosen.append(random.permutation(own)[: counts[label]])
        drawn.append(rows.take(np.concatenate(chosen)))
    return drawn


def write_table(path: Path, rows: Sequence[Measured]) -> None:
    """Write a CSV with a line a metric; what there is not is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Measured.model_fields)
    for row in rows:
        values = row.model_dump().values()
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    write_bytes(path, buffer.getvalue().encode())


# Name -> in words, and which values are good.
_WORDS: dict[str, tuple[str, Better]] = {
    "frechet_distance": ("Fréchet distance", "low"),
    "kernel_distance": ("kernel distance, cubic", "low"),
    "gaussian_distance": ("kernel distance, Gaussian", "low"),
    "class_kernel_distance": ("kernel distance by class", "low"),
    "sliced_distance": ("sliced Wasserstein distance", "low"),
    "precision": ("precision", "high"),
    "recall": ("recall", "high"),
    "density": ("density", "middle"),
    "coverage": ("coverage", "high"),
    "inception_score": ("inception score", "high"),
    "vendi_score": ("Vendi score", "middle"),
    "class_vendi_score": ("Vendi score within a class", "middle"),
    "copy_share": ("share of copies", "low"),
    "nearest_ratio": ("nearest over second-nearest distance", "high"),
    "authenticity": ("share of authentic images", "high"),
    "closer_to_training": ("share nearer to training images", "middle"),
    "membership_auc": ("membership attack, area", "middle"),
    "membership_tpr": ("training images found at 1 % false alarms", "low"),
}


def _judge(
    names: tuple[str, ...],
    encoder: str,
    counts: tuple[int, int],
    value: Callable[[], tuple[Estimate, ...]],
    best: Callable[[], tuple[Estimate | float, ...]],
) -> list[Measured]:
    """Return the rows of the metrics that one function gives, or of their refusal."""
    try:
        pairs = list(zip(value(), best(), strict=True))
    except StageError as error:
        numbers: dict[str, float | None] = dict.fromkeys(_NUMBERS)
        return [_row(name, encoder, counts, numbers, str(error)) for name in names]
    rows = []
    for name, (found, ceiling) in zip(names, pairs, strict=True):
        three: tuple[float | None, ...] = (
            (ceiling, None, None)
            if isinstance(ceiling, float)
            else (ceiling.value, ceiling.low, ceiling.high)
        )
        numbers = dict(zip(_NUMBERS, (found.value, found.low, found.high, *three), strict=True))
        rows.append(_row(name, encoder, (found.n_real, found.n_fake), numbers, None))
    return rows


def _row(
    name: str,
    encoder: str,
    counts: tuple[int, int],
    numbers: dict[str, float | None],
    refusal: str | None,
) -> Measured:
    label, better = _WORDS[name]
    about = {"name": name, "label": label, "encoder": encoder, "better": better}
    n_real, n_fake = counts
    return Measured.model_validate(
        {**about, **numbers, "n_real": n_real, "n_fake": n_fake, "refusal": refusal}
    )


def _scaled(real: Rows, fake: Rows) -> tuple[Rows, Rows]:
    # The polynomial kernel counts on features of order one, and moved mass has a unit then. The
    # real rows are those of the ceiling too, hence one scale for both.
    x = real.astype(np.float64)
    scale = 1 / max(math.sqrt(float(np.mean(x**2))), 1e-12) if x.size else 1.0
    return x * scale, fake.astype(np.float64) * scale


_Set = LabelledFeatures
_Measure = Callable[[_Set, _Set, int], tuple[Estimate, ...]]  # real, fake, seed


def _frechet(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (frechet_distance(real.features, fake.features),)


def _kernel(real: _Set, fake: _Set, seed: int, kernel: Kernel) -> tuple[Estimate, ...]:
    one = kernel_distance(*_scaled(real.features, fake.features), kernel)
    return (normal_interval(one.value, one.spread, len(real), len(fake), -math.inf, math.inf),)


def _kernel_by_class(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    x, y = _scaled(real.features, fake.features)
    one = class_kernel(x, real.labels, y, fake.labels)
    # Its error is that of its gap to a distance that no row moves.
    still = replace(one, real_terms=np.zeros(len(x)), fake_terms=np.zeros(len(y)))
    error = one.gap_error(still)
    return (normal_interval(one.value, error, len(real), len(fake), -math.inf, math.inf),)


def _sliced(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (sliced_distance(*_scaled(real.features, fake.features), seed=seed),)


def _balls(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    found = prdc_estimates(real.features, fake.features)
    return tuple(found[name] for name in ("precision", "recall", "density", "coverage"))


def _score(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    if fake.probabilities is None:
        raise StageError("inception_score: these rows have no probabilities")
    return (inception_score(fake.probabilities),)


def _vendi(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (vendi_score(fake.features),)


def _vendi_by_class(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    """Return the mean over classes; their rows are drawn apart, so the errors add in squares."""
    found = list(class_vendi(fake.features, fake.labels).values())
    value = float(np.mean([one.value for one in found]))
    reach = math.hypot(*((one.high - one.low) / 2 for one in found)) / len(found)
    return (Estimate(value, max(1.0, value - reach), value + reach, 0, len(fake)),)


def _copies(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (copy_share_estimate(real.pixels, fake.pixels),)


def _ratio(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (nearest_ratio(real.features, fake.features),)


def _authentic(real: _Set, fake: _Set, seed: int) -> tuple[Estimate, ...]:
    return (authenticity(real.features, fake.features),)


# Names, what fake rows are held against, what of them is looked at, and the function.
_MEASURES: tuple[tuple[tuple[str, ...], _Against, _Source, _Measure], ...] = (
    (("frechet_distance",), "heldout", "features", _frechet),
    (("kernel_distance",), "heldout", "features", partial(_kernel, kernel="polynomial")),
    (("gaussian_distance",), "heldout", "features", partial(_kernel, kernel="gaussian")),
    (("class_kernel_distance",), "heldout", "features", _kernel_by_class),
    (("sliced_distance",), "heldout", "features", _sliced),
    (("precision", "recall", "density", "coverage"), "heldout", "features", _balls),
    (("inception_score",), "nothing", "classifier", _score),
    (("vendi_score",), "nothing", "features", _vendi),
    (("class_vendi_score",), "nothing", "features", _vendi_by_class),
    (("copy_share",), "training", "pixels", _copies),
    (("nearest_ratio",), "training", "features", _ratio),
    (("authenticity",), "training", "features", _authentic),
)
