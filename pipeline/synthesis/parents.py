"""Which training image a candidate is made from, how strongly, and where.

All three are functions of (root seed, class, index), as the candidate itself is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import Limits, Rejected, decode_image, quiet_pillow
from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.errors import InputError, StageError
from pipeline.hashing import digest_bytes
from pipeline.params import SynthesizeParams
from pipeline.seeds import numpy_generator

Mode = Literal["generate", "edit", "cross_class", "inpaint"]

_MASK_BYTES = 16 << 20
_MOST_MASKS = 10_000
_LEAST_SIDES, _MOST_SIDES = 0.5, 2.0  # height over width of a box


@dataclass(frozen=True)
class Origin:
    """What a candidate starts from.

    Attributes:
        row: of the parent among the training rows; None starts from noise.
        strength: share of the way that is stepped back, in [0, 1].
        mask: (H, W) bool, true where the image is drawn anew; None without inpainting.
        mask_name: which mask; empty without.
    """

    row: int | None = None
    strength: float = 1.0
    mask: npt.NDArray[np.bool_] | None = None
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
    """

    mode: Mode
    images: Images
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    strengths: tuple[float, ...]
    mask: Literal["box", "border", "user"]
    mask_share: float
    masks: tuple[tuple[str, npt.NDArray[np.bool_]], ...]
    resample_times: int

    def origin(self, seed: int, label: int, index: int) -> Origin:
        """Return what candidate `index` of a class starts from.

        Raises:
            InputError: there is no image to start from.
        """
        rows = self._rows(seed, label)
        # In turn through a shuffled list: every parent is used as often as any other.
        row = int(rows[index % len(rows)])
        chance = numpy_generator(seed, "edit", label, index)
        if self.mode != "inpaint":
            return Origin(row, self.strengths[int(chance.integers(len(self.strengths)))])
        if self.mask == "user":
            name, mask = self.masks[int(chance.integers(len(self.masks)))]
            return Origin(row, 1.0, mask, name)
        box = _draw_box(self.images.shape[1], self.mask_share, self.mask == "border", chance)
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
        StageError: a row that is no real training row.
    """
    if mode == "generate":
        return None
    wrong = {*training.splits} - {"train"} or {*training.origins} - {"real"}
    if wrong:
        raise StageError(
            f"synthesize: rows of {sorted(wrong)} among the images to edit; only real training "
            "rows may be parents; run `replenish prepare --force`"
        )
    masks: tuple[tuple[str, npt.NDArray[np.bool_]], ...] = ()
    if mode == "inpaint" and params.mask == "user":
        masks = read_masks(Path(params.mask_path), training.images.shape[1])
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
    )


def read_masks(folder: Path, side_px: int) -> tuple[tuple[str, npt.NDArray[np.bool_]], ...]:
    """Return name -> (H, W) bool of the PNG files of a folder, by name; white is drawn anew.

    Raises:
        InputError: no masks, too many, or one that is unreadable, of another size, or that leaves
            nothing to draw or nothing to keep.
    """
    files = mask_files(folder)
    if not files:
        raise InputError(
            f"{folder}: no masks (*.png); put grey PNG files of {side_px} x {side_px} px there, "
            "white where the image is drawn anew, or set synthesize.mask to box or border"
        )
    if len(files) > _MOST_MASKS:
        raise InputError(f"{folder}: {len(files):,} masks; at most {_MOST_MASKS:,} are read")
    limits = Limits(_MASK_BYTES, side_px * side_px * 64)
    masks: list[tuple[str, npt.NDArray[np.bool_]]] = []
    with quiet_pillow():
        for file in files:
            found = decode_image(file, limits)
            if isinstance(found, Rejected):
                raise InputError(f"{file}: no usable mask: {found.reason} ({found.detail})")
            height, width, _ = found.pixels.shape
            if (height, width) != (side_px, side_px):
                raise InputError(
                    f"{file}: a mask of {width} x {height} px for images of {side_px} x {side_px} "
                    "px; save it at the size of the images (prepare.image_size_px)"
                )
            mask = found.pixels.mean(axis=2) >= 128
            if mask.all() or not mask.any():
                kind = "white" if mask.all() else "black"
                raise InputError(
                    f"{file}: an all-{kind} mask; white is drawn anew and black is kept: it needs "
                    "both"
                )
            masks.append((file.name, mask))
    return tuple(masks)


def mask_files(folder: Path) -> list[Path]:
    """Return the PNG files of a folder of masks, by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png")


def masks_digest(params: SynthesizeParams) -> str:
    """Return a digest of the masks that the section asks for; empty where it asks for none."""
    if params.mode != "inpaint" or params.mask != "user":
        return ""
    parts: list[Any] = [
        (file.name, digest_bytes(file.read_bytes()))
        for file in mask_files(Path(params.mask_path))
        if file.is_file() and file.stat().st_size <= _MASK_BYTES
    ]
    return digest_bytes(repr(parts).encode())


def _draw_box(
    side: int, share: float, border: bool, chance: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return a mask of about `share` of the image: a box anywhere, or all but a box in the middle.

    It has at least one pixel and leaves at least one.
    """
    area = (1 - share if border else share) * side * side
    ratio = 1.0 if border else float(np.exp(chance.uniform(*np.log([_LEAST_SIDES, _MOST_SIDES]))))
    height = min(max(1, round((area * ratio) ** 0.5)), side - 1)
    width = min(max(1, round(area / height)), side)
    if border:
        top, left = (side - height) // 2, (side - width) // 2
    else:
        top = int(chance.integers(side - height + 1))
        left = int(chance.integers(side - width + 1))
    box = np.zeros((side, side), dtype=np.bool_)
    box[top : top + height, left : left + width] = True
    return ~box if border else box
