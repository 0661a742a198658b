"""Copies: how near each generated image stands to the training images."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from pipeline.errors import StageError
from pipeline.metrics.estimate import Estimate, require_comparable

# Nearest over second-nearest distance below which a row is called a copy; see `copy_share`.
COPY_RATIO = 1.0 / 3.0

_MINIMUM_REAL = 2
_QUANTILE = 1.959964  # of the normal distribution, for 95 %


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


class RealIndex:
    """The real rows, checked and laid out once, to be searched many times.

    An image is a copy where `ratio` < 1/3: it is three times nearer to one training image than to
    any other (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
    memorize", section 3). The ratio is blind where the training set holds the image twice; the
    distance is not.
    """

    def __init__(self, real: npt.NDArray[np.floating]) -> None:
        """Take the real rows, (M, D) float, M >= 2.

        Raises:
            StageError: fewer than 2 real rows, or a value that is not finite.
        """
        if len(real) < _MINIMUM_REAL:
            raise StageError(
                f"nearest_real: {len(real)} real rows; the nearest over second-nearest ratio needs "
                f"at least {_MINIMUM_REAL}"
            )
        _require_finite(real)
        self._real = real.astype(np.float64)
        self._search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(self._real)
        self._scale = np.sqrt(real.shape[1])

    def nearest(
        self,
        fake: npt.NDArray[np.floating],
        parents: npt.NDArray[np.int64] | None = None,
    ) -> Nearest:
        """Find the nearest real row of each fake row, (N, D) float, exactly.

        Args:
            fake: the fake rows.
            parents: (N,) real row that each was made from, and that is left out of its search: it
                is near on purpose. Where no second row is left, the ratio is 1.

        Raises:
            StageError: a value is not finite.
        """
        _require_finite(fake)
        if not len(fake):
            empty = np.zeros(0)
            return Nearest(empty.astype(np.int64), empty, empty)
        distances, rows = self._neighbours(fake.astype(np.float64), parents)
        first, second = distances[:, 0], distances[:, 1]
        ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
        return Nearest(rows[:, 0].astype(np.int64), first, ratio)

    def distance_to(
        self, fake: npt.NDArray[np.floating], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the (N,) root mean square difference of each fake row to a given real one."""
        gaps = fake.astype(np.float64) - self._real[rows]
        distance: npt.NDArray[np.float64] = np.sqrt((gaps**2).mean(axis=1))
        return distance

    def _neighbours(
        self, fake: npt.NDArray[np.float64], parents: npt.NDArray[np.int64] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return distances (N, 2) and rows (N, 2) of the two nearest real rows."""
        if parents is None:
            distances, rows = self._search.kneighbors(fake)
            return distances / self._scale, rows
        count = min(3, len(self._real))
        distances, rows = self._search.kneighbors(fake, n_neighbors=count)
        # A parent that is not among the three hides none; the third is dropped in its place.
        own = rows == parents[:, None]
        own[~own.any(axis=1), -1] = True
        distances, rows = distances[~own].reshape(len(fake), -1), rows[~own].reshape(len(fake), -1)
        if count == 2:  # one row is left: as if the second were as near
            distances, rows = distances.repeat(2, axis=1), rows.repeat(2, axis=1)
        return distances / self._scale, rows


def nearest_real(fake: npt.NDArray[np.floating], real: npt.NDArray[np.floating]) -> Nearest:
    """Find the nearest real row of each fake row, exactly; see `RealIndex` for the arguments."""
    return RealIndex(real).nearest(fake)


def copy_share(nearest: Nearest, limit: float = COPY_RATIO) -> float:
    """Return the share of fake rows that are copies of a real row: those with `ratio` < limit.

    In [0, 1], 0 is best; but judge it beside the share that real rows kept out of training reach,
    since thin or repetitive data has rows that stand near to one training row by themselves.

    Conventions in the field. Yoon et al. 2023 ("Diffusion probabilistic models generalize when
    they fail to memorize") and Gu et al. 2023 ("On memorization in diffusion models") both call a
    sample memorised where its L2 distance to the nearest training image is below 1/3 of that to
    the second nearest: `<`, this function's default. Kadkhodaie et al. 2024 ("Generalization in
    diffusion models arises from geometry-adaptive harmonic representations") judge instead by the
    correlation (cosine similarity of centred images) between a sample and its nearest training
    image, and by whether two networks trained on disjoint halves agree. We use the ratio: it has no
    threshold to fit to a data set, and needs one network.

    Args:
        nearest: what `RealIndex.nearest` found, N >= 1 rows.
        limit: the ratio below which a row is a copy; the ratio itself is blind to a real row that
            is there twice.

    Raises:
        StageError: there are no rows.
    """
    if not len(nearest.ratio):
        raise StageError("copy_share: 0 fake rows; a share needs at least 1")
    return float((nearest.ratio < limit).mean())


def copy_share_estimate(
    real: npt.NDArray[np.floating],
    fake: npt.NDArray[np.floating],
    limit: float = COPY_RATIO,
) -> Estimate:
    """Return `copy_share` with its interval; see there and `share_estimate`.

    Args:
        real: (N, D) all training rows, N >= 2: a row that is left out hides its copies.
        fake: (M, D), M >= 2.
        limit: the ratio below which a row is a copy.

    Raises:
        TooFewRows: fewer than 2 rows on a side.
        StageError: see `require_comparable`.
    """
    require_comparable("copy_share", real, fake, _MINIMUM_REAL)
    return share_estimate(RealIndex(real).nearest(fake).ratio < limit, len(real))


def share_estimate(hits: npt.NDArray[np.bool_], n_real: int) -> Estimate:
    """Return the share of fake rows that something is true of, with Wilson's interval.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference": it has a
    width also where the share is 0 or 1. It covers the draw of the fake rows, and takes the real
    rows as given: the question is whether these very rows are copied.

    Args:
        hits: (M,) one a fake row, M >= 1.
        n_real: real rows that they were compared with.
    """
    count, share = len(hits), float(hits.mean())
    square = _QUANTILE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    reach *= _QUANTILE / (1 + square / count)
    # Rounding must not put the value outside of its own interval.
    low, high = max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))
    return Estimate(share, low, high, n_real, count)


def _require_finite(features: npt.NDArray[np.floating]) -> None:
    if not np.isfinite(features).all():
        raise StageError("nearest_real: features hold values that are not finite")
