"""Which training image a candidate is made from, how strongly, and where.

All three are functions of (root seed, class, index), as the candidate itself is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.errors import InputError, StageError
from pipeline.params import SynthesizeParams
from pipeline.seeds import numpy_generator
from pipeline.synthesis.masks import Mask, MaskKind, draw_box, own_masks, read_masks

Mode = Literal["generate", "edit", "cross_class", "inpaint"]


@dataclass(frozen=True)
class Origin:
    """What a candidate starts from.

    Attributes:
        row: of the parent among the training rows; None starts from noise.
        strength: share of the way that is stepped back, in [0, 1].
        mask: (H, W) bool, true where the image is drawn anew; None without inpainting.
        mask_name: file of a user's mask, or which kind it is; empty without.
    """

    row: int | None = None
    strength: float = 1.0
    mask: Mask | None = None
    mask_name: str = ""


@dataclass(frozen=True)
class Lineage:
    """What the candidates of a shard were made from.

    Attributes:
        rows: (N,) parents among the training rows.
        columns: parent_id, strength and mask of each, for the sample store.
    """

    rows: npt.NDArray[np.int64]
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class Editing:
    """The training rows that candidates are made from, and how.

    Attributes:
        mode: what is done.
        images: (N, H, W, C) uint8 training rows.
        labels: (N,) of them.
        ids: of them.
        classes: class names by label.
        strengths: of edits, drawn evenly (a mixture of strengths, Trabucco et al. 2024).
        mask: what is drawn anew.
        mask_share: share of the image that a box or border covers.
        masks: the user's, name -> (H, W) bool.
        resample_times: passes over each noise level of inpainting.
        own: row -> (H, W) bool of the rows that have a usable mask; empty for other masks.
    """

    mode: Mode
    images: Images
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    strengths: tuple[float, ...]
    mask: MaskKind
    mask_share: float
    masks: tuple[tuple[str, Mask], ...]
    resample_times: int
    own: Mapping[int, Mask] = field(default_factory=dict)

    def origin(self, seed: int, label: int, index: int) -> Origin:
        """Return what candidate `index` of a class starts from.

        Raises:
            InputError: there is no image to start from, or none with a mask of its own.
        """
        rows = self._rows(seed, label)
        # In turn through a shuffled list: every parent is used as often as any other.
        row = int(rows[index % len(rows)])
        chance = numpy_generator(seed, "edit", label, index)
        if self.mode != "inpaint":
            return Origin(row, self.strengths[int(chance.integers(len(self.strengths)))])
        if self.mask == "own":
            return Origin(row, 1.0, self.own[row], self.mask)
        if self.mask == "user":
            name, mask = self.masks[int(chance.integers(len(self.masks)))]
            return Origin(row, 1.0, mask, name)
        box = draw_box(self.images.shape[1], self.mask_share, self.mask == "border", chance)
        return Origin(row, 1.0, box, self.mask)

    def lineage(self, seed: int, label: int, indices: Sequence[int]) -> Lineage:
        """Return what some candidates of a class start from."""
        origins = [self.origin(seed, label, index) for index in indices]
        rows = np.asarray([origin.row for origin in origins], dtype=np.int64)
        return Lineage(
            rows,
            {
                "parent_id": [self.ids[row] for row in rows],
                "strength": [origin.strength for origin in origins],
                "mask": [origin.mask_name for origin in origins],
            },
        )

    @property
    def needs_own(self) -> bool:
        """Say whether each candidate is inpainted within its parent's own mask."""
        return self.mode == "inpaint" and self.mask == "own"

    @cached_property
    def _orders(self) -> dict[tuple[int, int], npt.NDArray[np.int64]]:
        return {}

    def _rows(self, seed: int, label: int) -> npt.NDArray[np.int64]:
        found = self._orders.get((seed, label))
        if found is None:
            own = self.labels == label
            rows = np.flatnonzero(~own if self.mode == "cross_class" else own)
            if not len(rows):
                other = "another class" if self.mode == "cross_class" else "the class"
                raise InputError(
                    f"synthesize.mode = {self.mode}: there is no training image of {other} to "
                    f"make images of {self.classes[label]} from; set synthesize.mode = generate"
                )
            if self.needs_own:
                rows = rows[[row in self.own for row in rows.tolist()]]
                if not len(rows):
                    raise InputError(
                        f"synthesize.mask = own: no training image of {self.classes[label]} has a "
                        "mask that marks a part and leaves a part; give some in the manifest that "
                        "prepare reads, or set synthesize.mask to box, border or user"
                    )
            found = numpy_generator(seed, "parents", label).permutation(rows)
            self._orders[seed, label] = found
        return found


def make_editing(
    params: SynthesizeParams, training: Samples, classes: Sequence[str], mode: Mode
) -> Editing | None:
    """Return how candidates are made from training rows; None where they are drawn from noise.

    Args:
        params: the section; strengths and masks are its.
        training: rows to start from.
        classes: class names by label.
        mode: what is done with them.

    Raises:
        InputError: masks are missing, unreadable or of another size than the images.
        StageError: a row that is no real training row, or a damaged mask of its own.
    """
    if mode == "generate":
        return None
    wrong = {*training.splits} - {"train"} or {*training.origins} - {"real"}
    if wrong:
        raise StageError(
            f"synthesize: rows of {sorted(wrong)} among the images to edit; only real training "
            "rows may be parents; run `replenish prepare --force`"
        )
    masks: tuple[tuple[str, Mask], ...] = ()
    own: Mapping[int, Mask] = {}
    if mode == "inpaint" and params.mask == "user":
        masks = read_masks(Path(params.mask_path), training.images.shape[1])
    if mode == "inpaint" and params.mask == "own":
        own = own_masks(training)
    return Editing(
        mode=mode,
        images=training.images,
        labels=training.labels,
        ids=training.ids,
        classes=tuple(classes),
        strengths=params.strengths,
        mask=params.mask,
        mask_share=params.mask_share,
        masks=masks,
        resample_times=params.resample_times,
        own=own,
    )
