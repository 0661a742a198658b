"""Kernel distance: how far the fake features stand from the real ones, without bias at small n.

The squared maximum mean discrepancy, estimated without bias (Gretton et al. 2012, "A kernel
two-sample test", eq. 3). On Inception features with the cubic kernel it is the kernel Inception
distance (Binkowski et al. 2018, "Demystifying MMD GANs"). A Frechet distance is biased upwards
where rows are few, which is just where thin classes are; this is not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist

from pipeline.errors import StageError
from pipeline.metrics.estimate import Rows, require_comparable
from pipeline.metrics.threads import in_order, one_blas_thread

Kernel = Literal["polynomial", "gaussian"]
_Array = npt.NDArray[np.float64]
_Gram = Callable[[_Array, _Array], _Array]
_Part = npt.NDArray[np.int64] | slice
_Found = TypeVar("_Found")

# The centring of the spread divides by n - 3.
MINIMUM_ROWS = 4
_BLOCK_ROWS = 512  # a tile of the kernel matrix is 512 x 512: 2 MiB
# Rows of both sets that are compared all with all: past it, in blocks of half as many.
EXACT_ROWS = 40_000
# The two million pairs of 2,000 rows are 16 MB, and settle a median.
_BANDWIDTH_ROWS = 2000


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and its standard error.

    Attributes:
        value: unbiased squared MMD; 0 where both sets are one distribution, lower is better.
            Chance makes it slightly negative at times: it is not clipped, or its mean were biased.
        spread: standard error of `value` over draws of both sets, >= 0. On normal draws its
            root mean square is within a tenth of the truth where the distributions differ, and too
            wide where they are one (a third at 20 rows, a seventh at 150): there chance cannot be
            told from a small gap, and the estimate errs on the safe side.
        n_real: rows of real.
        n_fake: rows of fake.
        kernel: the kernel; values of two kernels, or of two encoders, do not compare.
        blocks: parts that the sets were cut into, whose distances were averaged; 1: none.
    """

    value: float
    spread: float
    n_real: int
    n_fake: int
    kernel: Kernel
    blocks: int = 1


def kernel_distance(
    real: npt.NDArray[np.floating],
    fake: npt.NDArray[np.floating],
    kernel: Kernel = "polynomial",
) -> KernelDistance:
    """Estimate the squared MMD between two sets of features.

    `polynomial` is (x.y / D + 1)^3. `gaussian` is exp(-|x - y|^2 / (2 s^2)) with s the median
    distance between two different real rows (over 2,000 evenly spaced ones where there are more).
    The spread takes s as given, though it moves a little with the draw.

    Past `EXACT_ROWS` rows on both sides together, both are shuffled (always the same way) and cut
    into blocks, and the blocks' distances are averaged (Zaremba, Gretton and Blaschko 2013,
    "B-test: a non-parametric, low variance kernel two-sample test", section 2). That has no bias
    either; its spread is that of the mean of the blocks, a little wider than of all pairs.

    Time grows with (n_real + n_fake)^2 D, past the limit with n_real + n_fake; memory with
    n_real + n_fake, the features not copied.

    Args:
        real: (N, D) float, N >= 4.
        fake: (M, D) float, M >= 4.
        kernel: which kernel.

    Returns:
        The distance; see `KernelDistance` for range and best value.

    Raises:
        StageError: too few rows, widths that differ, a value that is not finite or overflows the
            kernel, or a Gaussian bandwidth of 0.
    """
    require_comparable("kernel_distance", real, fake, MINIMUM_ROWS)
    # Distances do not move with the origin, but far from it the expanded square loses digits.
    centre = _mean(real) if kernel == "gaussian" else np.zeros(real.shape[1])
    gram = _gram(kernel, real)
    blocks = _blocks(len(real), len(fake))
    # One limit for all products below, which would each look for the BLAS that are loaded.
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
        found = [_unbiased_mmd(real[own], fake[other], centre, gram) for own, other in blocks]
    value = sum(one for one, _ in found) / len(found)
    variance = sum(one for _, one in found) / len(found) ** 2
    if not (np.isfinite(value) and np.isfinite(variance)):
        raise StageError(
            f"kernel_distance: the {kernel} kernel overflows on these features; scale them down"
        )
    spread = math.sqrt(variance)
    return KernelDistance(value, spread, len(real), len(fake), kernel, len(blocks))


@dataclass(frozen=True)
class ClassKernel:
    """A kernel distance taken class by class, and what each row has to do with it.

    Attributes:
        value: see `class_kernel_distance`.
        shares: class -> weight of its distance in the value; they sum to 1.
        real_labels: (N,) class of each real row.
        fake_labels: (M,) class that each fake row is meant to show.
        real_terms: (N,) how the distance within its class moves with each real row, to first order
            (Hoeffding's projection); 0 in classes that are left out.
        fake_terms: (M,) the same of the fake rows.
    """

    value: float
    shares: Mapping[int, float]
    real_labels: npt.NDArray[np.integer]
    fake_labels: npt.NDArray[np.integer]
    real_terms: _Array
    fake_terms: _Array

    def gap_error(self, other: "ClassKernel") -> float:
        """Return the standard error of `self.value - other.value`, to first order.

        Over draws of both sets, for two fake sets that were compared with the same real rows, and
        whose rows are pairs: row j of both has the same class and began as the same noise. What
        both have in common drops out of the difference.
        """
        real, fake = self.real_terms - other.real_terms, self.fake_terms - other.fake_terms
        variance = 0.0
        for label, share in self.shares.items():
            for terms, labels in ((real, self.real_labels), (fake, self.fake_labels)):
                own = terms[labels == label]
                variance += share**2 * float(own.var(ddof=1)) / len(own)
        return math.sqrt(variance)


def class_kernel_distance(
    real: npt.NDArray[np.floating],
    real_labels: npt.NDArray[np.integer],
    fake: npt.NDArray[np.floating],
    fake_labels: npt.NDArray[np.integer],
) -> float:
    """Estimate the squared MMD class by class, and average it over the classes.

    The mean over classes, weighted by their real rows, of the unbiased polynomial kernel distance
    within the class: without bias whatever the classes' shares among the fake rows, and high where
    fake rows look like another class than they are meant to. Classes with fewer than 2 rows on
    either side are left out.

    Args:
        real: (N, D) float.
        real_labels: (N,) class of each real row.
        fake: (M, D) float.
        fake_labels: (M,) class that each fake row is meant to show.

    Raises:
        StageError: no class has 2 rows on both sides, or see `kernel_distance`.
    """
    return class_kernel(real, real_labels, fake, fake_labels).value


def class_kernel(
    real: npt.NDArray[np.floating],
    real_labels: npt.NDArray[np.integer],
    fake: npt.NDArray[np.floating],
    fake_labels: npt.NDArray[np.integer],
) -> ClassKernel:
    """Return `class_kernel_distance` with what compares two of them; see there."""
    require_comparable("class_kernel_distance", real, fake, 2)
    real_terms, fake_terms = np.zeros(len(real)), np.zeros(len(fake))
    values: dict[int, float] = {}
    for label in np.unique(real_labels):
        ours, theirs = real_labels == label, fake_labels == label
        n, m = int(ours.sum()), int(theirs.sum())
        if min(n, m) < 2:
            continue
        x, y = real[ours].astype(np.float64), fake[theirs].astype(np.float64)
        xx, yy, xy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
        to_real = (xx.sum(axis=1) - np.diag(xx)) / (n - 1)  # (n,) the row itself not counted
        to_fake = (yy.sum(axis=1) - np.diag(yy)) / (m - 1)  # (m,)
        values[int(label)] = float(to_real.mean() + to_fake.mean() - 2 * xy.mean())
        real_terms[ours] = 2 * (to_real - xy.mean(axis=1))
        fake_terms[theirs] = 2 * (to_fake - xy.mean(axis=0))
    if not values:
        raise StageError("class_kernel_distance: no class has 2 real and 2 fake rows")
    counts = {label: int((real_labels == label).sum()) for label in values}
    shares = {label: count / sum(counts.values()) for label, count in counts.items()}
    return ClassKernel(
        sum(shares[label] * value for label, value in values.items()),
        shares,
        real_labels,
        fake_labels,
        real_terms,
        fake_terms,
    )


def _gram(kernel: Kernel, real: Rows) -> _Gram:
    if kernel == "polynomial":
        return _cubic
    rows = real
    if len(real) > _BANDWIDTH_ROWS:
        rows = real[np.linspace(0, len(real) - 1, _BANDWIDTH_ROWS).astype(np.int64)]
    bandwidth = float(np.median(pdist(rows)))
    if bandwidth == 0:
        raise StageError(
            "kernel_distance: the median distance between real rows is 0, so the gaussian kernel "
            "has no bandwidth; remove repeated rows or use the polynomial kernel"
        )
    return lambda x, y: _gaussian(x, y, 1 / (2 * bandwidth**2))


def _cubic(x: _Array, y: _Array) -> _Array:
    plain: _Array = x @ y.T
    plain /= x.shape[1]
    plain += 1
    # Products, since NumPy's power takes many times as long.
    cube: _Array = plain * plain
    cube *= plain
    return cube


def _gaussian(x: _Array, y: _Array, gamma: float) -> _Array:
    square: _Array = x @ y.T
    square *= -2
    square += np.einsum("nd,nd->n", x, x)[:, None]
    square += np.einsum("nd,nd->n", y, y)
    np.maximum(square, 0, out=square)
    square *= -gamma
    return np.exp(square, out=square)


def _mean(rows: Rows) -> _Array:
    total = np.zeros(rows.shape[1])
    for part in _slices(len(rows)):
        total += rows[part].sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _blocks(n: int, m: int) -> list[tuple[_Part, _Part]]:
    """Cut both sets into equally many blocks of rows, each with rows enough for a distance."""
    count = 1 if n + m <= EXACT_ROWS else -(-2 * (n + m) // EXACT_ROWS)
    count = max(1, min(count, n // MINIMUM_ROWS, m // MINIMUM_ROWS))
    if count == 1:
        return [(slice(n), slice(m))]  # a view, not a copy
    random = np.random.default_rng(0)
    ours, theirs = (np.array_split(random.permutation(rows), count) for rows in (n, m))
    return [(np.sort(a), np.sort(b)) for a, b in zip(ours, theirs, strict=True)]


# Squared MMD is a two-sample U-statistic. Its Hoeffding decomposition (Serfling 1980, section 5.3)
# splits each kernel value into a mean, one term a row and an interaction g, all uncorrelated:
#
#   Var = 4 V_x / n + 4 V_y / m + 2 G_xx / (n (n - 1)) + 2 G_yy / (m (m - 1)) + 4 G_xy / (n m)
#
# V is the variance of a row's term, G the mean of g^2. Each part has an unbiased estimate: G by
# U-centring (Szekely and Rizzo 2014, "Partial distance correlation", section 2), V by the variance
# of the row means less the share of G in it. Where both sets are one distribution V is 0 and only
# G remains; the usual first-order formula would give 0 there, and the jackknife twice the variance.
def _unbiased_mmd(x: Rows, y: Rows, centre: _Array, gram: _Gram) -> tuple[float, float]:
    """Estimate the squared MMD and the variance of that estimate."""
    n, m = len(x), len(y)
    xx, g_xx = _within(x, centre, gram)
    yy, g_yy = _within(y, centre, gram)
    x_to_y, y_to_x, g_xy = _between(x, y, centre, gram)

    value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * x_to_y.mean()

    # n - 2, not n - 1: a row's own term is also in the mean over the others.
    v_x = (xx / (n - 2) - x_to_y).var(ddof=1) - g_xx / (n - 2) - g_xy / m
    v_y = (yy / (m - 2) - y_to_x).var(ddof=1) - g_yy / (m - 2) - g_xy / n
    first = 4 * v_x / n + 4 * v_y / m
    second = 2 * g_xx / (n * (n - 1)) + 2 * g_yy / (m * (m - 1)) + 4 * g_xy / (n * m)
    # Chance can take the first below 0, which no variance is.
    return float(value), float(np.maximum(first, 0) + second)


def _within(rows: Rows, centre: _Array, gram: _Gram) -> tuple[_Array, float]:
    """Sum the kernel from each row to the others, (N,), and estimate the mean squared g."""
    n, sums = len(rows), np.zeros(len(rows))

    def block(here: slice, there: slice) -> _Array:
        found = gram(rows[here] - centre, rows[there] - centre)
        if here == there:
            np.fill_diagonal(found, 0)
        return found

    @_quiet
    def add(here: slice, there: slice) -> tuple[_Array, _Array]:
        found = block(here, there)
        return found.sum(axis=1), found.sum(axis=0)

    @_quiet
    def square(here: slice, there: slice) -> float:
        centred = block(here, there)
        centred -= sums[here, None] / (n - 2)
        centred -= sums[there] / (n - 2) - total
        if here == there:
            np.fill_diagonal(centred, 0)
        # The matrix is symmetric: the tile stands for its mirror image too.
        return (1 if here == there else 2) * float(np.vdot(centred, centred))

    tiles = list(combinations_with_replacement(_slices(n), 2))
    for (here, there), (of_rows, of_columns) in zip(tiles, in_order(add, tiles), strict=True):
        sums[here] += of_rows
        if here != there:
            sums[there] += of_columns
    total = sums.sum() / ((n - 1) * (n - 2))
    squares = sum(in_order(square, tiles))
    return sums, squares / (n * (n - 3))


def _between(x: Rows, y: Rows, centre: _Array, gram: _Gram) -> tuple[_Array, _Array, float]:
    """Average the kernel from each row to the other set, (N,) and (M,), and the mean squared g."""
    n, m = len(x), len(y)
    x_to_y, y_to_x = np.zeros(n), np.zeros(m)

    @_quiet
    def add(here: slice, there: slice) -> tuple[_Array, _Array]:
        found = gram(x[here] - centre, y[there] - centre)
        return found.sum(axis=1) / m, found.sum(axis=0) / n

    # The matrix is worked out a second time: kept, it would not fit; as a difference of sums of
    # squares it would lose its digits.
    @_quiet
    def square(here: slice, there: slice) -> float:
        centred = gram(x[here] - centre, y[there] - centre)
        centred -= x_to_y[here, None]
        centred -= y_to_x[there] - mean
        return float(np.vdot(centred, centred))

    tiles = list(product(_slices(n), _slices(m)))
    for (here, there), (of_x, of_y) in zip(tiles, in_order(add, tiles), strict=True):
        x_to_y[here] += of_x
        y_to_x[there] += of_y
    mean = x_to_y.mean()
    return x_to_y, y_to_x, sum(in_order(square, tiles)) / ((n - 1) * (m - 1))


def _quiet(work: Callable[[slice, slice], _Found]) -> Callable[[tuple[slice, slice]], _Found]:
    """Let a tile overflow in silence: the result is looked at in the end."""

    def tile(pair: tuple[slice, slice]) -> _Found:
        with np.errstate(over="ignore", invalid="ignore"):
            return work(*pair)

    return tile


def _slices(rows: int) -> list[slice]:
    return [slice(start, min(rows, start + _BLOCK_ROWS)) for start in range(0, rows, _BLOCK_ROWS)]
