"""Write a sample store, all at once or row by row; see `store` for what one is."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.images import ImageMode, encode_png
from pipeline.data.store import (
    BASE_COLUMNS,
    INFO,
    SPLITS,
    UNLABELLED,
    Samples,
    StoreInfo,
    row_digests,
)
from pipeline.errors import StageError
from pipeline.folders import temporary_name, write_json
from pipeline.hashing import digest_sorted

ROWS_PER_SHARD = 10_000


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
        extra_types: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        """Begin an empty store.

        Args:
            folder: of the store.
            classes: class names; a label is an index into them.
            image_size_px: side of the square images.
            image_mode: L (grey) or RGB.
            rows_per_shard: rows of one Parquet file.
            extra_types: of the extra columns; without them, as the first rows have them.
        """
        self._extra_types = extra_types
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

    def add(self, samples: Samples, pngs: Sequence[bytes] | None = None) -> None:
        """Take further rows, and write what fills a file.

        Args:
            samples: the rows.
            pngs: their images, encoded already; those of `samples` are not looked at then.

        Raises:
            StageError: a synthetic row stands outside the train split, a split is unknown, or the
                extra columns are others than those of the first rows.
        """
        _check_splits(samples)
        if not len(samples):
            return
        schema = _schema(self._classes, samples.extra, self._extra_types)
        if self._schema is None:
            self._schema = schema
        elif schema != self._schema:
            raise StageError(
                f"{self._folder}: rows with the extra columns {_describe(schema)} come after rows "
                f"with {_describe(self._schema)}; a store has one kind of rows"
            )
        self._digests += b"".join(map(bytes.fromhex, row_digests(samples)))
        splits = np.asarray(samples.splits, dtype=object)
        for split, state in self._splits.items():
            rows = np.flatnonzero(splits == split)
            state.labels.update(samples.labels[rows].tolist())
            while len(rows):
                room = self._rows_per_shard - state.rows
                part = samples.take(rows[:room])
                encoded = [pngs[row] for row in rows[:room]] if pngs is not None else None
                state.waiting.append(_table(part, schema, encoded))
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


def _schema(
    classes: Sequence[str],
    extra: Mapping[str, Sequence[Any]],
    types: Mapping[str, pa.DataType] | None = None,
) -> pa.Schema:
    types = types or {name: pa.array(list(values)).type for name, values in extra.items()}
    fields = [
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("id", "split", "group", "origin")),
        *(pa.field(name, types[name]) for name in sorted(extra)),
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


def _table(samples: Samples, schema: pa.Schema, pngs: Sequence[bytes] | None) -> pa.Table:
    pngs = pngs if pngs is not None else [encode_png(image) for image in samples.images]
    columns: dict[str, Any] = {
        "image": [
            {"bytes": png, "path": f"{identity[:16]}.png"}
            for png, identity in zip(pngs, samples.ids, strict=True)
        ],
        "label": samples.labels,
        "id": list(samples.ids),
        "split": list(samples.splits),
        "group": list(samples.groups),
        "origin": list(samples.origins),
        **{name: list(values) for name, values in samples.extra.items()},
    }
    return pa.Table.from_pydict(columns, schema=schema)
