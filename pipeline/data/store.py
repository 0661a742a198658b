"""The sample store: a folder of Parquet shards that Hugging Face `datasets` reads as it is.

    dataset.json                       classes, counts, image size and mode, version, digest
    data/train-00000-of-00001.parquet  one or more shards a split

Columns: `image` {bytes: PNG, path}, `label`, `id` (sha256 of the pixels), `split`, `group`,
`origin` (real or synthetic). Synthetic rows add their lineage and scores as further columns.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.images import CHANNELS, ImageMode, Images, decode_png, encode_png
from pipeline.errors import InputError, StageError
from pipeline.folders import safe_join, temporary_name, write_json
from pipeline.hashing import digest_json, digest_lines, digest_pixels, digest_sorted

SCHEMA_VERSION = 1
INFO = "dataset.json"
UNLABELLED = -1  # label of pool rows; Hugging Face's ClassLabel means the same by it
SPLITS = ("train", "validation", "test", "pool")
ROWS_PER_SHARD = 10_000
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


def write_store(
    folder: Path,
    samples: Samples,
    classes: Sequence[str],
    image_size_px: int,
    image_mode: ImageMode,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> StoreInfo:
    """Write the rows as a sample store; dataset.json comes last.

    Raises:
        StageError: a synthetic row stands outside the train split, or a split is unknown.
    """
    with StoreWriter(folder, classes, image_size_px, image_mode, rows_per_shard) as writer:
        writer.add(samples)
        return writer.close()


class StoreWriter:
    """Writes rows as they come: the very files that `write_store` makes of them all at once.

    Of each row, 32 bytes stay in memory, for the digest. The images of a Parquet file wait, as PNG,
    until it is full. Files have temporary names until `close`; a writer that is left without it, by
    an error, removes them. The images are encoded one by one: threads would take the cores from
    those who sample.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        image_size_px: int,
        image_mode: ImageMode,
        rows_per_shard: int = ROWS_PER_SHARD,
    ) -> None:
        """Begin an empty store.

        Args:
            folder: of the store.
            classes: class names; a label is an index into them.
            image_size_px: side of the square images.
            image_mode: L (grey) or RGB.
            rows_per_shard: rows of one Parquet file.
        """
        self._folder = folder
        self._classes = tuple(classes)
        self._image_size_px = image_size_px
        self._image_mode: ImageMode = image_mode
        self._rows_per_shard = rows_per_shard
        self._schema: pa.Schema | None = None
        self._splits = {split: _Split() for split in SPLITS}
        self._digests = bytearray()
        (folder / "data").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was written, unless the store was closed."""
        for path in self._temporary_files():
            path.unlink(missing_ok=True)

    def add(self, samples: Samples) -> None:
        """Take further rows, and write what fills a file.

        Raises:
            StageError: a synthetic row stands outside the train split, a split is unknown, or the
                extra columns are others than those of the first rows.
        """
        _check_splits(samples)
        if not len(samples):
            return
        schema = _schema(self._classes, samples.extra)
        if self._schema is None:
            self._schema = schema
        elif schema != self._schema:
            raise StageError(
                f"{self._folder}: rows with the extra columns {_describe(schema)} come after rows "
                f"with {_describe(self._schema)}; a store has one kind of rows"
            )
        self._digests += b"".join(map(bytes.fromhex, _row_digests(samples)))
        splits = np.asarray(samples.splits, dtype=object)
        for split, state in self._splits.items():
            rows = np.flatnonzero(splits == split)
            state.labels.update(samples.labels[rows].tolist())
            while len(rows):
                room = self._rows_per_shard - state.rows
                state.waiting.append(_table(samples.take(rows[:room]), schema))
                state.rows += len(rows[:room])
                rows = rows[room:]
                if state.rows == self._rows_per_shard:
                    self._write(split)

    def close(self) -> StoreInfo:
        """Write what waits, give all files their names, write dataset.json, and return it."""
        for split, state in self._splits.items():
            if state.rows:
                self._write(split)
            for shard in range(state.files):
                name = f"{split}-{shard:05d}-of-{state.files:05d}.parquet"
                self._temporary(split, shard).replace(self._folder / "data" / name)
        info = StoreInfo(
            classes=self._classes,
            image_size_px=self._image_size_px,
            image_mode=self._image_mode,
            counts=self._counts(),
            digest=digest_sorted(bytes(self._digests)),
        )
        write_json(
            self._folder / INFO,
            {
                "schema_version": info.schema_version,
                "classes": list(info.classes),
                "image_size_px": info.image_size_px,
                "image_mode": info.image_mode,
                "counts": info.counts,
                "digest": info.digest,
            },
        )
        return info

    def _write(self, split: str) -> None:
        state = self._splits[split]
        # In one piece: how a table is cut would show in the file's bytes.
        table = pa.concat_tables(state.waiting).combine_chunks()
        pq.write_table(table, self._temporary(split, state.files), compression="zstd")
        state.waiting, state.rows = [], 0
        state.files += 1

    def _counts(self) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        for split, state in self._splits.items():
            labels = state.labels
            if labels[UNLABELLED]:
                counts[split] = {"unlabelled": labels[UNLABELLED]}
            elif labels:
                counts[split] = {name: labels[i] for i, name in enumerate(self._classes)}
        return counts

    def _temporary(self, split: str, shard: int) -> Path:
        return temporary_name(self._folder / "data" / f"{split}-{shard:05d}.parquet")

    def _temporary_files(self) -> Iterator[Path]:
        for split, state in self._splits.items():
            # One more: an error may have stopped it half-written.
            yield from (self._temporary(split, shard) for shard in range(state.files + 1))


@dataclass
class _Split:
    """What a writer has of one split: rows that wait for a file, files, how often each label."""

    waiting: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    files: int = 0
    labels: Counter[int] = field(default_factory=Counter)


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


def rows_digest(samples: Samples) -> str:
    """Return the digest over (split, label, origin, id) of all rows, whatever their order."""
    return digest_lines(_row_digests(samples))


def _row_digests(samples: Samples) -> Iterator[str]:
    for split, label, origin, identity in zip(
        samples.splits, samples.labels, samples.origins, samples.ids, strict=True
    ):
        yield digest_json([split, int(label), origin, identity])


def _check_splits(samples: Samples) -> None:
    for split, origin, identity in zip(samples.splits, samples.origins, samples.ids, strict=True):
        if split not in SPLITS:
            raise StageError(f"row {identity[:12]}: unknown split {split!r}; use one of {SPLITS}")
        if origin == "synthetic" and split != "train":
            raise StageError(
                f"row {identity[:12]}: synthetic in the split {split!r}; synthetic rows may stand "
                "in train only"
            )


def _describe(schema: pa.Schema) -> str:
    extra = [f"{one.name} ({one.type})" for one in schema if one.name not in BASE_COLUMNS]
    return ", ".join(extra) or "none"


def _schema(classes: Sequence[str], extra: Mapping[str, Sequence[Any]]) -> pa.Schema:
    fields = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("id", "split", "group", "origin")),
        *(pa.field(name, pa.array(list(values)).type) for name, values in sorted(extra.items())),
    ]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
    }
    for one in fields[2:]:
        kind = "float64" if pa.types.is_floating(one.type) else str(one.type)
        features[one.name] = {"dtype": kind, "_type": "Value"}
    # `datasets` finds its feature types under this key of the Parquet schema.
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema(fields, metadata=metadata)


def _table(samples: Samples, schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {
        "image": [
            {"bytes": encode_png(image), "path": f"{identity[:16]}.png"}
            for image, identity in zip(samples.images, samples.ids, strict=True)
        ],
        "label": samples.labels,
        "id": list(samples.ids),
        "split": list(samples.splits),
        "group": list(samples.groups),
        "origin": list(samples.origins),
        **{name: list(values) for name, values in samples.extra.items()},
    }
    return pa.Table.from_pydict(columns, schema=schema)
