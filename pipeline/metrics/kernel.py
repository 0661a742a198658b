"""Kernel distance: how far the fake features stand from the real ones, without bias at small n.

The squared maximum mean discrepancy, estimated without bias (Gretton et al. 2012, "A kernel
two-sample test", eq. 3). On Inception features with the cubic kernel it is the kernel Inception
distance (Binkowski et al. 2018, "Demystifying MMD GANs"). A Frechet distance is biased upwards
where rows are few, which is just where thin classes are; this is not.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from pipeline.errors import StageError
from pipeline.metrics.estimate import require_comparable

Kernel = Literal["polynomial", "gaussian"]
_Array = npt.NDArray[np.float64]
_Gram = Callable[[_Array, _Array], _Array]

# The centring of the spread divides by n - 3.
MINIMUM_ROWS = 4
# Rows of a kernel matrix held at once: 512 rows against 20,000 are 80 MB, and a few copies of it.
_BLOCK_ROWS = 512
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
    """

    value: float
    spread: float
    n_real: int
    n_fake: int
    kernel: Kernel


def kernel_distance(
    real: npt.NDArray[np.floating],
    fake: npt.NDArray[np.floating],
    kernel: Kernel = "polynomial",
) -> KernelDistance:
    """Estimate the squared MMD between two sets of features, all rows at once.

    `polynomial` is (x.y / D + 1)^3. `gaussian` is exp(-|x - y|^2 / (2 s^2)) with s the median
    distance between two different real rows (over 2,000 evenly spaced ones where there are more).
    The spread takes s as given, though it moves a little with the draw.

    Time grows with (n_real + n_fake)^2 D, memory with the longer side.

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
    x, y = real.astype(np.float64), fake.astype(np.float64)
    if kernel == "gaussian":
        # Distances do not move with the origin, but far from it the expanded square loses digits.
        centre = x.mean(axis=0)
        x, y = x - centre, y - centre
    with np.errstate(over="ignore", invalid="ignore"):
        value, variance = _unbiased_mmd(x, y, _gram(kernel, x))
    if not (np.isfinite(value) and np.isfinite(variance)):
        raise StageError(
            f"kernel_distance: the {kernel} kernel overflows on these features; scale them down"
        )
    return KernelDistance(value, float(np.sqrt(variance)), len(x), len(y), kernel)


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
    gram = _gram("polynomial", np.zeros((0, real.shape[1])))
    real_terms, fake_terms = np.zeros(len(real)), np.zeros(len(fake))
    values: dict[int, float] = {}
    for label in np.unique(real_labels):
        ours, theirs = real_labels == label, fake_labels == label
        n, m = int(ours.sum()), int(theirs.sum())
        if min(n, m) < 2:
            continue
        x, y = real[ours].astype(np.float64), fake[theirs].astype(np.float64)
        xx, yy, xy = gram(x, x), gram(y, y), gram(x, y)
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


def _gram(kernel: Kernel, real: _Array) -> _Gram:
    if kernel == "polynomial":
        # The defaults of scikit-learn are the paper's: gamma = 1 / D, coef0 = 1.
        return lambda a, b: np.asarray(polynomial_kernel(a, b, degree=3))
    rows = real
    if len(real) > _BANDWIDTH_ROWS:
        rows = real[np.linspace(0, len(real) - 1, _BANDWIDTH_ROWS).astype(np.int64)]
    bandwidth = float(np.median(pdist(rows)))
    if bandwidth == 0:
        raise StageError(
            "kernel_distance: the median distance between real rows is 0, so the gaussian kernel "
            "has no bandwidth; remove repeated rows or use the polynomial kernel"
        )
    gamma = 1 / (2 * bandwidth**2)
    return lambda a, b: np.asarray(rbf_kernel(a, b, gamma=gamma))


# Squared MMD is a two-sample U-statistic. Its Hoeffding decomposition (Serfling 1980, section 5.3)
# splits each kernel value into a mean, one term a row and an interaction g, all uncorrelated:
#
#   Var = 4 V_x / n + 4 V_y / m + 2 G_xx / (n (n - 1)) + 2 G_yy / (m (m - 1)) + 4 G_xy / (n m)
#
# V is the variance of a row's term, G the mean of g^2. Each part has an unbiased estimate: G by
# U-centring (Szekely and Rizzo 2014, "Partial distance correlation", section 2), V by the variance
# of the row means less the share of G in it. Where both sets are one distribution V is 0 and only
# G remains; the usual first-order formula would give 0 there, and the jackknife twice the variance.
def _unbiased_mmd(x: _Array, y: _Array, gram: _Gram) -> tuple[float, float]:
    """Estimate the squared MMD and the variance of that estimate."""
    n, m = len(x), len(y)
    xx, g_xx = _within(x, gram)
    yy, g_yy = _within(y, gram)
    x_to_y, y_to_x, g_xy = _between(x, y, gram)

    value = xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * x_to_y.mean()

    # n - 2, not n - 1: a row's own term is also in the mean over the others.
    v_x = (xx / (n - 2) - x_to_y).var(ddof=1) - g_xx / (n - 2) - g_xy / m
    v_y = (yy / (m - 2) - y_to_x).var(ddof=1) - g_yy / (m - 2) - g_xy / n
    first = 4 * v_x / n + 4 * v_y / m
    second = 2 * g_xx / (n * (n - 1)) + 2 * g_yy / (m * (m - 1)) + 4 * g_xy / (n * m)
    # Chance can take the first below 0, which no variance is.
    return float(value), float(np.maximum(first, 0) + second)


def _within(rows: _Array, gram: _Gram) -> tuple[_Array, float]:
    """Sum the kernel from each row to the others, (N,), and estimate the mean squared g."""
    n = len(rows)
    sums = np.concatenate([block.sum(axis=1) for _, block in _hollow_blocks(rows, gram)])
    total = sums.sum() / ((n - 1) * (n - 2))
    squares = 0.0
    for start, block in _hollow_blocks(rows, gram):
        here = np.arange(len(block))
        centred = block - sums[start : start + len(block), None] / (n - 2) - sums / (n - 2) + total
        centred[here, start + here] = 0
        squares += float((centred**2).sum())
    return sums, squares / (n * (n - 3))


def _hollow_blocks(rows: _Array, gram: _Gram) -> Iterator[tuple[int, _Array]]:
    """Yield the kernel matrix of rows with themselves, block by block, its diagonal set to 0."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = gram(rows[start : start + _BLOCK_ROWS], rows)  # (B, N)
        here = np.arange(len(block))
        block[here, start + here] = 0
        yield start, block


def _between(x: _Array, y: _Array, gram: _Gram) -> tuple[_Array, _Array, float]:
    """Average the kernel from each row to the other set, (N,) and (M,), and the mean squared g."""
    n, m = len(x), len(y)
    x_to_y, y_to_x = np.zeros(n), np.zeros(m)
    for start in range(0, n, _BLOCK_ROWS):
        block = gram(x[start : start + _BLOCK_ROWS], y)  # (B, M)
        x_to_y[start : start + _BLOCK_ROWS] = block.mean(axis=1)
        y_to_x += block.sum(axis=0) / n
    mean = x_to_y.mean()
    squares = 0.0
    # The matrix is worked out a second time: kept, it would not fit; as a difference of sums of
    # squares it would lose its digits.
    for start in range(0, n, _BLOCK_ROWS):
        block = gram(x[start : start + _BLOCK_ROWS], y)
        centred = block - x_to_y[start : start + _BLOCK_ROWS, None] - y_to_x + mean
        squares += float((centred**2).sum())
    return x_to_y, y_to_x, squares / ((n - 1) * (m - 1))
