"""Precision, recall, density and coverage: fidelity and variety told apart.

A ball around each row reaches to its k-th nearest neighbour in its own set; the balls of a set are
its manifold. Precision and recall ask who lies in the other set's manifold (Kynkaanniemi et al.
2019, "Improved precision and recall metric for assessing generative models", eq. 1 and 2). Density
and coverage count balls of the real set only, so that one stray row does not swell them (Naeem et
al. 2020, "Reliable fidelity and diversity metrics for generative models", section 3).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from pipeline.errors import StageError
from pipeline.metrics.estimate import require_comparable

_Array = npt.NDArray[np.float64]

# Rows of a distance matrix held at once: 512 rows against 20,000 are 80 MB, and a few copies of it.
_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Prdc:
    """Precision, recall, density and coverage of one set of fake rows.

    The values move with n and k: compare only results that share both. Two halves of one real set
    give the values to hope for at that n.

    Attributes:
        precision: share of fake rows inside at least one real ball, in [0, 1], 1 is best.
        recall: share of real rows inside at least one fake ball, in [0, 1], 1 is best.
        density: real balls around a fake row, over k, mean; >= 0, 1 in expectation where both sets
            are one distribution; above 1 where the fake rows crowd where real rows are dense.
        coverage: share of real balls that hold a fake row, in [0, 1], 1 is best; where both sets
            are one distribution of n rows each it is near 1 - 2^-k (Naeem et al. 2020, section 3).
        k: neighbours that set a radius, the row itself not counted.
        n_real: rows of real.
        n_fake: rows of fake.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n_real: int
    n_fake: int


def prdc(real: npt.NDArray[np.floating], fake: npt.NDArray[np.floating], k: int = 5) -> Prdc:
    """Compare two sets of features by their k-nearest-neighbour balls, exactly.

    The conventions are those of Naeem's reference code: L2 distance, the radius is the distance to
    the k-th nearest other row, and a row is inside where its distance is `<` the radius. So a row
    that is there k + 1 times or more has an empty ball. (Kynkaanniemi et al. write `<=`.)

    Time grows with (n_real + n_fake)^2 D, memory with the longer side.

    Args:
        real: (N, D) float, N >= k + 1.
        fake: (M, D) float, M >= k + 1.
        k: neighbours that set a radius, >= 1. 5 is the choice of Naeem et al. 2020, section 4;
            Kynkaanniemi et al. took 3.

    Returns:
        The four values; see `Prdc` for ranges and best values.

    Raises:
        StageError: k < 1, too few rows, widths that differ, or a value that is not finite.
    """
    if k < 1:
        raise StageError(f"prdc: k is {k}; it needs at least 1")
    require_comparable("prdc", real, fake, k + 1)
    x, y = real.astype(np.float64), fake.astype(np.float64)
    real_radii, fake_radii = _radii(x, k), _radii(y, k)

    balls = np.zeros(len(y), dtype=np.int64)  # (M,) real balls around each fake row
    recalled = covered = 0
    for start, block in _distance_blocks(x, y):  # block: (B, M)
        radii = real_radii[start : start + len(block)]
        balls += (block < radii[:, None]).sum(axis=0)
        recalled += int((block < fake_radii).any(axis=1).sum())
        covered += int((block.min(axis=1) < radii).sum())
    return Prdc(
        precision=float((balls > 0).mean()),
        recall=recalled / len(x),
        density=float(balls.mean()) / k,
        coverage=covered / len(x),
        k=k,
        n_real=len(x),
        n_fake=len(y),
    )


def class_covered(
    real: npt.NDArray[np.floating],
    real_labels: npt.NDArray[np.integer],
    fake: npt.NDArray[np.floating],
    fake_labels: npt.NDArray[np.integer],
    k: int,
) -> npt.NDArray[np.float64]:
    """Say for each real row whether its ball holds a fake row, class by class.

    The ball reaches to the k-th nearest other row of its own class, and only fake rows that are
    meant to show this class count: their mean is a coverage that sees wrong labels. A class of n
    rows takes min(k, n - 1) neighbours.

    Args:
        real: (N, D) float.
        real_labels: (N,) class of each real row.
        fake: (M, D) float.
        fake_labels: (M,) class that each fake row is meant to show.
        k: neighbours that set a radius, >= 1.

    Returns:
        (N,) 1 where covered, 0 where not; NaN in classes of one real row or no fake one.

    Raises:
        StageError: see `prdc`.
    """
    if k < 1:
        raise StageError(f"class_covered: k is {k}; it needs at least 1")
    require_comparable("class_covered", real, fake, 1)
    covered = np.full(len(real), np.nan)
    for label in np.unique(real_labels):
        ours, theirs = real_labels == label, fake_labels == label
        if ours.sum() < 2 or not theirs.any():
            continue
        x, y = real[ours].astype(np.float64), fake[theirs].astype(np.float64)
        radii = _radii(x, min(k, len(x) - 1))
        nearest = np.concatenate([block.min(axis=1) for _, block in _distance_blocks(x, y)])
        covered[ours] = nearest < radii
    return covered


def _radii(rows: _Array, k: int) -> _Array:
    """Measure the distance from each row to its k-th nearest other row, (N,)."""
    radii = np.empty(len(rows))
    for start, block in _distance_blocks(rows, rows):
        here = np.arange(len(block))
        block[here, start + here] = np.inf
        radii[start : start + len(block)] = np.partition(block, k - 1, axis=1)[:, k - 1]
    return radii


# By differences, not by |x|^2 + |y|^2 - 2 x.y as scikit-learn's neighbour search does on float64:
# that form rounds one pair differently in different blocks, and `<` must see a tie as a tie.
def _distance_blocks(x: _Array, y: _Array) -> Iterator[tuple[int, _Array]]:
    """Yield the L2 distances from x to y, (B, M) a block, each with its first row of x."""
    for start in range(0, len(x), _BLOCK_ROWS):
        yield start, np.asarray(cdist(x[start : start + _BLOCK_ROWS], y))
