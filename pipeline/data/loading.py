"""From a source to one array: decode, choose mode and size for the whole set, square, resize."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import (
    Header,
    Limits,
    Rejected,
    decode_image,
    inspect_image,
    quiet_pillow,
)
from pipeline.data.images import CHANNELS, ImageMode, Images
from pipeline.data.listing import Quarantined
from pipeline.data.readers import Source
from pipeline.data.shaping import Fit, auto_side, is_colour, to_grey, to_square

COLOUR_TO_GREY = "colour to grey"
GREY_TO_COLOUR = "grey to RGB"
GREY_AS_COLOUR = "RGB without colour to grey"

# A decoded image may take some 700 MB at the default limit of pixels: few at a time.
_MAX_THREADS = 4
_MAX_WAITING = 64

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Loaded:
    """The usable images of a source.

    Attributes:
        images: (M, side, side, C) uint8.
        rows: (M,) indices into the source's items, ascending.
        image_mode: L or RGB, for the whole set.
        conversions: what was converted -> number of images.
        quarantine: files that could not be decoded.
    """

    images: Images
    rows: npt.NDArray[np.int64]
    image_mode: ImageMode
    conversions: dict[str, int]
    quarantine: tuple[Quarantined, ...]


@dataclass(frozen=True)
class _Shaped:
    pixels: Images
    coloured: bool
    channels: int
    conversions: tuple[str, ...]


def load_images(
    source: Source,
    side_px: int | None,
    mode: Literal["auto", "L", "RGB"],
    fit: Fit,
    limits: Limits,
    workers: int,
    on_image: Callable[[int], None],
) -> Loaded:
    """Return the images of a source as one array; `on_image` hears how many are done.

    `side_px` None takes `auto_side` of the longest sides that the headers state; mode `auto` is
    RGB where any image of the set shows colour, else L. The result does not depend on `workers`.
    """
    if source.pixels is not None:
        return _from_array(source, source.pixels, side_px, mode, fit, on_image)
    threads = max(1, min(workers, _MAX_THREADS))
    with quiet_pillow():
        if side_px is None:
            headers = _in_order(lambda path: inspect_image(path, limits), source.files, threads)
            sides = [max(h.width, h.height) for h in headers if isinstance(h, Header)]
            side_px = auto_side(sides) if sides else 8
        side = side_px

        def shape(row: int) -> _Shaped | Rejected:
            decoded = decode_image(source.files[row], limits)
            if isinstance(decoded, Rejected):
                return decoded
            return _shape(decoded.pixels, side, mode, fit, decoded.conversions)

        shaped: list[_Shaped] = []
        rows: list[int] = []
        quarantine: list[Quarantined] = []
        for row, result in enumerate(_in_order(shape, range(len(source.files)), threads)):
            if isinstance(result, Rejected):
                name = source.names[row]
                quarantine.append(Quarantined(name, result.reason, result.detail))
            else:
                rows.append(row)
                shaped.append(result)
            on_image(row + 1)
    return _stack(shaped, rows, side, mode, quarantine)


def _from_array(
    source: Source,
    pixels: Images,
    side_px: int | None,
    mode: Literal["auto", "L", "RGB"],
    fit: Fit,
    on_image: Callable[[int], None],
) -> Loaded:
    count, height, width, _ = pixels.shape
    side = auto_side([max(height, width)]) if side_px is None else side_px
    conversions = Counter(source.conversions)
    if (height, width) != (side, side):
        squares = []
        for done, image in enumerate(pixels, start=1):
            square, made = to_square(image, side, fit)
            squares.append(square)
            conversions.update(made)
            on_image(done)
        pixels = np.stack(squares)
    else:
        on_image(count)
    if mode == "RGB":
        pixels = pixels.repeat(3, axis=3)
        conversions[GREY_TO_COLOUR] += count
    return Loaded(
        images=pixels,
        rows=np.arange(count, dtype=np.int64),
        image_mode="RGB" if mode == "RGB" else "L",
        conversions=dict(sorted(conversions.items())),
        quarantine=(),
    )


def _shape(
    pixels: Images,
    side_px: int,
    mode: Literal["auto", "L", "RGB"],
    fit: Fit,
    conversions: Sequence[str],
) -> _Shaped:
    channels = pixels.shape[2]
    coloured = is_colour(pixels)
    if channels == 3 and (mode == "L" or not coloured):
        pixels = to_grey(pixels) if coloured else pixels[:, :, :1]
    square, made = to_square(pixels, side_px, fit)
    return _Shaped(np.ascontiguousarray(square), coloured, channels, (*conversions, *made))


def _stack(
    shaped: list[_Shaped],
    rows: list[int],
    side_px: int,
    mode: Literal["auto", "L", "RGB"],
    quarantine: list[Quarantined],
) -> Loaded:
    image_mode: ImageMode
    if mode == "auto":
        image_mode = "RGB" if any(image.coloured for image in shaped) else "L"
    else:
        image_mode = mode
    images = np.zeros((len(shaped), side_px, side_px, CHANNELS[image_mode]), dtype=np.uint8)
    conversions: Counter[str] = Counter()
    for i, image in enumerate(shaped):
        images[i] = image.pixels  # one channel spreads over three
        conversions.update(image.conversions)
        if image_mode == "RGB" and image.channels == 1:
            conversions[GREY_TO_COLOUR] += 1
        elif image_mode == "L" and image.channels == 3:
            conversions[COLOUR_TO_GREY if image.coloured else GREY_AS_COLOUR] += 1
    return Loaded(
        images=images,
        rows=np.asarray(rows, dtype=np.int64),
        image_mode=image_mode,
        conversions=dict(sorted(conversions.items())),
        quarantine=tuple(quarantine),
    )


def _in_order(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Yield the results in the order of the items; few are held at a time."""
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        for start in range(0, len(items), _MAX_WAITING):
            yield from pool.map(function, items[start : start + _MAX_WAITING])
    finally:
        pool.shutdown(cancel_futures=True)
