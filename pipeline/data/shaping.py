"""From decoded images of any shape to square ones of one size."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.data.images import Images

Fit = Literal["pad", "crop"]

PADDED = "padded to a square"
CROPPED = "cropped to a square"
RESIZED = "resized"

_SMALLEST_SIDE_PX = 8
LARGEST_AUTO_SIDE_PX = 32  # a first result on two cores; more is for who asks for it


def auto_side(longest_sides_px: Sequence[int]) -> int:
    """Return the side in px for images of these longest sides.

    It is their median, rounded to the nearest multiple of 4 (a half goes up) and kept in 8 to 32.
    """
    rounded = 4 * int(np.floor(np.median(longest_sides_px) / 4 + 0.5))
    return min(max(rounded, _SMALLEST_SIDE_PX), LARGEST_AUTO_SIDE_PX)


def is_colour(pixels: Images) -> bool:
    """Say whether (..., C) pixels show colour: three channels that differ somewhere."""
    if pixels.shape[-1] == 1:
        return False
    first = pixels[..., 0]
    return not (np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2]))


def to_grey(pixels: Images) -> Images:
    """Return (H, W, 1) of (H, W, 3): luma by ITU-R BT.601, as Pillow's mode L has it."""
    return np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.uint8)[:, :, None]


def to_square(pixels: Images, side_px: int, fit: Fit) -> tuple[Images, list[str]]:
    """Return (side, side, C) pixels, and the names of the conversions that were needed.

    `pad` scales the longer side to `side_px` and centres the image on black; `crop` cuts the
    centre square and scales that. The filter is Pillow's bicubic, which widens with the reduction
    and so does not alias (Parmar et al. 2022, "On Aliased Resizing", arXiv:2104.11222).
    """
    height, width, _ = pixels.shape
    conversions: list[str] = []
    if fit == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
        height = width = side
        conversions.append(CROPPED)
    longest = max(height, width)
    if longest != side_px:
        # Scaling comes before padding: the square around a 1 x 50,000,000 strip fits no memory.
        size = tuple(max(1, (2 * n * side_px + longest) // (2 * longest)) for n in (width, height))
        pixels = _resize(pixels, (size[0], size[1]))
        height, width, _ = pixels.shape
        conversions.append(RESIZED)
    if height != width:
        canvas = np.zeros((side_px, side_px, pixels.shape[2]), dtype=np.uint8)
        top, left = (side_px - height) // 2, (side_px - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        pixels = canvas
        conversions.append(PADDED)
    return pixels, conversions


def _resize(pixels: Images, size: tuple[int, int]) -> Images:
    bands = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(bands))
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
    return resized.reshape(*resized.shape[:2], pixels.shape[2])
