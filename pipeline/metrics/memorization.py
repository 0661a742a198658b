"""Copies: how near each generated image stands to the training images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import StageError

_MINIMUM_REAL = 2


@dataclass(frozen=True)
class Nearest:
    """The nearest real row of each fake row.

    Attributes:
        index: (N,) row of the nearest real one.
        distance: (N,) root mean square difference to it, in the units of the features.
        ratio: (N,) nearest over second-nearest distance, in [0, 1]; 1 where both are 0.
    """

    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]


def nearest_real(fake: npt.NDArray[np.floating], real: npt.NDArray[np.floating]) -> Nearest:
    """Find the nearest real row of each fake row, exactly.

    An image is a copy where `ratio` < 1/3: it is three times nearer to one training image than to
    any other (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
    memorize", section 3). The ratio is blind where the training set holds the image twice; the
    distance is not.

    Args:
        fake: (N, D) float.
        real: (M, D) float, M >= 2.

    Raises:
        StageError: fewer than 2 real rows, or a value that is not finite.
    """
    if len(real) < _MINIMUM_REAL:
        raise StageError(
            f"nearest_real: {len(real)} real rows; the nearest over second-nearest ratio needs "
            f"at least {_MINIMUM_REAL}"
        )
    if not (np.isfinite(fake).all() and np.isfinite(real).all()):
        raise StageError("nearest_real: features hold values that are not finite")
    if not len(fake):
        empty = np.zeros(0)
        return Nearest(empty.astype(np.int64), empty, empty)
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(real.astype(np.float64))
    distances, rows = search.kneighbors(fake.astype(np.float64))
    distances = distances / np.sqrt(real.shape[1])
    first, second = distances[:, 0], distances[:, 1]
    ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
    return Nearest(rows[:, 0].astype(np.int64), first, ratio)
