"""Augmented rows, made once for all arms of a repetition.

How a row looks at a place of a batch depends on repetition, step, place and row alone. Arms of one
repetition draw mostly the same rows, so what the first one made serves the others too: on small
images augmentation is half of the work of training.
"""

import numpy as np
import numpy.typing as npt

from pipeline.data.augment import ImageAugment, Policy, build_image_augmentation
from pipeline.data.images import Images
from pipeline.seeds import derive_seed

_Key = tuple[Policy, int, bool]  # policy, step, are the rows added ones?
_MOST_BYTES = 512 << 20  # of kept views, in each worker


class Views:
    """The augmented rows of one repetition."""

    def __init__(
        self, images: Images, seed: int, repetition: int, flip: bool, keep: bool = True
    ) -> None:
        """Take the rows.

        Args:
            images: (N, H, W, C) uint8 training rows.
            seed: of the stage.
            repetition: index of the repetition.
            flip: may augmentation mirror an image?
            keep: for arms to come, as far as memory allows.
        """
        self.repetition = repetition
        self._images, self._seed, self._flip = images, seed, flip
        self._augment: dict[Policy, ImageAugment] = {}
        self._kept: dict[_Key, tuple[npt.NDArray[np.int64], Images]] = {}
        self._free = _MOST_BYTES if keep else 0

    def at(
        self, policy: Policy, step: int, rows: npt.NDArray[np.int64], added: npt.NDArray[np.bool_]
    ) -> Images:
        """Return (B, H, W, C) uint8 views of the (B,) rows; `added` tells which are added ones."""
        found = self._images[rows]
        if policy != "none":
            for kind in (False, True):
                places = np.flatnonzero(added == kind)
                if len(places):
                    found[places] = self._views((policy, step, kind), rows, places)
        return found

    def _views(
        self, key: _Key, rows: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
    ) -> Images:
        policy, step, kind = key
        kept = self._kept.get(key)
        if kept is None:
            empty = np.full(len(rows), -1, dtype=np.int64)
            kept = empty, np.zeros((len(rows), *self._images.shape[1:]), dtype=np.uint8)
            if kept[1].nbytes <= self._free:
                self._free -= kept[1].nbytes
                self._kept[key] = kept
        if policy not in self._augment:
            self._augment[policy] = build_image_augmentation(policy, self._flip)
        augment = self._augment[policy]
        known, views = kept
        first = derive_seed(self._seed, "evaluate", "augmentation", self.repetition, step, kind)
        for place in places[known[places] != rows[places]]:
            views[place] = augment(self._images[rows[place]], first + int(place))
            known[place] = rows[place]
        return views[places]
