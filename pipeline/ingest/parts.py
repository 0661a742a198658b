"""Rows that are ready for the store: which images, with which label, split and group."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.images import encode_png
from pipeline.data.store import Samples, StoreInfo, row_digest
from pipeline.data.store_writer import StoreWriter
from pipeline.ingest.loading import Loaded, encode_images

MASK = "mask"


@dataclass(frozen=True)
class Part:
    """R rows out of the usable images of one source.

    Attributes:
        loaded: the images.
        places: (R,) places in `loaded`, ascending.
        labels: (R,) int64, `UNLABELLED` in the pool.
        splits: of each row.
        groups: of each row.
        extra: further columns of text, by name.
        masks: has the store a column of masks?
    """

    loaded: Loaded
    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str | None, ...]]
    masks: bool

    @property
    def ids(self) -> list[str]:
        """Return the id of each row."""
        return [self.loaded.ids[place] for place in self.places.tolist()]

    def take(self, rows: npt.NDArray[np.int64]) -> "Part":
        """Return the given rows, ascending."""
        wanted = rows.tolist()
        return Part(
            loaded=self.loaded,
            places=self.places[rows],
            labels=self.labels[rows],
            splits=tuple(self.splits[row] for row in wanted),
            groups=tuple(self.groups[row] for row in wanted),
            extra={
                name: tuple(values[row] for row in wanted) for name, values in self.extra.items()
            },
            masks=self.masks,
        )

    def digests(self, split: str) -> Iterator[str]:
        """Yield what `rows_digest` is made of, for the rows of one split."""
        for row, place in enumerate(self.places.tolist()):
            if self.splits[row] == split:
                yield row_digest(split, int(self.labels[row]), "real", self.loaded.ids[place])


def write_parts(
    folder: Path,
    parts: Sequence[Part],
    classes: Sequence[str],
    workers: int,
    on_rows: Callable[[int], None],
) -> StoreInfo:
    """Write the rows as a sample store; images are encoded in worker processes where many.

    Args:
        folder: of the store.
        parts: of one size and mode.
        classes: class names.
        workers: processes.
        on_rows: hears how many rows are written.
    """
    first = parts[0]
    types = {name: pa.string() for name in first.extra}
    types |= {MASK: pa.binary()} if first.masks else {}
    written = 0
    with StoreWriter(
        folder, classes, first.loaded.side_px, first.loaded.image_mode, extra_types=types
    ) as writer:
        for part in parts:
            cuts = np.searchsorted(part.places, part.loaded.starts)
            kept = [
                part.places[a:b] - start
                for a, b, start in zip(cuts[:-1], cuts[1:], part.loaded.starts[:-1], strict=True)
            ]
            pngs = encode_images(part.loaded, kept, workers)
            for number, (found, start) in enumerate(zip(pngs, cuts.tolist(), strict=False)):
                rows = np.arange(start, start + len(found))
                writer.add(_samples(part.take(rows), number), found)
                written += len(found)
                on_rows(written)
        return writer.close()


def _samples(part: Part, chunk: int) -> Samples:
    extra: dict[str, list[Any]] = {name: list(values) for name, values in part.extra.items()}
    if part.masks:
        extra[MASK] = _masks(part, chunk)
    count = len(part.places)
    return Samples(
        images=np.zeros((count, 0, 0, 1), dtype=np.uint8),  # they are encoded already
        labels=part.labels,
        ids=tuple(part.ids),
        splits=part.splits,
        groups=part.groups,
        origins=("real",) * count,
        extra=extra,
    )


def _masks(part: Part, number: int) -> list[bytes | None]:
    chunk = part.loaded.chunk(number)
    places = (part.places - part.loaded.starts[number]).tolist()
    return [
        encode_png(chunk.masks[place][:, :, None]) if chunk.masked[place] else None
        for place in places
    ]
