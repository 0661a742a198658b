"""What gain to expect of a set: that of the measured regimes near it, the nearest first.

A Gaussian kernel regression on a handful of points. Its interval is one for a new set: it holds the
regimes' own uncertainty, how much sets differ though their facts are equal (what is in the images
is no fact), and more the farther the nearest is, as in kriging.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pvariance

from pipeline.recipe.facts import SetFacts
from pipeline.recipe.measured import BaseKind, Regime

# Bandwidths: how far apart two sets may be in one respect and still be alike, in doublings.
_IMAGES_A_CLASS = 1.0
_IMBALANCE = 2.0
_POOL = 2.0
_SIZE = 1.0
_COLOUR = 1.0  # bandwidths between grey and colour
FARTHEST = 2.0  # bandwidths; a regime farther away says nothing
_LEAST_VARIANCE = 2.0  # between sets, in squared points: few regimes that agree prove no less
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Expectation:
    """The gain over the best baseline that sets like this one had; in points.

    The 95 % intervals are those for a new set.

    Attributes:
        gain_points: of balanced accuracy.
        gain_low: low end of its interval.
        gain_high: high end.
        tail_gain_points: of recall in the thinnest classes.
        tail_low: low end of its interval.
        tail_high: high end.
        regimes: names of the measured regimes that it rests on, the nearest first.
        used: was the verdict on at least one of them to use the images, with care or without?
        distance: of the nearest, in bandwidths; 0 = the same in all respects.
    """

    gain_points: float
    gain_low: float
    gain_high: float
    tail_gain_points: float
    tail_low: float
    tail_high: float
    regimes: tuple[str, ...]
    used: bool
    distance: float


def expect(facts: SetFacts, base: BaseKind, regimes: Sequence[Regime]) -> Expectation | None:
    """Return the gain to expect from a generator with such a base; None where no regime is near.

    It is compared with those alone that started from the same kind of base.
    """
    if not facts.labelled:
        return None
    pool = facts.pool if base == "pool" else 0
    alike = [one for one in regimes if one.base == base]
    here = _coordinates(facts, pool)
    distances = [math.dist(here, _coordinates(one, one.pool)) for one in alike]
    near = sorted(
        (distance, one.name, one)
        for distance, one in zip(distances, alike, strict=True)
        if distance <= FARTHEST
    )
    if not near:
        return None
    weights = [_kernel(distance) for distance, _, _ in near]
    # Once for what the facts do not say, and up to once more for the way to the nearest.
    unseen = 2.0 - weights[0]
    gain = _blend(
        [(one.gain_points, one.gain_low, one.gain_high) for _, _, one in near],
        weights,
        unseen * _between([one.gain_points for one in alike]),
    )
    tail = _blend(
        [(one.tail_gain_points, one.tail_low, one.tail_high) for _, _, one in near],
        weights,
        unseen * _between([one.tail_gain_points for one in alike]),
    )
    return Expectation(
        *gain,
        *tail,
        regimes=tuple(name for _, name, _ in near),
        used=any(one.decision != "do_not_use" for _, _, one in near),
        distance=round(near[0][0], 3),
    )


def _coordinates(facts: SetFacts | Regime, pool: int) -> tuple[float, ...]:
    """Return where a set lies, in bandwidths."""
    return (
        math.log2(facts.labelled / facts.classes) / _IMAGES_A_CLASS,
        math.log2(facts.largest / max(facts.smallest, 1)) / _IMBALANCE,
        math.log2(1 + pool / facts.labelled) / _POOL,
        math.log2(facts.image_size_px) / _SIZE,
        _COLOUR * (facts.image_mode == "RGB"),
    )


def _between(gains: Sequence[float]) -> float:
    """Return the variance between sets, in squared points."""
    return max(pvariance(gains), _LEAST_VARIANCE)


def _kernel(distance: float) -> float:
    return math.exp(-(distance**2) / 2)


def _blend(
    gains: Sequence[tuple[float, float, float]], weights: Sequence[float], unseen: float
) -> tuple[float, float, float]:
    """Return the weighted mean of (gain, low, high), with an interval for a new set.

    Its variance is the law of total variance's (the mean of the gains' own, and that between
    them) and `unseen`, for what no near regime says. Sets that differ count in both: a few of them
    show too little of how sets differ.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    mean = sum(share * gain for share, (gain, _, _) in zip(shares, gains, strict=True))
    variance = unseen + sum(
        share * (((high - low) / (2 * _NORMAL_95)) ** 2 + (gain - mean) ** 2)
        for share, (gain, low, high) in zip(shares, gains, strict=True)
    )
    reach = _NORMAL_95 * math.sqrt(variance)
    return round(mean, 3), round(mean - reach, 3), round(mean + reach, 3)
