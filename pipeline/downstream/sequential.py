"""Adding seeds until the answer is clear, without paying for the looks with false answers.

Looking at the interval after 4, 8 and 16 seeds and stopping when it excludes 0 gives three chances
to be wrong. Each look therefore has a stricter level. The gain after s seeds is a mean of s paired
gains, so the looks are correlated by at least sqrt(s_i / s_j), the value where images add no error
of their own; shared test images only bring them closer, and the closer they are, the smaller the
chance that any of them crosses (for equal boundaries: Slepian 1962). Bounds for that least
correlation are thus on the safe side. Their shape is Wang & Tsiatis (1987, Biometrics 43,
eq. 2.1) with Delta = 1/4, between Pocock's (all looks alike) and O'Brien & Fleming's (almost
nothing for the first): seeds are cheap, yet most of what can be known is often known early,
because all looks share the test images.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from pipeline.downstream.compare import Interval
from pipeline.errors import StageError

_SHAPE = 0.25  # Delta of Wang & Tsiatis
_GRID = 401  # points of the numerical integration


def looks(seeds: int, max_seeds: int) -> tuple[int, ...]:
    """Return the numbers of seeds to look at: doubling from `seeds`, the last is `max_seeds`.

    Raises:
        StageError: there are no seeds, or fewer at most than to begin with.
    """
    if not 1 <= seeds <= max_seeds:
        raise StageError(
            f"seeds {seeds} and max_seeds {max_seeds}: begin with one or more and end with no fewer"
        )
    found = [seeds]
    while found[-1] < max_seeds:
        found.append(min(2 * found[-1], max_seeds))
    return tuple(found)


def level_at(confidence: float, looks: Sequence[int], index: int) -> float:
    """Return the confidence level of the intervals of one look.

    The chance that any look excludes the true gain is at most 1 - `confidence`, half of it a side.

    Args:
        confidence: wanted over all looks, in (0, 1).
        looks: seeds of each look, increasing.
        index: which look.

    Raises:
        StageError: the looks do not increase, or have no such index.
    """
    plan = tuple(looks)
    rising = all(a < b for a, b in zip(plan, plan[1:], strict=False))
    if not plan or plan[0] < 1 or not rising or not 0 <= index < len(plan):
        raise StageError(f"look {index} of {plan}: looks must increase from one seed or more")
    if len(plan) == 1:
        return confidence
    bound = _scale(confidence, plan) * (plan[index] / plan[-1]) ** (_SHAPE - 0.5)
    return float(1.0 - 2.0 * norm.sf(bound))


def decided(interval: Interval) -> bool:
    """Is 0 outside the interval, on either side?"""
    # Rounded: a mean of many terms may miss zero by the last bit.
    return round(interval.low, 12) > 0.0 or round(interval.high, 12) < 0.0


@lru_cache(maxsize=32)
def _scale(confidence: float, plan: tuple[int, ...]) -> float:
    """Return C, with which all bounds C (s / s_last)^(Delta - 1/2) are kept with `confidence`."""
    return float(brentq(lambda c: _inside(c, plan) - confidence, 0.5, 12.0, xtol=1e-8))


def _inside(scale: float, plan: tuple[int, ...]) -> float:
    """Return the chance that a Brownian path stays within the bounds at all looks.

    Armitage, McPherson & Rowe (1969, JRSS A 132): the density of the paths still inside, look by
    look; here in time s / s_last, where the path's bound is C (s / s_last)^Delta.
    """
    times = np.asarray(plan, dtype=np.float64) / plan[-1]
    points, density = np.zeros(1), np.ones(1)
    before = 0.0
    for now in times:
        bound = scale * now**_SHAPE
        grid = np.linspace(-bound, bound, _GRID)
        step = np.sqrt(now - before)
        weights = np.full(_GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2.0  # the trapezoid rule
        arriving = norm.pdf((grid[:, None] - points[None]) / step) / step @ density
        points, density, before = grid, arriving * weights, now
    return float(density.sum())
