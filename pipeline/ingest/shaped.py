"""One row of a source, decoded and brought to the shape of the set."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.checks.facts import LOOK_PX, Look, look
from pipeline.data.decoding import Decoded, Limits, Rejected, decode_image
from pipeline.data.images import Images
from pipeline.data.shaping import Fit, is_colour, to_grey, to_square
from pipeline.readers.source import NO_FILE, Contents, Crop, Payload

OUTSIDE = "box outside of the image"
MASK_SIZE = "mask of another size"

_SMALLEST_CROP_PX = 2
_PNG_BYTES = 100  # of a PNG without its pixels, at most


@dataclass(frozen=True)
class Shape:
    """What every image is brought to.

    Attributes:
        side_px: of the square images.
        mode: of the whole set; auto = colour where any image shows it.
        fit: how other shapes become square.
        limits: what is too much.
    """

    side_px: int
    mode: Literal["auto", "L", "RGB"]
    fit: Fit
    limits: Limits


@dataclass(frozen=True)
class Shaped:
    """A row that can be used.

    Attributes:
        row: of the source.
        pixels: (S, S, C) uint8; C = 3 where the image shows colour and the mode may be RGB.
        coloured: does the image show colour?
        channels: of the image as it came, 1 or 3.
        look: what is measured of the image as it came.
        conversions: names of those that were needed.
        mask: (S, S) uint8, 255 = marked; None without one.
        png: the file itself, where it is a plain PNG of these very pixels; else None.
    """

    row: int
    pixels: Images
    coloured: bool
    channels: int
    look: Look
    conversions: tuple[str, ...]
    mask: Images | None
    png: bytes | None


def shape_row(
    row: int, contents: Contents, masks: Contents | None, shape: Shape
) -> Shaped | Rejected:
    """Return a row, or why it cannot be used."""
    # Twice of what is measured and kept: the filters of both reach across two pixels.
    enough_px = 2 * max(shape.side_px, LOOK_PX)
    decoded = _decoded(contents.fetch(row), shape.limits, enough_px)
    if isinstance(decoded, Rejected):
        return decoded
    pixels = decoded.pixels
    channels, coloured = pixels.shape[2], is_colour(pixels)
    if channels == 3 and (shape.mode == "L" or not coloured):
        pixels = to_grey(pixels) if coloured else pixels[:, :, :1]
    mask = _mask(masks.fetch(row), decoded, shape) if masks is not None else None
    if isinstance(mask, Rejected):
        return mask
    square, made = to_square(pixels, shape.side_px, shape.fit)
    return Shaped(
        row,
        np.ascontiguousarray(square),
        coloured,
        channels,
        look(decoded.pixels, (decoded.width, decoded.height)),
        (*decoded.conversions, *made),
        mask,
        decoded.png if square is decoded.pixels and _is_packed(decoded) else None,
    )


def _is_packed(decoded: Decoded) -> bool:
    return decoded.png is not None and len(decoded.png) <= decoded.pixels.nbytes + _PNG_BYTES


def _mask(payload: Payload | Rejected, image: Decoded, shape: Shape) -> Images | Rejected | None:
    """Return (S, S) uint8, 255 where at least half of a pixel is marked; None without a mask."""
    decoded = _decoded(payload, shape.limits)
    if isinstance(decoded, Rejected):
        nothing = decoded.reason == NO_FILE
        return None if nothing else Rejected(decoded.reason, f"its mask: {decoded.detail}")
    found = decoded.pixels
    height, width = found.shape[:2]
    if (width, height) != (image.width, image.height):
        detail = f"{width} x {height}, and the image {image.width} x {image.height}"
        return Rejected(MASK_SIZE, detail)
    marked = np.where(found.max(axis=2, keepdims=True) > 0, 255, 0).astype(np.uint8)
    square, _ = to_square(marked, shape.side_px, shape.fit)
    return np.where(square[:, :, 0] >= 128, 255, 0).astype(np.uint8)


def _decoded(
    payload: Payload | Rejected, limits: Limits, enough_px: int | None = None
) -> Decoded | Rejected:
    if isinstance(payload, Rejected):
        return payload
    if isinstance(payload, np.ndarray):
        height, width = payload.shape[:2]
        if height * width > limits.image_pixels:
            detail = f"{width} x {height}; at most {limits.image_pixels} (max_image_pixels)"
            return Rejected("too many pixels", detail)
        return Decoded(payload, (), width, height)
    if not isinstance(payload, Crop):
        return decode_image(payload, limits, enough_px)
    whole = decode_image(payload.of, limits)
    return whole if isinstance(whole, Rejected) else _crop(whole, payload)


def _crop(whole: Decoded, crop: Crop) -> Decoded | Rejected:
    left, top, wide, high = crop.box
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1 = min(whole.width, int(np.ceil(left + wide)))
    y1 = min(whole.height, int(np.ceil(top + high)))
    if x1 - x0 < _SMALLEST_CROP_PX or y1 - y0 < _SMALLEST_CROP_PX:
        box = ", ".join(f"{value:g}" for value in crop.box)
        return Rejected(OUTSIDE, f"box {box} in an image of {whole.width} x {whole.height} px")
    pixels = np.ascontiguousarray(whole.pixels[y0:y1, x0:x1])
    return Decoded(pixels, whole.conversions, x1 - x0, y1 - y0)
