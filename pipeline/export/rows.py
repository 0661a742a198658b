"""The rows of a store as they are given away: checked one by one, and marked where synthetic.

A few hundred images are in memory at a time, whatever the size of the store's files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.decoding import Limits, Rejected, inspect_image
from pipeline.data.images import ImageMode, Images, decode_png, encode_png
from pipeline.data.store import BASE_COLUMNS, INFO, SPLITS, UNLABELLED, StoreInfo
from pipeline.errors import InputError, StageError
from pipeline.export.marks import is_plain, marked_png
from pipeline.folders import safe_join
from pipeline.hashing import digest_json, digest_pixels

ORIGINS = ("real", "synthetic")
MAX_IMAGE_BYTES = 64 << 20  # a PNG of Replenish's is far below it
_BATCH_ROWS = 500


@dataclass(frozen=True)
class Row:
    """One row to give away.

    Attributes:
        png: of the image; a synthetic one carries its mark, a real one nothing but pixels.
        label: index of its class, `UNLABELLED` in the pool.
        class_name: name of its class, empty in the pool.
        id: digest of the pixels.
        split: train, validation, test or pool.
        group: rows of one group stay on one side of every split.
        origin: real or synthetic.
        extra: further columns by name (lineage, scores, sampling weight).
    """

    png: bytes
    label: int
    class_name: str
    id: str
    split: str
    group: str
    origin: str
    extra: dict[str, Any]

    @property
    def synthetic(self) -> bool:
        """Say whether a model drew it."""
        return self.origin == "synthetic"

    @property
    def digest(self) -> str:
        """Return what the store's digest is made of."""
        return row_digest(self.split, self.label, self.origin, self.id)

    def facts(self) -> dict[str, Any]:
        """Return all but the image, as plain data; numbers that JSON does not know are None."""
        base = {name: getattr(self, name) for name in ("id", "label", "split", "group", "origin")}
        return {**base, "class": self.class_name, **{k: _plain(v) for k, v in self.extra.items()}}


def row_digest(split: str, label: int, origin: str, identity: str) -> str:
    """Return the digest of one row, as the digest of a store is made of."""
    return digest_json([split, label, origin, identity])


def split_files(store: Path, split: str) -> list[Path]:
    """Return the Parquet files of a split, in order.

    Raises:
        InputError: a link leads out of the store.
    """
    files = sorted((store / "data").glob(f"{split}-*.parquet"))
    for path in files:
        safe_join(store, path.relative_to(store).as_posix())
    return files


def read_schema(path: Path) -> pa.Schema:
    """Return the schema of a store's file.

    Raises:
        InputError: it is not Parquet, or lacks one of the columns of a store.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from None
    missing = sorted(set(BASE_COLUMNS) - set(schema.names))
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; write the store again")
    return schema


def read_batches(path: Path, info: StoreInfo) -> Iterator[tuple[pa.RecordBatch, list[Row]]]:
    """Yield the rows of one of a store's files, some hundreds at a time.

    Yields:
        The batch as it stands in the file, and its rows, checked.

    Raises:
        InputError: the file is not readable.
        StageError: a row is not what its columns say: pixels, size, label, split or origin.
    """
    read_schema(path)
    split = next(name for name in SPLITS if path.name.startswith(f"{name}-"))
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield batch, [_row(values, info, path, split) for values in batch.to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from None


def read_rows(store: Path, info: StoreInfo, split: str) -> Iterator[Row]:
    """Yield the rows of a split, in order; errors as `read_batches`."""
    for path in split_files(store, split):
        for _, rows in read_batches(path, info):
            yield from rows


def checked_pixels(png: bytes, side: int, mode: ImageMode, identity: str) -> Images | str:
    """Return the (H, W, C) pixels of a PNG of the given side and id, or what is wrong with it."""
    header = inspect_image(png, Limits(MAX_IMAGE_BYTES, side * side))
    if isinstance(header, Rejected):
        return f"{header.reason}: {header.detail}"
    if (header.width, header.height) != (side, side):
        return f"{header.width} x {header.height} px, not {side} x {side}"
    try:
        pixels = decode_png(png, mode)
    except Exception as error:  # a parser's fault on a hostile file is the file's fault
        return f"damaged PNG ({type(error).__name__})"
    return pixels if digest_pixels(pixels) == identity else "the pixels are not those of the id"


def _row(values: dict[str, Any], info: StoreInfo, path: Path, split: str) -> Row:
    identity, label, origin = values["id"], values["label"], values["origin"]
    shown = f"{path}, row {str(identity)[:12]}"
    png = (values["image"] or {}).get("bytes")
    if not isinstance(identity, str) or not isinstance(png, bytes):
        raise StageError(f"{shown}: no id or no image; write the store again")
    if values["split"] != split or origin not in ORIGINS:
        raise StageError(
            f"{shown}: split {values['split']!r}, origin {origin!r}; expected {split} and one of "
            f"{ORIGINS}; write the store again"
        )
    if origin == "synthetic" and split != "train":
        raise StageError(f"{shown}: synthetic in {split}; synthetic rows may stand in train only")
    lowest = UNLABELLED if split == "pool" else 0
    if not isinstance(label, int) or not lowest <= label < len(info.classes):
        raise StageError(f"{shown}: label {label!r} is none of the classes in {INFO}")
    pixels = checked_pixels(png, info.image_size_px, info.image_mode, identity)
    if isinstance(pixels, str):
        raise StageError(f"{shown}: {pixels}; check the store with `replenish verify`")
    extra = {name: value for name, value in values.items() if name not in BASE_COLUMNS}
    name = info.classes[label] if label >= 0 else ""
    if origin == "synthetic":
        named = ("generator", "index", "seed", "mode", "parent_id")
        facts = {"id": identity, "class": name, **{one: extra.get(one) for one in named}}
        png = marked_png(pixels, facts)
    elif not is_plain(png, info.image_mode):
        png = encode_png(pixels)
    return Row(png, label, name, identity, split, str(values["group"]), origin, extra)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
