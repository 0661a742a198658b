"""NumPy's .npz: MedMNIST's keys, Keras's, or plain `images` and `labels`.

An .npz is a zip of .npy members. Their headers are read before there is memory for their data, no
more is unpacked than they declare, and what would have to be unpickled is refused.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.data.images import Images
from pipeline.errors import InputError
from pipeline.readers.arrays import (
    Array,
    add_labels,
    check_image_shape,
    flat_labels,
    rows_of,
    to_pixels,
)
from pipeline.readers.limits import ReadLimits
from pipeline.readers.rows import Rows, take
from pipeline.readers.source import Pixels, Source

# (images, labels, split); one family of keys is read.
_FAMILIES: tuple[tuple[tuple[str, str, str | None], ...], ...] = (
    (
        ("train_images", "train_labels", "train"),
        ("val_images", "val_labels", "validation"),
        ("test_images", "test_labels", "test"),
    ),
    (("x_train", "y_train", "train"), ("x_test", "y_test", "test")),
    (("images", "labels", None),),
)
_KEYS = "train_images and train_labels (val_, test_), x_train and y_train, or images and labels"
_TEXT_KEYS = ("classes", "splits", "groups")
_MAX_MEMBERS = 1_000
_MAX_HEADER_BYTES = 10_000
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError),
    *(SyntaxError, tokenize.TokenError, MemoryError),  # of headers that are no Python literal
)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def recognise_npz(path: Path) -> str | None:
    """Return why `path` looks like an .npz of images, or None."""
    return "an .npz file" if path.suffix.lower() == ".npz" and path.is_file() else None


def read_npz(path: Path, limits: ReadLimits) -> Source:
    """Return the images of an .npz file.

    MedMNIST's keys and Keras's give the splits; with `images` and `labels` the keys `classes`,
    `splits` and `groups` (text) may stand beside them.

    Raises:
        InputError: the file is no sound .npz, has none of the keys, or breaks a limit.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited on for ever
        raise InputError(f"{path}: a folder, pipe or device; name an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, limits)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path}: cannot be read ({why})") from None
    except _DAMAGE as error:
        raise InputError(f"{path}: a damaged .npz file ({error}); write or load it again") from None


def _read(path: Path, archive: zipfile.ZipFile, limits: ReadLimits) -> Source:
    members = archive.namelist()
    if len(members) > _MAX_MEMBERS or len(set(members)) != len(members):
        raise InputError(f"{path}: {len(members)} members, or two of one name; not an .npz of ours")
    family = next((f for f in _FAMILIES if f"{f[0][0]}.npy" in members), None)
    if family is None:
        found = ", ".join(ascii(name)[1:-1] for name in members[:8])
        raise InputError(f"{path}: has none of the keys {_KEYS}; it has {found or 'none'}")
    texts = {
        key: _text(path, archive, key, limits)
        for key in _TEXT_KEYS
        if len(family) == 1 and f"{key}.npy" in members
    }
    classes = texts.get("classes")
    rows = Rows(str(path), limits, classes)
    parts: list[Images] = []
    numbers: list[int] = []
    shape: tuple[int, ...] | None = None
    budget = limits.max_array_bytes
    for images_key, labels_key, split in family:
        if f"{images_key}.npy" not in members:
            continue
        where = f"{path}, {images_key}"
        header = _header(path, archive, images_key)
        check_image_shape(header.shape, limits, where)
        if shape not in (None, header.shape[1:]):
            raise InputError(f"{where}: images of another size than those before")
        shape = header.shape[1:]
        pixels, conversions = to_pixels(_load(path, archive, images_key, budget), limits, where)
        rows.conversions.update(conversions)
        labels = flat_labels(_load(path, archive, labels_key, budget), f"{path}, {labels_key}")
        prefix = f"{images_key.removesuffix('_images').removeprefix('x_')}/" if split else ""
        start = sum(len(part) for part in parts)
        splits = texts.get("splits") if split is None else split
        kept = add_labels(rows, prefix, labels, len(pixels), classes, splits, texts.get("groups"))
        numbers += [start + row for row in kept]
        parts.append(pixels)
        budget -= pixels.nbytes
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return rows.source(lambda kept: Pixels(rows_of(whole, take(numbers, kept))))


def _text(path: Path, archive: zipfile.ZipFile, key: str, limits: ReadLimits) -> list[str]:
    values = _load(path, archive, key, limits.max_metadata_bytes)
    if values.ndim != 1 or values.dtype.kind != "U":
        raise InputError(f"{path}, {key}: give a list of text, not {values.dtype} {values.shape}")
    return [str(value) for value in values]


def _header(path: Path, archive: zipfile.ZipFile, key: str) -> _Header:
    try:
        member = archive.open(f"{key}.npy")
    except KeyError:
        raise InputError(f"{path}: has no key {key}; give {_KEYS}") from None
    with member:
        return _parse_header(member, path, key)


def _parse_header(stream: IO[bytes], path: Path, key: str) -> _Header:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise InputError(f"{path}, {key}: .npy version {version}; 1.0 and 2.0 are read")
    # numpy parses a header with ast.literal_eval, bounded by its length.
    shape, _, dtype = readers[version](stream, max_header_size=_MAX_HEADER_BYTES)
    if dtype.hasobject or dtype.kind not in "biufU":
        raise InputError(
            f"{path}, {key}: values of type {dtype}; Python objects are never unpickled: save "
            "numbers, and text as numpy's str"
        )
    if any(size < 0 for size in shape):
        raise InputError(f"{path}, {key}: a damaged header, shape {shape}")
    return _Header(tuple(int(size) for size in shape), dtype)


def _load(path: Path, archive: zipfile.ZipFile, key: str, max_bytes: int) -> Array:
    header = _header(path, archive, key)
    declared = math.prod(header.shape) * header.dtype.itemsize
    member = archive.getinfo(f"{key}.npy")
    if declared > max_bytes:
        raise InputError(
            f"{path}, {key}: declares {declared} bytes; at most {max_bytes} are read in memory; "
            "write an image folder or a manifest instead"
        )
    if not declared <= member.file_size <= declared + _MAX_HEADER_BYTES + 64:
        raise InputError(
            f"{path}, {key}: shape {header.shape} and {member.file_size} bytes do not agree"
        )
    # The zip reader stops at the size that the archive declares, and checks the sum.
    with archive.open(member) as stream:
        return np.lib.format.read_array(
            stream, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES
        )
