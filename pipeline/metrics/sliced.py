"""Sliced Wasserstein distance: how far mass must move, seen from many sides.

Along a line, the cheapest way to turn one set of points into another is to match them in order, so
sorting is all it takes (Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of
measures"). On Inception features it is the idea of MIND (Berthet et al. 2026, "MIND: Monge
Inception Distance", arXiv 2605.06797): no covariance is estimated, which is what makes a Frechet
distance ask for tens of thousands of rows. The value here is the plain mean over projections;
MIND's own scale and number of projections are not taken over, so its published values do not
compare.
"""

import math

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.metrics.estimate import Estimate, normal_interval, require_comparable
from pipeline.seeds import numpy_generator

_Array = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]

MINIMUM_ROWS = 10
PROJECTIONS = 512
_BLOCK_VALUES = 1 << 21  # projected values held at once: 16 MB, and some copies of it


def sliced_distance(
    real: npt.NDArray[np.floating],
    fake: npt.NDArray[np.floating],
    projections: int = PROJECTIONS,
    seed: int = 0,
) -> Estimate:
    """Return the mean over random directions of the squared 1-d Wasserstein-2 distance.

    Low is best, 0 where both sets are the same points. The unit is that of the features squared: a
    shift by s adds |s|^2 / D in the mean over directions, so bring features to mean square 1 first
    and a value of 1 is a set that stands as far off as the features are wide.

    Few rows make it too high, like every distance between samples: where both sets are one normal
    distribution of variance 1, by 0.23 at 20 rows a side, 0.057 at 100, 0.0065 at 1,000. Compare
    at one n, with the value of real rows beside it.

    The interval is value +- 1.96 standard errors, by the central limit theorem for transport costs
    (del Barrio and Loubes 2019): a row counts by its Kantorovich potential, averaged over the
    directions. It covers the draw of both sets for these directions. Where both are one
    distribution it is too wide rather than too narrow.

    Args:
        real: (N, D) float, N >= 10.
        fake: (M, D) float, M >= 10; N and M may differ, quantiles are matched exactly.
        projections: directions, >= 1, even over the sphere; in a D of hundreds the default gives
            the mean over all directions to about 5 %, and the same seed the same directions.
        seed: of the directions.

    Raises:
        TooFewRows: fewer than 10 rows on a side.
        StageError: see `require_comparable`; no projection; or values that overflow.
    """
    if projections < 1:
        raise StageError(f"sliced_distance: {projections} projections; it needs at least 1")
    require_comparable("sliced_distance", real, fake, MINIMUM_ROWS)
    x, y = real.astype(np.float64), fake.astype(np.float64)
    n, m = len(x), len(y)
    random = numpy_generator(seed, "sliced")
    matching = _match(n, m)
    total, x_terms, y_terms = 0.0, np.zeros(n), np.zeros(m)
    size = max(1, _BLOCK_VALUES // (n + m))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, projections, size):
            lines = random.normal(size=(min(size, projections - start), x.shape[1]))
            lines /= np.linalg.norm(lines, axis=1, keepdims=True)
            (x_order, xs), (y_order, ys) = _sorted(lines @ x.T), _sorted(lines @ y.T)
            total += _transport(xs, ys, *matching)
            x_terms += _potentials(xs, x_order, ys)
            y_terms += _potentials(ys, y_order, xs)
        variance = x_terms.var(ddof=1) / n + y_terms.var(ddof=1) / m
    value, error = total / projections, math.sqrt(variance) / projections
    if not (math.isfinite(value) and math.isfinite(error)):
        raise StageError("sliced_distance: these features overflow; scale them down")
    return normal_interval(value, error, n, m, 0.0, math.inf)


def _match(n: int, m: int) -> tuple[_Array, _Indices, _Indices]:
    """Cut [0, 1] where either quantile function jumps; return lengths and rows of each piece."""
    # In whole numbers of 1 / (n m), so that no piece is lost to rounding.
    cuts = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    begins = cuts[:-1]
    return np.diff(cuts) / (n * m), begins // m, begins // n


def _sorted(values: _Array) -> tuple[_Indices, _Array]:
    order = np.argsort(values, axis=1)
    return order, np.take_along_axis(values, order, axis=1)


def _transport(xs: _Array, ys: _Array, lengths: _Array, rows: _Indices, others: _Indices) -> float:
    """Return the squared distances of sorted (P, N) and (P, M), summed over P."""
    return float((((xs[:, rows] - ys[:, others]) ** 2) @ lengths).sum())


def _potentials(xs: _Array, order: _Indices, ys: _Array) -> _Array:
    """Return each row's Kantorovich potential, summed over the projections, (N,).

    Its slope at x is 2 (x - T(x)), T the transport map, so between neighbours a and b it rises by
    b^2 - a^2 - 2 t (b - a), with t the quantile of the other set at the level between them.
    """
    n, m = xs.shape[1], ys.shape[1]
    levels = np.arange(1, n) * m  # in 1 / (n m)
    # At a level where the other set jumps, either side is a solution: take the middle.
    target = (ys[:, (levels - 1) // n] + ys[:, np.minimum(levels // n, m - 1)]) / 2
    low, high = xs[:, :-1], xs[:, 1:]
    rises = np.zeros_like(xs)
    np.cumsum((high - low) * (high + low - 2 * target), axis=1, out=rises[:, 1:])
    placed = np.empty_like(xs)
    np.put_along_axis(placed, order, rises, axis=1)
    summed: _Array = placed.sum(axis=0)
    return summed
