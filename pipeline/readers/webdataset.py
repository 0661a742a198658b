"""WebDataset shards: tar files whose members share a key, `0001.png` beside `0001.cls`.

Shards are indexed once, by offset, and images are read at their offsets where they are decoded.
Nothing is unpacked: a member's name never becomes a path.
Format: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import (
    EMPTY_FILE,
    EXTENSIONS,
    FILE_TOO_LARGE,
    NOT_A_FILE,
    TRUNCATED,
    UNREADABLE,
    Rejected,
)
from pipeline.errors import InputError
from pipeline.hashing import digest_bytes
from pipeline.params import Columns
from pipeline.readers.class_names import read_class_names
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import files_within
from pipeline.readers.naming import MALFORMED_ROW, split_word
from pipeline.readers.rows import Kept, Rows
from pipeline.readers.source import Payload, Source
from pipeline.readers.tables import as_text, one_line

NO_IMAGE = "no image in the sample"

_KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_TEXT_ENDINGS = frozenset({"cls", "txt", "json"})
_MAX_TEXT_BYTES = 1 << 16
_MAX_HEADER_BYTES = 1 << 18
_MAX_DEPTH = 2


@dataclass
class _Sample:
    key: str
    images: list[tuple[int, int]] = field(default_factory=list)  # offset, size
    texts: dict[str, bytes] = field(default_factory=dict)
    fault: str | None = None


@dataclass(frozen=True)
class TarImages:
    """Contents of uncompressed tar files, by offset.

    Attributes:
        files: in order.
        file_of: (N,) index into `files`.
        offsets: (N,) of the image's first byte.
        sizes: (N,) in bytes.
        max_bytes: longer images are rejected.
    """

    files: Sequence[Path]
    file_of: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    max_bytes: int

    def fetch(self, row: int) -> Payload | Rejected:
        """Return the bytes of the image."""
        size, file = int(self.sizes[row]), int(self.file_of[row])
        if size > self.max_bytes:
            detail = f"{size} bytes; at most {self.max_bytes} are read (max_file_bytes)"
            return Rejected(FILE_TOO_LARGE, detail)
        if not size:
            return Rejected(EMPTY_FILE, "0 bytes")
        try:
            with self.files[file].open("rb", buffering=0) as shard:
                data = os.pread(shard.fileno(), size, int(self.offsets[row]))
        except OSError as error:
            return Rejected(UNREADABLE, str(error.strerror))
        return data if len(data) == size else Rejected(TRUNCATED, "the shard ends within it")

    def digest(self, row: int) -> str:
        """Return the digest of the image's bytes, or why there are none."""
        found = self.fetch(row)
        return digest_bytes(found) if isinstance(found, bytes) else UNREADABLE


def recognise_webdataset(path: Path) -> str | None:
    """Return why `path` looks like WebDataset shards, or None."""
    found = _shards(path)
    return f"{len(found)} tar {'file' if len(found) == 1 else 'files'}" if found else None


def read_webdataset(path: Path, limits: ReadLimits, columns: Columns | None = None) -> Source:
    """Return the images of tar shards.

    The label is the field `label` of the sample's .json, else its .cls, else its .txt; numbers
    take their names from a file `classes.txt` beside the shards, if there is one. The split is
    told by the .json, else by the first word of the shard's name (train-000000.tar) or folder.

    Args:
        path: a .tar file, or a folder with such files.
        limits: bounds.
        columns: names of the fields of the .json.

    Raises:
        InputError: a shard is compressed or damaged, or nothing usable is left.
    """
    shards = _shards(path)
    if not shards:
        raise InputError(
            f"prepare.path = {path}: no .tar file; compressed shards cannot be read by offset: "
            "unpack their compression (gunzip) first"
        )
    root = path if path.is_dir() else path.parent
    names = columns or Columns()
    classes = read_class_names(root)
    rows = Rows(str(path), limits, classes)
    places = (array("q"), array("q"), array("q"))  # shard, offset, size
    for number, shard in enumerate(shards):
        where = shard.relative_to(root).as_posix()
        split = split_word(where.split("/"))
        for sample in _samples(shard, rows):
            if _add(rows, f"{where}/{sample.key}", sample, split, names, classes):
                for column, value in zip(places, (number, *sample.images[0]), strict=True):
                    column.append(value)
    index = [np.asarray(column, dtype=np.int64) for column in places]

    def contents(kept: Kept) -> TarImages:
        return TarImages(
            shards, index[0][kept], index[1][kept], index[2][kept], limits.max_file_bytes
        )

    return rows.source(contents)


def _add(
    rows: Rows,
    name: str,
    sample: _Sample,
    split: str | None,
    columns: Columns,
    classes: Sequence[str] | None,
) -> bool:
    fault = sample.fault
    told: dict[str, str | None] = {}
    if fault is None and "json" in sample.texts:
        try:
            told = _fields(sample.texts["json"], columns)
        except (ValueError, TypeError, RecursionError):
            fault = "its .json is no JSON object of text and numbers"
    if fault is not None or len(sample.images) != 1:
        rows.count()
        many = "no image" if not sample.images else f"{len(sample.images)} images"
        reason = NO_IMAGE if fault is None and not sample.images else MALFORMED_ROW
        rows.set_aside(name, reason, fault or f"{many} of one key; give one")
        return False
    label = told.get("label")
    caption = told.get("text")
    for ending in ("cls", "txt"):
        value = sample.texts.get(ending)
        text = None if value is None else value.decode("utf-8", "surrogateescape").strip()
        if label is None:
            label = text
        elif ending == "txt" and caption is None:
            caption = text
    if classes is not None and label is not None and re.fullmatch(r"\d{1,9}", label):
        label = classes[int(label)] if int(label) < len(classes) else label
    if label is not None and re.fullmatch(r"-\d{1,9}", label):
        label = None
    return rows.add(
        name,
        label,
        told.get("split") or split,
        told.get("group"),
        told.get("time"),
        caption,
        told.get("origin"),
    )


def _fields(data: bytes, columns: Columns) -> dict[str, str | None]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise TypeError("no object")
    names = {**columns.model_dump(), "origin": "origin"}
    told = {
        field: as_text(value[name])
        for field, name in names.items()
        if name in value and field not in ("path", "mask")
    }
    if "origin" in told and isinstance(value.get("class"), str):
        told["label"] = value["class"] or None  # our own shards: the label is a number there
    return told


def _samples(shard: Path, rows: Rows) -> Iterator[_Sample]:
    """Yield the samples of a shard: members in a row that share their key."""
    current: _Sample | None = None
    try:
        with shard.open("rb") as file:
            for member in _members(file):
                if member.isdir():
                    continue
                match = _KEY.fullmatch(member.name.removeprefix("./"))
                if match is None or not member.isfile() or member.issparse():
                    rows.count()
                    what = "its name has no key and ending" if match is None else "no plain file"
                    reason = MALFORMED_ROW if match is None else NOT_A_FILE
                    rows.set_aside(f"{shard.name}/{member.name[:300]}", reason, what)
                    continue
                key, ending = match[1], match[2].lower()
                if current is None or current.key != key:
                    if current is not None:
                        yield current
                    current = _Sample(key)
                _take(current, member, ending, file)
    except (tarfile.TarError, OSError, ValueError, MemoryError, OverflowError) as error:
        raise InputError(
            f"{shard}: a damaged or compressed tar file ({one_line(error)}); write the shard "
            "again, uncompressed"
        ) from None
    if current is not None:
        yield current


def _take(sample: _Sample, member: tarfile.TarInfo, ending: str, file: BinaryIO) -> None:
    if "." + ending.rpartition(".")[2] in EXTENSIONS:
        sample.images.append((member.offset_data, member.size))
    elif ending in _TEXT_ENDINGS:
        if member.size > _MAX_TEXT_BYTES:
            sample.fault = f".{ending} of {member.size} bytes; at most {_MAX_TEXT_BYTES} are read"
        elif ending in sample.texts:
            sample.fault = f"two members .{ending} of one key"
        else:
            sample.texts[ending] = os.pread(file.fileno(), member.size, member.offset_data)


class _HeaderReader:
    """A file that gives tarfile headers, and nothing as large as a hostile header may claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    size = os.fstat(file.fileno()).st_size
    reader = cast("BinaryIO", _HeaderReader(file))
    with tarfile.open(fileobj=reader, mode="r:", errorlevel=2) as archive:
        while (member := archive.next()) is not None:
            vars(archive)["members"] = []  # or a million headers stay in memory
            if member.size < 0 or member.offset_data + member.size > size:
                raise tarfile.ReadError(f"ends within {member.name[:100]!r}")
            yield member
        _check_end(file, archive.offset)


def _check_end(file: BinaryIO, at: int) -> None:
    """Refuse a shard with more than zeros after its last member.

    tarfile takes a damaged header for the end, and stops at the end of the first of two archives
    that were joined: what follows would be lost without a word.
    """
    block = os.pread(file.fileno(), tarfile.BLOCKSIZE, at)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("ends without its two blocks of zeros: cut off")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"no member and no end at byte {at}")
        at += len(block)
        block = os.pread(file.fileno(), _MAX_HEADER_BYTES, at)


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    return files_within(path, ".tar", _MAX_DEPTH) if path.is_dir() else []
