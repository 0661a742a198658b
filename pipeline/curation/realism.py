"""Realism: how far a candidate lies from the real rows of its class, and from the other classes.

The distance to the k-th nearest real row marks the support of a class (Kynkaanniemi et al. 2019,
"Improved precision and recall metric for assessing generative models"), and is brought to the
class's own scale, so that a thin class, whose rows stand apart, is not held against its candidates.
There is a rule for either end: what lies outside the support may not be of the class, and what lies
in its very middle shows nothing new.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.metrics.estimate import Rows, require_features

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_NEIGHBOURS = 5
_PRIOR_ROWS = 5  # of all classes together, in the scale of one
_BLOCK_VALUES = 1 << 22
_TINY = 1e-9


@dataclass(frozen=True)
class Support:
    """Where each of N rows lies.

    Attributes:
        distance: (N,) to the k-th nearest real row of the meant class, over the median of what the
            class's real rows have among themselves: about 1 for a real row.
        ratio: (N,) that distance over the least of another class; above 1, the other is nearer.
    """

    distance: Floats
    ratio: Floats


class RealSupport:
    """The real rows of all classes in feature space."""

    def __init__(self, features: Rows, labels: Labels) -> None:
        """Take the real rows' (M, D) features and (M,) labels.

        Features are standardised by the real rows and brought to length 1; one that is constant is
        left out by that, and where all are, every distance is 0 and no row stands out.

        Raises:
            StageError: there are no rows, or a feature is not finite.
        """
        require_features("realism", "real", features, 1)
        if len(features) != len(labels):
            raise StageError(f"realism: {len(features)} features of {len(labels)} real rows")
        self._width = features.shape[1]
        self._mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        live = deviation > 1e-6 * np.maximum(1.0, np.abs(self._mean))
        self._gain = np.where(live, 1.0 / np.where(live, deviation, 1.0), 0.0)
        self._labels = labels
        self._rows = self._normalise(features)
        self._classes = np.unique(labels)
        self._scales = self._fit_scales()

    def place(self, features: Rows, labels: Labels) -> Support:
        """Return where (N, D) features with meant (N,) labels lie.

        A class without real rows is measured against all of them.

        Args:
            features: of the rows.
            labels: that they are meant to show.

        Raises:
            StageError: a feature is not finite, or there are not as many as of the real rows.
        """
        if not len(labels):
            return Support(np.zeros(0), np.zeros(0))
        require_features("realism", "candidate", features, 1)
        if features.shape[1] != self._width:
            raise StageError(
                f"realism: candidates have {features.shape[1]} features and real rows "
                f"{self._width}; take both from the same encoder"
            )
        return self._place(self._normalise(features), labels, None)

    def place_own(self, rows: Labels) -> Support:
        """Return where (N,) of the real rows lie, N >= 1, each left out of its own search."""
        return self._place(self._rows[rows], self._labels[rows], rows)

    def _place(self, rows: Floats, labels: Labels, own: Labels | None) -> Support:
        block = max(1, _BLOCK_VALUES // len(self._rows))
        parts = [
            self._place_block(
                rows[start : start + block],
                labels[start : start + block],
                None if own is None else own[start : start + block],
            )
            for start in range(0, len(labels), block)
        ]
        return Support(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _place_block(
        self, rows: Floats, labels: Labels, own: Labels | None
    ) -> tuple[Floats, Floats]:
        gaps = _distances(rows, self._rows)
        if own is not None:
            gaps[np.arange(len(gaps)), own] = np.inf
        far = np.stack(
            [
                _kth(gaps[:, self._labels == label]) / scale
                for label, scale in zip(self._classes, self._scales, strict=True)
            ],
            axis=1,
        )
        mine = labels[:, None] == self._classes
        known = mine.any(axis=1)
        distance = np.where(known, np.where(mine, far, np.inf).min(axis=1), far.min(axis=1))
        others = np.where(mine, np.inf, far).min(axis=1)
        # A class of one row has no other to be near to once that row is left out.
        distance = np.where(np.isinf(distance), 1.0, distance)
        both = np.isfinite(others) & (others > _TINY)
        ratio = np.where(both, distance / np.where(both, others, 1.0), 0.0)
        # Rounded: the last digits of a product depend on how many rows it was taken of.
        return distance.round(5), ratio.round(5)

    def _fit_scales(self) -> Floats:
        """Return each class's median distance to the k-th nearest, drawn to that of all."""
        medians = np.full(len(self._classes), np.nan)
        sizes = np.zeros(len(self._classes))
        for i, label in enumerate(self._classes):
            rows = self._rows[self._labels == label]
            sizes[i] = len(rows)
            if len(rows) > 1:
                gaps = _distances(rows, rows)
                np.fill_diagonal(gaps, np.inf)
                medians[i] = max(_TINY, float(np.median(_kth(gaps))))
        if np.isnan(medians).all():
            return np.ones(len(medians))
        all_of_them = float(np.exp(np.nanmean(np.log(medians))))
        weight = np.where(np.isnan(medians), 0.0, sizes)
        logs = weight * np.log(np.where(np.isnan(medians), 1.0, medians))
        scales: Floats = np.exp((logs + _PRIOR_ROWS * np.log(all_of_them)) / (weight + _PRIOR_ROWS))
        return scales

    def _normalise(self, features: Rows) -> Floats:
        rows = (features.astype(np.float64) - self._mean) * self._gain
        length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
        normalised: Floats = rows / np.maximum(length, _TINY)
        return normalised


def _distances(one: Floats, other: Floats) -> Floats:
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    distances: Floats = np.sqrt(np.maximum(squares, 0.0))
    return distances


def _kth(gaps: Floats) -> Floats:
    """Return the (N,) distance to the k-th nearest of n columns, k = min(5, n - 1), at least 1."""
    k = max(1, min(_NEIGHBOURS, gaps.shape[1] - 1))
    nearest: Floats = np.partition(gaps, k - 1, axis=1)[:, k - 1]
    return nearest
