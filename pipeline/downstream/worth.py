"""What the synthetic images are worth, counted in labelled real ones.

The best baseline is trained on parts of the real training rows, with equal optimiser steps. An
inverse power law, accuracy = a - b n^-c (Cortes et al. 1993, eq. 1; Hestness et al. 2017), is
fitted to its accuracies, and read backwards: how many real images would have brought the gain that
the synthetic ones brought? The gain is added to the fitted accuracy at the full set, not to the
measured one, so that a poor fit there does not pass for worth. A law fitted below the full set
says little far beyond it, hence the cap at twice the full set.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

from pipeline.errors import StageError

Floats = npt.NDArray[np.float64]

_FURTHEST = 2.0  # of the full set
_LEAST_SIZES = 3  # as many as the law has parameters
_RESAMPLES = 400
_EXPONENTS = np.geomspace(0.1, 2.0, 150)
_FLAT = 1e-4  # a law that rises less than this from half to all of the images is no yardstick


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of the baseline with some of the real images.

    Attributes:
        real_images: how many.
        balanced_accuracy: mean over seeds, in [0, 1].
        low: lower end of its t interval over seeds.
        high: upper end.
    """

    real_images: float
    balanced_accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Worth:
    """What the synthetic images are worth.

    Attributes:
        worth: extra labelled real images that would bring the same gain, at most as many as there
            are; 0 where there is no gain; None where the curve is no yardstick.
        low: lower end of its interval; None with `worth`.
        high: upper end.
        beyond: does the interval reach beyond twice the real images, where the curve ends?
        points: the learning curve, fewest images first.
    """

    worth: float | None
    low: float | None
    high: float | None
    beyond: bool
    points: tuple[CurvePoint, ...]

    def sentence(self) -> str:
        """Return it in plain words."""
        if self.worth is None or self.low is None or self.high is None:
            return (
                "What the synthetic images are worth in real ones cannot be told: the baseline "
                "did not get better with more real images, or too few sizes were tried."
            )
        most = f"more than {self.high:.0f}" if self.beyond else f"{self.high:.0f}"
        if self.worth <= 0.0:
            return (
                "The synthetic images are worth no extra labelled images here "
                f"(interval 0 to {most})."
            )
        if self.points and self.worth >= self.points[-1].real_images - 1e-9:
            return (
                f"The synthetic images are worth {self.worth:.0f} more labelled images or more, as "
                f"many again as there are (interval from {self.low:.0f} on)."
            )
        return (
            f"The synthetic images are worth about {self.worth:.0f} more labelled images "
            f"(interval {self.low:.0f} to {most})."
        )


def worth_in_images(
    images: npt.NDArray[np.float64],
    accuracy: Floats,
    synthetic: Floats,
    full: int,
    random: np.random.Generator,
    other_tests: Floats | None = None,
    confidence: float = 0.95,
) -> Worth:
    """Return how many extra real images the synthetic ones stand for.

    Seeds and test images are resampled, the same for all sizes and the synthetic arm; the
    percentiles are expanded for few seeds (Hesterberg 2015, section 5.3), which for four or fewer
    means about the extremes of the resamples.

    Args:
        images: (F,) numbers of real training images; the largest is `full`.
        accuracy: (F, S) balanced accuracy of the baseline with each number and seed.
        synthetic: (S,) balanced accuracy of the synthetic arm with the same seeds.
        full: all real training images.
        random: generator of the resamples.
        other_tests: (R, F + 1) what the test images of each of R resamples add to the balanced
            accuracies, those of `accuracy` and then that of `synthetic`; None leaves them as they
            are, 400 times.
        confidence: level of the intervals.

    Raises:
        StageError: the shapes do not pair, there is one seed, or the full set is not among the
            sizes.
    """
    images = np.asarray(images, dtype=np.float64)
    if accuracy.shape != (len(images), len(synthetic)) or len(synthetic) < 2:
        raise StageError(
            f"learning curve: {len(images)} sizes, accuracies {accuracy.shape} and "
            f"{len(synthetic)} of the synthetic arm do not pair; it takes two seeds or more"
        )
    if other_tests is None:
        other_tests = np.zeros((_RESAMPLES, len(images) + 1))
    if other_tests.shape[1:] != (len(images) + 1,):
        raise StageError(f"learning curve: {len(images)} sizes and {other_tests.shape} do not pair")
    order = np.argsort(images, kind="stable")
    sizes, accuracy = images[order] / full, accuracy[order]
    if not len(sizes) or sizes[0] <= 0.0 or abs(sizes[-1] - 1.0) > 1e-9:
        raise StageError(
            f"learning curve: sizes {images.tolist()} must be positive and end with all {full} "
            "real images"
        )
    seeds, most = len(synthetic), _FURTHEST - 1.0
    points = _points(images[order], accuracy, confidence)
    chosen = random.integers(seeds, size=(len(other_tests), seeds))
    chosen = np.concatenate([np.arange(seeds)[None], chosen])  # the data themselves come first
    curves = accuracy[:, chosen].mean(axis=2).T  # (1 + R, F)
    reached = synthetic[chosen].mean(axis=1)
    curves[1:] += other_tests[:, order]
    reached[1:] += other_tests[:, -1]
    extra = _extra_shares(sizes, curves, reached)
    if len(np.unique(sizes)) < _LEAST_SIZES or np.isnan(extra[0]):
        return Worth(None, None, None, False, points)
    # Flat by chance: such a curve does not say how much, so it says the most.
    drawn = np.nan_to_num(extra[1:], nan=most)
    quantile = float(t.isf((1.0 - confidence) / 2.0, seeds - 1)) * np.sqrt(seeds / (seeds - 1.0))
    low, high = np.quantile(drawn, [norm.sf(quantile), norm.cdf(quantile)])
    high = max(float(high), float(extra[0]))
    return Worth(
        full * float(extra[0]),
        full * min(float(low), float(extra[0])),
        full * high,
        bool(high >= most - 1e-9),
        points,
    )


def _points(images: Floats, accuracy: Floats, confidence: float) -> tuple[CurvePoint, ...]:
    seeds = accuracy.shape[1]
    half = t.isf((1.0 - confidence) / 2.0, seeds - 1) * accuracy.std(axis=1, ddof=1)
    half /= np.sqrt(seeds)
    means = accuracy.mean(axis=1)
    return tuple(
        CurvePoint(float(n), float(mean), float(max(mean - h, 0.0)), float(min(mean + h, 1.0)))
        for n, mean, h in zip(images, means, half, strict=True)
    )


def _extra_shares(sizes: Floats, curves: Floats, synthetic: Floats) -> Floats:
    """Return (R,) extra images as shares of the full set, in [0, 1]; NaN where the law is flat."""
    _, b, c = fit_power_laws(sizes, curves)
    gain = synthetic - curves[:, -1]
    room = b - gain  # what is left to a above the accuracy to reach
    steep = b * (0.5**-c - 1.0) >= _FLAT
    reached = np.where(room > 0.0, b, np.inf) / np.where(room > 0.0, room, 1.0)
    # Logarithms, capped first: a weak exponent makes a power overflow.
    logarithm = np.log(np.maximum(reached, 1.0)) / c
    extra = np.exp(np.minimum(logarithm, np.log(_FURTHEST))) - 1.0
    extra = np.where(steep, extra, np.nan)
    # No gain is worth nothing, however flat the curve of a resample; the data's own must rise.
    extra[1:][gain[1:] <= 0.0] = 0.0
    return np.asarray(np.where(steep & (gain <= 0.0), 0.0, extra))


def fit_power_laws(sizes: Floats, curves: Floats) -> tuple[Floats, Floats, Floats]:
    """Return a, b, c of accuracy = a - b size^-c by least squares, one of each for every curve.

    For a given exponent the law is linear in a and b, and its bounds are met in closed form; the
    exponent is the best of a fine grid. That finds the best of several valleys, and is a thousand
    times faster than a descent for each curve.

    Args:
        sizes: (F,) sizes as shares of the full set, positive.
        curves: (R, F) accuracies in [0, 1].

    Returns:
        (R,) each: a at most 1, b at least 0 (so that the law never falls), c in [0.1, 2].
    """
    x = np.asarray(sizes, dtype=np.float64)[None] ** -_EXPONENTS[:, None]  # (C, F)
    y = np.asarray(curves, dtype=np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)  # (C,)
    slope = -(y @ centred.T) / np.where(spread > 0.0, spread, 1.0)  # (R, C)
    b = np.clip(slope, 0.0, None)
    a = y.mean(axis=1, keepdims=True) + b * x.mean(axis=1)
    # Where a would pass 1, the best law has a = 1: the sum of squares is convex.
    at_one = np.clip(((1.0 - y) @ x.T) / (x**2).sum(axis=1), 0.0, None)
    b, a = np.where(a > 1.0, at_one, b), np.minimum(a, 1.0)
    squares = ((a[:, :, None] - b[:, :, None] * x - y[:, None]) ** 2).sum(axis=2)
    best = squares.argmin(axis=1)
    rows = np.arange(len(y))
    return a[rows, best], b[rows, best], _EXPONENTS[best]
