"""How large a gain can be shown at all, said before the classifiers are trained.

Two seeds of one baseline already tell what matters most: how often two trainings disagree about an
image, and how much whole trainings differ. An arm with synthetic rows differs from the baseline at
least as much as two seeds of the baseline do. The gain's variance is modelled as

    V = seed_sd^2 / S + sum over classes of q (r + 1 / S) / n_k, over K^2

with q the discordant share, n_k the test images of class k, and q r what does not average out over
seeds, because one arm is better on an image whatever the seed. The pilot cannot see r, as it has
one arm; see `_LASTING`. The gain that is found with the wanted power
lies (t for the level + t for the power) standard errors above 0, as usual for a t test, with the
degrees of freedom that the interval of `compare` would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from pipeline.downstream.compare import unseen_difference
from pipeline.errors import StageError

Labels = npt.NDArray[np.int64]

# What stays over seeds of the difference between two arms at one image, over the disagreement of
# two seeds of one arm. In a run on digits: 0.02 to 0.11 between arms that see real images, 0.3 to
# 0.6 against synthetic images alone.
_LASTING = 0.3
_MOST_SEED_SD = 0.25
_PRIOR = 4  # weight of the classes' spread against that of whole trainings, in seeds
_TOGETHER = 1.5  # classes do not move quite independently: variance of whole trainings over that
_MOST_SEEDS = 64
_POINTS = 100.0


@dataclass(frozen=True)
class Power:
    """What could be shown, before anything was compared.

    Attributes:
        minimum_detectable_points: smallest true gain that is shown with `power`, in percentage
            points of balanced accuracy.
        power: chance of showing it, in (0, 1).
        discordant_share: share of images on which two trainings of one arm disagree.
        seeds: paired repetitions.
        test_images: number of test images.
        test_units: the same, those of one class and group counted once.
    """

    minimum_detectable_points: float
    power: float
    discordant_share: float
    seeds: int
    test_images: int
    test_units: int

    def sentence(self) -> str:
        """Return it in plain words."""
        images = f"{self.test_images} test images"
        if self.test_units < self.test_images:
            images += f" of {self.test_units} groups"
        return (
            f"With {self.seeds} seeds and {images}, a true gain of "
            f"{self.minimum_detectable_points:.1f} points or more would be shown in "
            f"{100 * self.power:.0f} of 100 such comparisons; a smaller one may well be missed."
        )


def minimum_detectable(
    test_images: Sequence[int],
    seeds: int,
    discordant_share: float,
    seed_sd: float,
    confidence: float,
    power: float = 0.8,
) -> float:
    """Return the smallest true gain in balanced accuracy that is shown with `power`, in points.

    Args:
        test_images: test images of each class, one or more each; those of one group count once.
        seeds: paired repetitions S, 2 or more.
        discordant_share: share of images on which two trainings disagree, in (0, 1].
        seed_sd: standard deviation over seeds of the paired gain, beyond chance of the images.
        confidence: level of the interval whose lower end must lie above 0.
        power: wanted chance, in (0.5, 1).

    Returns:
        Percentage points, at most 100.

    Raises:
        StageError: a number is out of its range.
    """
    counts = np.asarray(test_images, dtype=np.float64)
    if seeds < 2 or not len(counts) or counts.min() < 1:
        raise StageError(
            f"power of {seeds} seeds and {list(test_images)} test images: it takes two seeds, and "
            "a test image of each class"
        )
    if not (0.0 < discordant_share <= 1.0 and seed_sd >= 0.0 and 0.5 < power < 1.0):
        raise StageError(
            f"power: discordant share {discordant_share} must lie in (0, 1], seed deviation "
            f"{seed_sd} must not be negative, and power {power} must lie in (0.5, 1)"
        )
    per_image = discordant_share * (_LASTING + 1.0 / seeds)
    by_class = per_image / counts / len(counts) ** 2  # (K,)
    from_images = float(by_class.sum())
    # The interval's seed part is a positive part of a noisy estimate, so on average too large by
    # about a third of that estimate's standard deviation; it sees one image in one seed as well.
    single = discordant_share / seeds
    noise = seed_sd**2 / seeds + float((single / counts).sum()) / len(counts) ** 2
    from_seeds = seed_sd**2 / seeds + noise * np.sqrt(2.0 / (seeds - 1.0)) / 3.0
    claimed = from_images + from_seeds
    true = from_images + seed_sd**2 / seeds
    loss = from_seeds**2 / (seeds - 1.0)
    loss += float((by_class**2 / np.maximum(counts - 1.0, 1.0)).sum())
    freedom = max(claimed**2 / loss, 1.0)
    alpha = 1.0 - confidence
    reach = max(
        np.sqrt(claimed) * t.isf(alpha / 2.0, freedom),
        unseen_difference(counts, alpha),
    )
    return float(min(_POINTS * (reach + np.sqrt(true) * t.ppf(power, freedom)), _POINTS))


def discordance(
    predictions: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Return how much trainings of one arm differ: (discordant share, seed deviation).

    The share is that of images of which one of two seeds is right and the other wrong, mean over
    pairs of seeds and classes, with half a discordant image added (Agresti & Min 2005, Statistics
    in Medicine 24): none among few is no proof of none. The deviation is that of the difference
    between two seeds' balanced accuracies, beyond what the images explain. As two seeds may agree
    by luck, it leans on the spread of the single classes, taken as independent, with the weight of
    4 further seeds; it is at least a quarter of what the images explain, and at most 0.25.

    Args:
        predictions: (S, N) predicted classes of S >= 2 seeds, on validation rows.
        labels: (N,) true classes; classes without a row are left out.

    Raises:
        StageError: fewer than two seeds, no rows, or shapes that do not pair.
    """
    if predictions.ndim != 2 or predictions.shape[1:] != labels.shape or len(predictions) < 2:
        raise StageError(
            f"pilot predictions {predictions.shape} and labels {labels.shape} do not pair; it "
            "takes two seeds or more on the same rows"
        )
    if not len(labels):
        raise StageError("pilot: there are no validation rows; raise prepare.validation_fraction")
    right = (predictions == labels).astype(np.float64)
    seeds = len(right)
    # Of all ordered pairs of seeds at one image, 2 h (S - h) disagree, with h of S right.
    hits = right.sum(axis=0)
    disagree = 2.0 * hits * (seeds - hits) / (seeds * (seeds - 1.0))
    present, counts = np.unique(labels, return_counts=True)
    of_class = [labels == k for k in present]
    by_class = np.array([disagree[rows].mean() for rows in of_class])
    share = (by_class.mean() * len(labels) + 0.5) / (len(labels) + 1.0)
    # The difference of two seeds has a variance of disagree / n_k in each class by images alone.
    by_images = share / counts / len(present) ** 2  # (K,)
    recall = np.stack([right[:, rows].mean(axis=1) for rows in of_class], axis=1)  # (S, K)
    whole = 2.0 * float(np.var(recall.mean(axis=1), ddof=1)) - by_images.sum()
    apart = 2.0 * np.var(recall, axis=0, ddof=1) / len(present) ** 2 - by_images
    beyond = (_PRIOR * _TOGETHER * float(apart.sum()) + (seeds - 1) * whole) / (_PRIOR + seeds - 1)
    beyond = max(beyond, float(by_images.sum()) / 16.0)
    return float(share), float(min(np.sqrt(beyond), _MOST_SEED_SD))


def seeds_for(
    points: float,
    test_images: Sequence[int],
    discordant_share: float,
    seed_sd: float,
    confidence: float,
    power: float = 0.8,
) -> int | None:
    """Return the fewest seeds that show a gain of `points` with `power`.

    None where 64 would not do: then the test images are too few, and more seeds are no help.
    """
    for seeds in range(2, _MOST_SEEDS + 1):
        found = minimum_detectable(test_images, seeds, discordant_share, seed_sd, confidence, power)
        if found <= points:
            return seeds
    return None
