"""A paired bootstrap of the gain in balanced accuracy of one arm over another.

The estimator. Let d[s, i] = 1[arm B is right on test image i with seed s] - 1[arm A is]. The gain
of class k is the mean of d over seeds and the class's test images; the gain in balanced accuracy
is the mean over classes. A resample draws the S seeds with replacement, and within each class its
n_k test images with replacement, and computes the gains again. The interval is the percentile
interval of the resampled gains (Efron & Tibshirani 1993, An Introduction to the Bootstrap,
chapter 13; resampling both factors of a crossed design: Owen 2007, The pigeonhole bootstrap).

n is S seeds and sum(n_k) test images. What the interval does not cover: there is one split, one
generator and one set of synthetic images, and none of them is resampled. With few seeds the seed's
share of the spread comes out too small, by about (S - 1) / S in variance: percentile intervals
over 4 seeds are narrow. No correction is made for choosing among arms; the choice is made on
validation rows for that reason.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_CHUNK_RESAMPLES = 2000  # bounds the memory; part of what a seed means


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval, in the unit of the estimate.

    Attributes:
        value: the estimate from the data themselves.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """The gain of arm B over arm A, in [-1, 1]; positive where B is better.

    Attributes:
        balanced_accuracy: gain in balanced accuracy.
        classes: gain in recall of each class, in label order.
        seeds: S, paired repetitions.
        images: test images.
        resamples: bootstrap resamples.
        confidence: level of the intervals.
    """

    balanced_accuracy: Interval
    classes: tuple[Interval, ...]
    seeds: int
    images: int
    resamples: int
    confidence: float


def paired_gain(
    correct_a: Bools,
    correct_b: Bools,
    labels: npt.NDArray[np.int64],
    classes: int,
    resamples: int,
    confidence: float,
    random: np.random.Generator,
) -> Gain:
    """Return the gain of B over A with bootstrap percentile intervals; see the module's text.

    Args:
        correct_a: (S, N), is arm A right with seed s on test image i?
        correct_b: (S, N), the same for arm B, with the same seeds and images.
        labels: (N,) class of each test image; every class must occur.
        classes: number of classes K.
        resamples: bootstrap resamples.
        confidence: level of the intervals, in (0, 1).
        random: generator of the resamples.

    Raises:
        StageError: the shapes do not match, or a class has no test image.
    """
    if correct_a.shape != correct_b.shape or correct_a.shape[1:] != labels.shape:
        raise StageError(
            f"paired gain: shapes {correct_a.shape}, {correct_b.shape} and {labels.shape} do not "
            "pair; both arms need the same seeds and test images"
        )
    difference = correct_b.astype(np.int64) - correct_a.astype(np.int64)  # (S, N)
    by_class = [difference[:, labels == k] for k in range(classes)]
    if any(part.size == 0 for part in by_class):
        raise StageError("paired gain: a class has no test image, or there is no seed")
    # Images with the same differences over all seeds are interchangeable, so a resample needs
    # only how often each pattern is drawn: a multinomial over patterns, not over images.
    patterns = [np.unique(part, axis=1, return_counts=True) for part in by_class]
    draws = np.empty((resamples, classes))
    for start in range(0, resamples, _CHUNK_RESAMPLES):
        part = draws[start : start + _CHUNK_RESAMPLES]
        part[:] = _resample(patterns, len(part), random)
    value = np.array([part.mean() for part in by_class])
    return Gain(
        balanced_accuracy=_interval(float(value.mean()), draws.mean(axis=1), confidence),
        classes=tuple(_interval(float(value[k]), draws[:, k], confidence) for k in range(classes)),
        seeds=difference.shape[0],
        images=difference.shape[1],
        resamples=resamples,
        confidence=confidence,
    )


def _resample(
    patterns: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    resamples: int,
    random: np.random.Generator,
) -> Floats:
    """Return (R, K) resampled gains of the classes; the seeds drawn are shared by the classes."""
    seeds = patterns[0][0].shape[0]
    weights = random.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples) / seeds
    gains = np.empty((resamples, len(patterns)))
    for k, (values, counts) in enumerate(patterns):  # (S, U), (U,)
        n = int(counts.sum())
        drawn = random.multinomial(n, counts / n, size=resamples)  # (R, U)
        by_seed = drawn @ values.T / n  # (R, S)
        gains[:, k] = (weights * by_seed).sum(axis=1)
    return gains


def _interval(value: float, draws: Floats, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))
