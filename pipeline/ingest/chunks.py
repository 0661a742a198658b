"""A chunk: some rows of a source, decoded and brought to one shape, kept as one file.

Chunks make a set of any size pass through little memory, and an interrupted run go on: a chunk
whose file stands is not decoded again.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.checks.facts import Facts, ImageFacts, gather, image_facts
from pipeline.data.decoding import Decoded, Limits, Rejected, decode_image
from pipeline.data.images import CHANNELS, ImageMode, Images, encode_png
from pipeline.data.shaping import Fit, is_colour, to_grey, to_square
from pipeline.folders import temporary_name
from pipeline.readers.source import NO_FILE, Contents, Crop, Payload

OUTSIDE = "box outside of the image"
MASK_SIZE = "mask of another size"

_SMALLEST_CROP_PX = 2
_FACTS = fields(Facts)


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
class Chunk:
    """The usable rows of a chunk.

    Attributes:
        rows: (M,) rows of the source, ascending.
        pixels: (M, S, S, C) uint8; C = 3 where one of them shows colour and the mode may be RGB.
        coloured: (M,) does the image show colour?
        channels: (M,) channels of the image as it came, 1 or 3.
        facts: of each image as it came.
        masks: (M, S, S) uint8, 255 = marked; (0, 0, 0) where the source has no masks.
        masked: (M,) has the row a mask?
        rejected: row, reason and detail of each row that cannot be used.
        conversions: what was converted -> number of images.
    """

    rows: npt.NDArray[np.int64]
    pixels: Images
    coloured: npt.NDArray[np.bool_]
    channels: npt.NDArray[np.uint8]
    facts: Facts
    masks: Images
    masked: npt.NDArray[np.bool_]
    rejected: tuple[tuple[int, str, str], ...]
    conversions: dict[str, int]

    def in_mode(self, mode: ImageMode) -> Images:
        """Return (M, S, S, C) pixels, C as the mode has it; (S, S, 1) spreads over three."""
        channels = CHANNELS[mode]
        if self.pixels.shape[3] == channels:
            return self.pixels
        if channels == 3:
            return self.pixels.repeat(3, axis=3)
        # Where the mode turned out to be grey no image shows colour: the channels are equal.
        return np.ascontiguousarray(self.pixels[:, :, :, :1])


def rows_per_chunk(side_px: int) -> int:
    """Return how many rows make a chunk: at most 16 MiB in colour, and 64 to 512."""
    return min(max((16 << 20) // (3 * side_px * side_px), 64), 512)


def write_chunk(
    contents: Contents, masks: Contents | None, rows: Sequence[int], shape: Shape, path: Path
) -> None:
    """Decode the rows and write their chunk, all at once or not at all."""
    one = decode_chunk(contents, masks, rows, shape)
    said = json.dumps({"rejected": one.rejected, "conversions": one.conversions})
    arrays = {
        "rows": one.rows,
        "pixels": one.pixels,
        "coloured": one.coloured,
        "channels": one.channels,
        "masks": one.masks,
        "masked": one.masked,
        "said": np.frombuffer(said.encode(), dtype=np.uint8),
        **{f"facts/{field.name}": getattr(one.facts, field.name) for field in _FACTS},
    }
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def read_chunk(path: Path) -> Chunk | None:
    """Return a chunk, or None where there is none or its file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        said = json.loads(arrays["said"].tobytes())
        return Chunk(
            arrays["rows"],
            arrays["pixels"],
            arrays["coloured"],
            arrays["channels"],
            Facts(**{field.name: arrays[f"facts/{field.name}"] for field in _FACTS}),
            arrays["masks"],
            arrays["masked"],
            tuple((int(row), str(reason), str(detail)) for row, reason, detail in said["rejected"]),
            said["conversions"],
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def decode_chunk(
    contents: Contents, masks: Contents | None, rows: Sequence[int], shape: Shape
) -> Chunk:
    """Return the chunk of the given rows of a source."""
    usable: list[_Shaped] = []
    rejected: list[tuple[int, str, str]] = []
    conversions: Counter[str] = Counter()
    for row in rows:
        one = _shaped(row, contents, masks, shape)
        if isinstance(one, Rejected):
            rejected.append((row, one.reason, one.detail))
        else:
            usable.append(one)
            conversions.update(one.conversions)
    side = shape.side_px
    channels = 3 if any(one.pixels.shape[2] == 3 for one in usable) else 1
    pixels = np.zeros((len(usable), side, side, channels), dtype=np.uint8)
    marked = np.zeros((len(usable) if masks is not None else 0, side, side), dtype=np.uint8)
    for i, one in enumerate(usable):
        pixels[i] = one.pixels  # one channel spreads over three
        if one.mask is not None:
            marked[i] = one.mask
    return Chunk(
        rows=np.asarray([one.row for one in usable], dtype=np.int64),
        pixels=pixels,
        coloured=np.asarray([one.coloured for one in usable], dtype=bool),
        channels=np.asarray([one.channels for one in usable], dtype=np.uint8),
        facts=gather([one.facts for one in usable]),
        masks=marked,
        masked=np.asarray([one.mask is not None for one in usable], dtype=bool),
        rejected=tuple(rejected),
        conversions=dict(sorted(conversions.items())),
    )


def encode_chunk(path: Path, kept: npt.NDArray[np.int64], mode: ImageMode) -> list[bytes]:
    """Return the PNG bytes of some rows of a chunk, given by their places in it."""
    chunk = read_chunk(path)
    if chunk is None:
        raise OSError(f"{path}: the chunk is gone or damaged")
    return [encode_png(image) for image in chunk.in_mode(mode)[kept]]


@dataclass(frozen=True)
class _Shaped:
    row: int
    pixels: Images
    coloured: bool
    channels: int
    facts: ImageFacts
    conversions: tuple[str, ...]
    mask: Images | None


def _shaped(
    row: int, contents: Contents, masks: Contents | None, shape: Shape
) -> _Shaped | Rejected:
    decoded = _decoded(contents.fetch(row), shape.limits)
    if isinstance(decoded, Rejected):
        return decoded
    pixels = decoded.pixels
    facts = image_facts(pixels)
    channels, coloured = pixels.shape[2], is_colour(pixels)
    if channels == 3 and (shape.mode == "L" or not coloured):
        pixels = to_grey(pixels) if coloured else pixels[:, :, :1]
    mask = _mask(masks.fetch(row), decoded.pixels, shape) if masks is not None else None
    if isinstance(mask, Rejected):
        return mask
    square, made = to_square(pixels, shape.side_px, shape.fit)
    return _Shaped(
        row,
        np.ascontiguousarray(square),
        coloured,
        channels,
        facts,
        (*decoded.conversions, *made),
        mask,
    )


def _mask(payload: Payload | Rejected, image: Images, shape: Shape) -> Images | Rejected | None:
    """Return (S, S) uint8, 255 where at least half of a pixel is marked; None without a mask."""
    decoded = _decoded(payload, shape.limits)
    if isinstance(decoded, Rejected):
        nothing = decoded.reason == NO_FILE
        return None if nothing else Rejected(decoded.reason, f"its mask: {decoded.detail}")
    found = decoded.pixels
    if found.shape[:2] != image.shape[:2]:
        (height, width), (rows, columns) = found.shape[:2], image.shape[:2]
        return Rejected(MASK_SIZE, f"{width} x {height}, and the image {columns} x {rows}")
    marked = np.where(found.max(axis=2, keepdims=True) > 0, 255, 0).astype(np.uint8)
    square, _ = to_square(marked, shape.side_px, shape.fit)
    return np.where(square[:, :, 0] >= 128, 255, 0).astype(np.uint8)


def _decoded(payload: Payload | Rejected, limits: Limits) -> Decoded | Rejected:
    if isinstance(payload, Rejected):
        return payload
    if isinstance(payload, np.ndarray):
        height, width = payload.shape[:2]
        if height * width > limits.image_pixels:
            detail = f"{width} x {height}; at most {limits.image_pixels} (max_image_pixels)"
            return Rejected("too many pixels", detail)
        return Decoded(payload, ())
    if not isinstance(payload, Crop):
        return decode_image(payload, limits)
    whole = decode_image(payload.of, limits)
    return whole if isinstance(whole, Rejected) else _crop(whole, payload)


def _crop(whole: Decoded, crop: Crop) -> Decoded | Rejected:
    height, width = whole.pixels.shape[:2]
    left, top, wide, high = crop.box
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(width, int(np.ceil(left + wide))), min(height, int(np.ceil(top + high)))
    if x1 - x0 < _SMALLEST_CROP_PX or y1 - y0 < _SMALLEST_CROP_PX:
        box = ", ".join(f"{value:g}" for value in crop.box)
        return Rejected(OUTSIDE, f"box {box} in an image of {width} x {height} px")
    return Decoded(np.ascontiguousarray(whole.pixels[y0:y1, x0:x1]), whole.conversions)
