"""The sample store: a folder of Parquet shards that Hugging Face `datasets` reads as it is.

    dataset.json                       classes, counts, image size and mode, version, digest
    data/train-00000-of-00001.parquet  one or more shards a split

Columns: `image` {bytes: PNG, path}, `label`, `id` (sha256 of the pixels), `split`, `group`,
`origin` (real or synthetic). Synthetic rows add their lineage and scores as further columns.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.images import CHANNELS, ImageMode, Images, decode_png
from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.hashing import digest_json, digest_lines, digest_pixels

SCHEMA_VERSION = 1
INFO = "dataset.json"
UNLABELLED = -1  # label of pool rows; Hugging Face's ClassLabel means the same by it
SPLITS = ("train", "validation", "test", "pool")
BASE_COLUMNS = ("image", "label", "id", "split", "group", "origin")


@dataclass(frozen=True)
class StoreInfo:
    """What dataset.json holds.

    Attributes:
        classes: class names; a label is an index into them.
        image_size_px: side of the square images.
        image_mode: L (grey) or RGB.
        counts: split -> class name (or "unlabelled") -> rows.
        digest: digest over (split, label, origin, id) of all rows, whatever their order.
        schema_version: version of this layout.
    """

    classes: tuple[str, ...]
    image_size_px: int
    image_mode: ImageMode
    counts: dict[str, dict[str, int]]
    digest: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Samples:
    """Rows in memory.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int64, `UNLABELLED` in the pool.
        ids: sha256 of each image's pixels.
        splits: split of each row.
        groups: rows of one group stay on one side of every split.
        origins: "real" or "synthetic".
        extra: further columns by name (lineage, scores).
    """

    images: Images
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    origins: tuple[str, ...]
    extra: dict[str, list[Any]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def take(self, rows: Sequence[int] | npt.NDArray[Any]) -> "Samples":
        """Return the given rows, in the given order; a boolean mask works too."""
        index = np.asarray(rows)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        index = index.astype(np.int64)
        return Samples(
            images=self.images[index],
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in index),
            splits=tuple(self.splits[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            origins=tuple(self.origins[i] for i in index),
            extra={name: [values[i] for i in index] for name, values in self.extra.items()},
        )


def without_held_out_repeats(samples: Samples) -> Samples:
    """Return the rows with each image once in validation and once in test.

    A repeated test image is no second observation: counted twice, it would narrow every interval.
    """
    seen: set[tuple[str, str]] = set()
    rows: list[int] = []
    for row, (split, identity) in enumerate(zip(samples.splits, samples.ids, strict=True)):
        if split not in ("validation", "test") or (split, identity) not in seen:
            rows.append(row)
        seen.add((split, identity))
    return samples.take(np.asarray(rows, dtype=np.int64))


def make_samples(
    images: Images,
    labels: npt.NDArray[np.int64],
    split: str | Sequence[str],
    origin: str,
    groups: Sequence[str] | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> Samples:
    """Return rows with their ids computed; a row without a group is a group of its own."""
    ids = tuple(digest_pixels(image) for image in images)
    return Samples(
        images=images,
        labels=labels.astype(np.int64),
        ids=ids,
        splits=(split,) * len(ids) if isinstance(split, str) else tuple(split),
        groups=ids if groups is None else tuple(groups),
        origins=(origin,) * len(ids),
        extra={name: list(values) for name, values in (extra or {}).items()},
    )


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Return the rows of all parts; only the extra columns that every part has are kept."""
    shared = set.intersection(*(set(part.extra) for part in parts))
    return Samples(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ids=tuple(i for part in parts for i in part.ids),
        splits=tuple(s for part in parts for s in part.splits),
        groups=tuple(g for part in parts for g in part.groups),
        origins=tuple(o for part in parts for o in part.origins),
        extra={
            name: [value for part in parts for value in part.extra[name]] for name in sorted(shared)
        },
    )


def read_info(folder: Path) -> StoreInfo:
    """Return what dataset.json says.

    Raises:
        InputError: it is missing, damaged, or of another schema version.
    """
    path = folder / INFO
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        info = StoreInfo(
            classes=tuple(str(name) for name in data["classes"]),
            image_size_px=int(data["image_size_px"]),
            image_mode=data["image_mode"],
            counts=data["counts"],
            digest=str(data["digest"]),
            schema_version=int(data["schema_version"]),
        )
    except FileNotFoundError:
        raise InputError(f"{folder}: no sample store (it has no {INFO})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); write the store again") from None
    if info.schema_version != SCHEMA_VERSION or info.image_mode not in ("L", "RGB"):
        raise InputError(
            f"{path}: schema version {info.schema_version}, mode {info.image_mode!r}; "
            f"this Replenish reads version {SCHEMA_VERSION} with mode L or RGB"
        )
    return info


def iterate_tables(
    folder: Path, splits: Sequence[str] = SPLITS, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the store's shards as Arrow tables, split by split, in order."""
    for split in splits:
        for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
            safe_join(folder, path.relative_to(folder).as_posix())
            try:
                yield pq.read_table(path, columns=list(columns) if columns else None)
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{path}: not readable as Parquet ({error})") from None


def read_samples(folder: Path, splits: Sequence[str] = SPLITS) -> Samples:
    """Read the rows of the given splits into memory, with every extra column."""
    info = read_info(folder)
    side = info.image_size_px
    channels = CHANNELS[info.image_mode]
    columns: dict[str, list[Any]] = {name: [] for name in BASE_COLUMNS}
    extra: dict[str, list[Any]] = {}
    for table in iterate_tables(folder, splits):
        data = table.to_pydict()
        for name, values in data.items():
            (columns if name in columns else extra).setdefault(name, []).extend(values)
    pixels = [decode_png(image["bytes"], info.image_mode) for image in columns["image"]]
    return Samples(
        images=np.stack(pixels) if pixels else np.zeros((0, side, side, channels), dtype=np.uint8),
        labels=np.asarray(columns["label"], dtype=np.int64),
        ids=tuple(columns["id"]),
        splits=tuple(columns["split"]),
        groups=tuple(columns["group"]),
        origins=tuple(columns["origin"]),
        extra=extra,
    )


def read_ids(folder: Path, splits: Sequence[str] = SPLITS) -> tuple[str, ...]:
    """Return the ids of the rows of the given splits, without their images."""
    return tuple(
        identity
        for table in iterate_tables(folder, splits, columns=("id",))
        for identity in table.column("id").to_pylist()
    )


def read_groups(folder: Path, splits: Sequence[str] = SPLITS) -> dict[str, str]:
    """Return the group of each id of the given splits, without their images."""
    return {
        identity: group
        for table in iterate_tables(folder, splits, columns=("id", "group"))
        for identity, group in zip(
            table.column("id").to_pylist(), table.column("group").to_pylist(), strict=True
        )
    }


def rows_digest(samples: Samples) -> str:
    """Return the digest over (split, label, origin, id) of all rows, whatever their order."""
    return digest_lines(row_digests(samples))


def row_digests(samples: Samples) -> Iterator[str]:
    """Yield the digest of (split, label, origin, id) of each row."""
    rows = zip(samples.splits, samples.labels.tolist(), samples.origins, samples.ids, strict=True)
    return (row_digest(*row) for row in rows)


def row_digest(split: str, label: int, origin: str, identity: str) -> str:
    """Return the digest of one row."""
    return digest_json([split, label, origin, identity])
