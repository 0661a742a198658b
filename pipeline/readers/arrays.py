"""Images that are numpy arrays already, from Python or for `prepare` to read from a file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.errors import InputError
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import UNKNOWN_LABEL
from pipeline.readers.rows import Rows, take
from pipeline.readers.source import Pixels, Source

UNIT_SCALED = "floats 0 to 1 scaled to 0 to 255"
FLOAT_ROUNDED = "floats 0 to 255 rounded"
DEEP_SCALED = "16-bit to 8-bit, divided by 257"
BOOL_SCALED = "true and false to 255 and 0"
CHANNELS_MOVED = "channels moved from first to last"

_SHAPES = "(N, H, W) or (N, H, W, C) with C = 1 or 3"

Array = npt.NDArray[Any]


def from_arrays(
    images: Array,
    labels: Array | Sequence[int] | Sequence[str],
    classes: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    limits: ReadLimits | None = None,
    where: str = "arrays",
) -> Source:
    """Return a source of arrays.

    Args:
        images: (N, H, W) or (N, H, W, C), C = 1 or 3, also (N, C, H, W); uint8, or bool, uint16,
            or floats from 0 to 1 or to 255, which are converted as the source's `conversions` say.
        labels: (N,) whole numbers or names.
        classes: names of the numbers 0, 1, ...; without them a label is its own name.
        splits: (N,) train, validation or test, None or blank where it is to be drawn.
        groups: (N,) what an image belongs to, None or blank where to nothing.
        limits: bounds; the defaults where None.
        where: name of the source, for messages.

    Raises:
        InputError: shapes, types or lengths do not fit, or fewer than 2 classes are left.
    """
    limits = limits or ReadLimits()
    pixels, conversions = to_pixels(np.asarray(images), limits, where)
    rows = Rows(where, limits, classes)
    rows.conversions.update(conversions)
    flat = flat_labels(np.asarray(labels), where)
    numbers = add_labels(rows, "", flat, len(pixels), classes, splits, groups)
    return rows.source(lambda kept: Pixels(rows_of(pixels, take(numbers, kept))))


def write_arrays(
    path: Path,
    images: Array,
    labels: Array | Sequence[int] | Sequence[str],
    classes: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
) -> Source:
    """Write arrays as the .npz file that `prepare` reads, and return what it will read.

    Example: `write_arrays(Path("mine.npz"), images, labels, ["cat", "dog"])`, then
    `replenish check mine.npz`.

    Raises:
        InputError: as `from_arrays`; the file exists, or is not named .npz.
    """
    if path.suffix != ".npz" or path.exists():
        fault = "exists already" if path.exists() else "is not named .npz"
        raise InputError(f"{path}: {fault}; name a new file that ends in .npz")
    source = from_arrays(images, labels, classes, splits, groups, where=str(path))
    parts: dict[str, Array] = {"images": np.asarray(images), "labels": np.asarray(labels)}
    for name, values in (("classes", classes), ("splits", splits), ("groups", groups)):
        if values is not None:
            parts[name] = np.asarray([value or "" for value in values], dtype=np.str_)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **parts)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return source


def rows_of(pixels: Images, rows: list[int]) -> Images:
    """Return the images of some ascending rows; no copy where they are all."""
    return pixels if len(rows) == len(pixels) else pixels[rows]


def to_pixels(images: Array, limits: ReadLimits, where: str) -> tuple[Images, dict[str, int]]:
    """Return (N, H, W, C) uint8 and the conversions made, each with the number of images.

    Floats from 0 to 1 become round(255 x), 16 bits are divided by 257 and rounded.

    Raises:
        InputError: shape or type are none of those of `from_arrays`, or too large.
    """
    conversions: dict[str, int] = {}
    check_image_shape(images.shape, limits, where)
    if images.ndim == 3:
        images = images[:, :, :, None]
    elif images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        conversions[CHANNELS_MOVED] = len(images)
    kind = images.dtype
    if kind == np.uint8:
        return np.ascontiguousarray(images), conversions
    if kind == np.bool_:
        pixels, made = images.astype(np.uint8) * np.uint8(255), BOOL_SCALED
    elif kind == np.uint16:
        pixels, made = ((images.astype(np.uint32) + 128) // 257).astype(np.uint8), DEEP_SCALED
    elif kind.kind in "iuf":
        pixels, made = _from_numbers(images, where)
    else:
        raise InputError(f"{where}: images of type {kind}; give uint8, bool, uint16 or floats")
    if made:
        conversions[made] = len(images)
    return np.ascontiguousarray(pixels), conversions


def check_image_shape(shape: tuple[int, ...], limits: ReadLimits, where: str) -> None:
    """Refuse an array of images by its shape alone, before there is memory for it.

    Raises:
        InputError: the shape is none of those that are read, or too large.
    """
    fits = len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3)))
    if not fits or 0 in shape:
        raise InputError(f"{where}: images of shape {shape}; give {_SHAPES}, none of them 0")
    if shape[0] > limits.max_rows:
        raise InputError(
            f"{where}: {shape[0]} images; at most {limits.max_rows} are read (prepare.max_rows)"
        )
    last = len(shape) == 3 or shape[3] in (1, 3)
    height, width = shape[1:3] if last else shape[2:4]
    if height * width > limits.max_image_pixels:
        raise InputError(
            f"{where}: images of {height} x {width}; at most {limits.max_image_pixels} pixels are "
            "read (prepare.max_image_pixels)"
        )


def add_labels(
    rows: Rows,
    prefix: str,
    labels: Array,
    images: int,
    classes: Sequence[str] | None,
    splits: Sequence[str | None] | str | None,
    groups: Sequence[str | None] | None,
) -> list[int]:
    """Add a row an image, named by its number; return the numbers that are kept.

    Args:
        rows: receives them.
        prefix: of the names, empty or ending in a slash.
        labels: (N,) whole numbers or text.
        images: N, as the images have it.
        classes: names of the numbers.
        splits: of each, or one for all.
        groups: of each.

    Raises:
        InputError: the lengths differ, or labels are neither whole numbers nor text.
    """
    for what, values in (("labels", labels), ("splits", splits), ("groups", groups)):
        if values is not None and not isinstance(values, str) and len(values) != images:
            raise InputError(
                f"{rows.where}: {images} images and {len(values)} {what}; give one for each"
            )
    if labels.dtype.kind not in "iuU":
        raise InputError(f"{rows.where}: labels of type {labels.dtype}; give whole numbers or text")
    kept: list[int] = []
    for row, value in enumerate(labels.tolist()):
        split = splits if splits is None or isinstance(splits, str) else splits[row]
        group = None if groups is None else groups[row]
        name = f"{prefix}{row:07d}"
        if isinstance(value, str):
            added = rows.add(name, value, split, group)
        elif value < 0:
            added = rows.add(name, None, split, group)
        elif classes is not None and value >= len(classes):
            rows.count()
            detail = f"{value}, where {len(classes)} classes have names"
            rows.set_aside(name, UNKNOWN_LABEL, detail)
            added = False
        else:
            label = str(value) if classes is None else classes[value]
            added = rows.add(name, label, split, group)
        if added:
            kept.append(row)
    return kept


def flat_labels(labels: Array, where: str) -> Array:
    """Return (N,) labels of (N,) or (N, 1).

    Raises:
        InputError: they have another shape.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise InputError(
            f"{where}: labels of shape {labels.shape}; one label an image is read, not several"
        )
    return labels


def _from_numbers(images: Array, where: str) -> tuple[Images, str]:
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 255:  # false for NaN too
        raise InputError(
            f"{where}: images of {images.dtype} from {low:g} to {high:g}; give values from 0 to "
            "255, or floats from 0 to 1"
        )
    if images.dtype.kind != "f":
        return images.astype(np.uint8), ""
    if high <= 1:
        return np.rint(images.astype(np.float32) * 255).astype(np.uint8), UNIT_SCALED
    return np.rint(images).astype(np.uint8), FLOAT_ROUNDED
