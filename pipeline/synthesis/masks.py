"""Masks of inpainting: where an image is drawn anew. Drawn, the user's files, or the rows' own.

All are (H, W) bool, true where the image is drawn anew, and mark a part and leave a part.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import Limits, Rejected, decode_image, quiet_pillow
from pipeline.data.images import decode_png
from pipeline.data.store import Samples
from pipeline.errors import InputError, StageError
from pipeline.hashing import digest_bytes
from pipeline.params import SynthesizeParams

Mask = npt.NDArray[np.bool_]
MaskKind = Literal["box", "border", "user", "own"]

OWN_COLUMN = "mask"  # of the sample store, where prepare keeps what a manifest's masks mark

_MASK_BYTES = 16 << 20
_MOST_MASKS = 10_000
_MARKED = 128  # the least grey value that is drawn anew
_LEAST_SIDES, _MOST_SIDES = 0.5, 2.0  # height over width of a box


def read_masks(folder: Path, side_px: int) -> tuple[tuple[str, Mask], ...]:
    """Return name -> (H, W) bool of the PNG files of a folder, by name; white is drawn anew.

    Raises:
        InputError: no masks, too many, or one that is unreadable, of another size, or that leaves
            nothing to draw or nothing to keep.
    """
    files = mask_files(folder)
    if not files:
        raise InputError(
            f"{folder}: no masks (*.png); put grey PNG files of {side_px} x {side_px} px there, "
            "white where the image is drawn anew, or set synthesize.mask to box, border or own"
        )
    if len(files) > _MOST_MASKS:
        raise InputError(f"{folder}: {len(files):,} masks; at most {_MOST_MASKS:,} are read")
    limits = Limits(_MASK_BYTES, side_px * side_px * 64)
    masks: list[tuple[str, Mask]] = []
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
            mask = found.pixels.mean(axis=2) >= _MARKED
            if not _has_both(mask):
                kind = "white" if mask.all() else "black"
                raise InputError(
                    f"{file}: an all-{kind} mask; white is drawn anew and black is kept: it needs "
                    "both"
                )
            masks.append((file.name, mask))
    return tuple(masks)


def own_masks(training: Samples) -> dict[int, Mask]:
    """Return row -> (H, W) bool of the rows' own masks, as prepare stored them.

    Rows without a mask are left out, and so are those whose mask marks all of the image or nothing.

    Raises:
        InputError: the sample store has no masks.
        StageError: a stored mask is damaged.
    """
    if OWN_COLUMN not in training.extra:
        raise InputError(
            f"synthesize.mask = own: the sample store has no column `{OWN_COLUMN}`; run `replenish "
            "prepare` on a manifest with masks (prepare.source = manifest, "
            "prepare.columns.mask), or set synthesize.mask to box, border or user"
        )
    shape = training.images.shape[1:3]
    masks: dict[int, Mask] = {}
    for row, png in enumerate(training.extra[OWN_COLUMN]):
        if png is None:
            continue
        mask = _stored(png, training.ids[row], shape)
        if _has_both(mask):
            masks[row] = mask
    return masks


def mask_files(folder: Path) -> list[Path]:
    """Return the PNG files of a folder of masks, by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png")


def masks_digest(params: SynthesizeParams) -> str:
    """Return a digest of the mask files that the section asks for; empty where it asks for none.

    The rows' own masks lie in the sample store, whose files count by their content already.
    """
    if params.mode != "inpaint" or params.mask != "user":
        return ""
    parts: list[Any] = [
        (file.name, digest_bytes(file.read_bytes()))
        for file in mask_files(Path(params.mask_path))
        if file.is_file() and file.stat().st_size <= _MASK_BYTES
    ]
    return digest_bytes(repr(parts).encode())


def draw_box(side: int, share: float, border: bool, chance: np.random.Generator) -> Mask:
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


def _stored(png: bytes, identity: str, shape: Sequence[int]) -> Mask:
    try:
        mask = np.asarray(decode_png(png, "L")[:, :, 0] >= _MARKED)
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged(identity, str(error)) from None
    if mask.shape != tuple(shape):
        height, width = mask.shape
        raise _damaged(identity, f"{width} x {height} px for an image of {shape[1]} x {shape[0]}")
    return mask


def _damaged(identity: str, what: str) -> StageError:
    return StageError(
        f"synthesize: the mask of training row {identity[:12]} is damaged ({what}); run `replenish "
        "prepare --force`"
    )


def _has_both(mask: Mask) -> bool:
    return bool(mask.any() and not mask.all())
