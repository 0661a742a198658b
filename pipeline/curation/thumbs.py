"""Small forms of an image: the thumb that is aligned, and the descriptor that is searched.

A thumb has at most 32 px a side, so that aligning two costs the same whatever the images' size; a
move by 2 px of a larger image is less than 2 px of its thumb. A descriptor is the thumb brought to
at most 16 px, blurred, freed of brightness and contrast, and rounded to whole numbers whose
products are exact in float32: a search finds the same rows however it is cut into blocks.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images

Floats = npt.NDArray[np.float32]
Descriptors = npt.NDArray[np.int8]
Pixels = TypeVar("Pixels", npt.NDArray[np.uint8], npt.NDArray[np.int8])

THUMB_PX = 32
_DESCRIPTOR_PX = 16
# Root mean square of a descriptor's values: few reach the end of int8, and the square of the whole
# stays below 2 ** 24 for up to 16 x 16 x 3 values, up to which float32 counts exactly.
_SPREAD = 32.0
_INT8 = 127
RIM_PX = 2  # around the middle that is described


def thumbs(images: Images, most_px: int = THUMB_PX) -> Images:
    """Return (N, h, w, C) uint8, h and w at most `most_px`.

    Images that fit are returned as they are. Of larger ones, a cell is the smoothed mean of a block
    of pixels: unsmoothed, a move by part of a block would look like another picture.
    """
    _, height, width, _ = images.shape
    if max(height, width) <= most_px:
        return images
    small = blur(_shrink(images.astype(np.float32), most_px))
    rounded: Images = np.floor(small + np.float32(0.5)).astype(np.uint8)
    return rounded


def descriptors(small: Images) -> Descriptors:
    """Return (N, D) descriptors of the middles of (N, h, w, C) thumbs; 0 where blank.

    Centred by channel and of one length, so that neither brightness nor a colour cast nor contrast
    counts: the product of two says how alike their contents are. A rim is left out, so that the
    picture can be moved within the frame of another and still be compared in full.
    """
    _, height, width, _ = small.shape
    down, right = _rim(height), _rim(width)
    return _describe(small[:, down : height - down, right : width - right])


def moved_descriptors(small: Images, reach_px: int = RIM_PX) -> list[list[Descriptors]]:
    """Return descriptors of (N, h, w, C) thumbs' four mirrorings (see `mirror`), at all moves.

    Args:
        small: thumbs.
        reach_px: of the moves, in each direction; at most `RIM_PX` and an eighth of the side.
    """
    _, height, width, channels = small.shape
    down, right = _rim(height), _rim(width)
    tall, wide = height - 2 * down, width - 2 * right
    versions = [
        _describe(small[:, top : top + tall, left : left + wide])
        for top in range(max(0, down - reach_px), down + min(down, reach_px) + 1)
        for left in range(max(0, right - reach_px), right + min(right, reach_px) + 1)
    ]
    # Descriptors are mirrored in place of images: shrinking and blurring treat both ends alike.
    y, x = (-(-side // _block(side)) for side in (tall, wide))
    return [
        [mirror(one.reshape(-1, y, x, channels), kind).reshape(len(small), -1) for one in versions]
        for kind in range(4)
    ]


def likeness(
    versions: Sequence[Descriptors], columns: Floats, lengths: Floats
) -> npt.NDArray[np.float32]:
    """Return the (N, M) largest cosine of any version of an image with each of M rows.

    Rounding leaves descriptors of lengths some percent apart; a plain product would put long ones
    of similar pictures before the very same picture.

    Args:
        versions: (N, D) each, at least one.
        columns: (D, M) descriptors of the rows.
        lengths: (M,) of them; see `lengths_of`.
    """
    best = np.full((len(versions[0]), columns.shape[1]), -np.inf, dtype=np.float32)
    for version in versions:
        product = version.astype(np.float32) @ columns
        product /= lengths_of(version)[:, None]
        np.maximum(best, product, out=best)
    best /= lengths
    return best


def lengths_of(rows: Descriptors) -> Floats:
    """Return the (N,) lengths of (N, D) descriptors; 1 of blank ones, that nothing is like."""
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.int64)
    lengths: Floats = np.sqrt(np.maximum(squares, 1)).astype(np.float32)
    return lengths


def mirror(small: Pixels, kind: int) -> Pixels:
    """Return (N, h, w, C) images as they are (0), mirrored in x (1), in y (2) or in both (3)."""
    return small[:, :: -1 if kind & 2 else 1, :: -1 if kind & 1 else 1]


def _rim(side: int) -> int:
    return min(RIM_PX, side // 8)


def _block(side: int) -> int:
    return -(-side // _DESCRIPTOR_PX)


def _describe(middle: Images) -> Descriptors:
    values = blur(_shrink(middle.astype(np.float32), _DESCRIPTOR_PX))
    values -= values.mean(axis=(1, 2), keepdims=True)
    flat = values.reshape(len(values), -1)
    length = np.sqrt(np.einsum("nd,nd->n", flat, flat))[:, None]
    # A picture within half a grey level has no content but rounding.
    root = np.sqrt(np.float32(flat.shape[1]))
    blank = length < root / 2
    flat *= np.where(blank, 0, _SPREAD * root / np.maximum(length, np.float32(1e-6)))
    return np.clip(np.rint(flat), -_INT8, _INT8).astype(np.int8)


def _shrink(values: Floats, most_px: int) -> Floats:
    """Average blocks of pixels, at most `most_px` a side.

    The mean over what a block holds, and not a resampling, keeps noise averaged alike everywhere.
    """
    for axis in (1, 2):
        side = values.shape[axis]
        block = -(-side // most_px)
        if block == 2 and not side % 2:  # the usual case, several times as fast as reduceat
            even, odd = (values[(slice(None),) * axis + (slice(i, None, 2),)] for i in (0, 1))
            values = (even + odd) / np.float32(2)
        elif block > 1:
            sizes = _block_sizes(side, block)
            means = _block_means(values, sizes, axis)
            if (sizes != sizes[::-1]).any():
                means = (means + _block_means(values, sizes[::-1], axis)) / np.float32(2)
            values = means
    return values


def _block_means(values: Floats, sizes: npt.NDArray[np.int64], axis: int) -> Floats:
    shape = [1, 1, 1, 1]
    shape[axis] = len(sizes)
    starts = np.append(0, np.cumsum(sizes)[:-1])
    sums = np.add.reduceat(values, starts, axis=axis)
    means: Floats = (sums / sizes.reshape(shape)).astype(np.float32)
    return means


def _block_sizes(side: int, block: int) -> npt.NDArray[np.int64]:
    """Return the sizes of the blocks that make up a side.

    What is lacking is taken from both ends and the middle, so that a mirrored image has a mirrored
    thumb. An even number of blocks has no middle one: then the blocks are read from either end,
    and the two means averaged.
    """
    count = -(-side // block)
    sizes = np.full(count, block, dtype=np.int64)
    lacking = count * block - side
    sizes[0] -= lacking // 2
    sizes[-1] -= lacking // 2
    sizes[count // 2] -= lacking % 2
    return sizes


def blur(values: Floats) -> Floats:
    """Smooth (N, h, w, C) with the kernel 1, 2, 1 along both sides, borders repeated."""
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = np.pad(values, pad, mode="edge")
        side = values.shape[axis]
        before, after = (np.take(padded, range(start, start + side), axis=axis) for start in (0, 2))
        values = ((before + 2 * values + after) / np.float32(4)).astype(np.float32, copy=False)
    return values


def pairs_worth(small: Images, least: int) -> int:
    """Return how many alignments an image is worth: `least` at 28 px, more of smaller thumbs."""
    height, width = int(small.shape[1]), int(small.shape[2])
    return min(4 * least, max(least, least * 28 * 28 // (height * width)))
