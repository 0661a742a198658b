"""Near copies: which training row an image is a moved, mirrored, noisy or relit version of.

Coarse to fine, as copy detection is done at scale (Douze et al. 2021, "The 2021 image similarity
dataset and challenge"): descriptors of the image in its four mirrorings, at rest and moved, are
multiplied with those of all training rows; the few rows that come out nearest are aligned with it.
At 28 px that is 100 * 144 * M products an image for M training rows (up to 768 in place of 144 for
colour): 6 M for 400 rows, and 0.7 G, some 50 ms of one core, for 50,000. The rest does not grow.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.curation.alignment import residuals
from pipeline.curation.thumbs import (
    descriptors,
    lengths_of,
    likeness,
    mirror,
    moved_descriptors,
    pairs_worth,
    thumbs,
)
from pipeline.data.images import Images
from pipeline.errors import StageError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

_ALIGNED_ROWS = 6
_BLOCK_VALUES = 1 << 23  # of one product of descriptors: 32 MiB


@dataclass(frozen=True)
class Near:
    """The training row that each of N images stands nearest to once it is aligned.

    Attributes:
        index: (N,) the row; -1 where every row was left out.
        residual: (N,) of the alignment, in [0, 1]; see `alignment.residuals`.
        second: (N,) residual at the nearest row of another group; 1 where there is none.
    """

    index: Rows
    residual: Floats
    second: Floats

    @property
    def closeness(self) -> Floats:
        """Return (N,) residual ** 2 / second, in [0, 1]: low for a copy.

        The residual times its ratio to the second one. A copy of a row among others like it has a
        low residual and a middling ratio; a noisy copy of a row that stands alone has a low ratio
        and a middling residual; the product is low for both, and one limit serves.
        """
        return self.residual**2 / np.maximum(self.second, 1e-4)


class NearIndex:
    """The training rows, laid out once, to be searched many times."""

    def __init__(self, images: Images, groups: Rows) -> None:
        """Take (M, H, W, C) uint8 training rows and the (M,) number of each one's group.

        Raises:
            StageError: there are no rows.
        """
        if not len(images):
            raise StageError("near_copies: 0 training rows; at least 1 is needed to compare with")
        self._groups = groups
        self._thumbs = thumbs(images)
        described = descriptors(self._thumbs)
        self._descriptors = described.astype(np.float32).T.copy()
        self._lengths = lengths_of(described)

    def search(self, images: Images, without: Rows | None = None) -> Near:
        """Find the nearest rows of (N, H, W, C) uint8 images.

        Args:
            images: to be judged, of the training rows' size.
            without: (N,) group that each one's search leaves out: its parent's, or its own.
        """
        small = thumbs(images)
        size = max(1, _BLOCK_VALUES // (8 * len(self._groups)))
        parts = [
            self._search_block(
                small[start : start + size],
                None if without is None else without[start : start + size],
            )
            for start in range(0, len(small), size)
        ]
        if not parts:
            return Near(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        columns = zip(*((part.index, part.residual, part.second) for part in parts), strict=True)
        return Near(*(np.concatenate(column) for column in columns))

    def _search_block(self, small: Images, without: Rows | None) -> Near:
        alike, kinds = self._coarse(small)
        if without is not None:
            alike[without[:, None] == self._groups] = -np.inf
        count = min(pairs_worth(small, _ALIGNED_ROWS), len(self._groups))
        # Stable, so that rows that are as like come in their own order.
        rows = np.argsort(-alike, axis=1, kind="stable")[:, :count]
        chosen = np.take_along_axis(alike, rows, axis=1)
        kind = np.take_along_axis(kinds, rows, axis=1).ravel()
        theirs = self._thumbs[rows.ravel()]
        for number in range(1, 4):
            theirs[kind == number] = mirror(theirs[kind == number], number)
        found = residuals(small.repeat(count, axis=0), theirs).reshape(rows.shape)
        found[np.isneginf(chosen)] = np.inf
        return self._two_nearest(rows, found)

    def _coarse(self, small: Images) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the (N, M) largest cosine over all versions of an image, and its mirroring."""
        every = np.stack(
            [
                likeness(versions, self._descriptors, self._lengths)
                for versions in moved_descriptors(small)
            ]
        )
        kind = every.argmax(axis=0)
        return np.take_along_axis(every, kind[None], axis=0)[0], kind

    def _two_nearest(self, rows: Rows, found: Floats) -> Near:
        order = np.argsort(found, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, axis=1)
        found = np.take_along_axis(found, order, axis=1)
        groups = self._groups[rows]
        others = np.where(groups == groups[:, :1], np.inf, found).min(axis=1)
        none = np.isinf(found[:, 0])
        return Near(
            np.where(none, -1, rows[:, 0]).astype(np.int64),
            np.where(none, 1.0, found[:, 0]),
            np.where(np.isinf(others), 1.0, others),
        )
