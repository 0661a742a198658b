"""Four ways to lay rows out in a folder, each a shard at a time.

A writer yields a `Shard` as soon as its files are whole, and keeps no image longer than that.

    folder       train/cat/<id>.png, train/metadata.csv
    coco         images/train/<id>.png, annotations/instances_train.json
    webdataset   train-00000.tar of <id>.png, <id>.cls, <id>.json
    parquet      data/train-00000-of-00003.parquet (formats store and huggingface)
"""

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.store import BASE_COLUMNS, StoreInfo
from pipeline.export.manifests import FileEntry, RowEntry, file_entry
from pipeline.export.names import UNLABELLED_FOLDER, cell, class_folders
from pipeline.export.rows import Row, read_batches, read_rows, read_schema, split_files
from pipeline.hashing import digest_file

METADATA = "metadata.csv"
NOTHING = "none"  # an empty text cell
_ID_DIGITS = 16  # of 64 in a file name; names that fall together get a number
_FIRST_COLUMNS = ("file_name", "label", "label_index", "split", "origin", "id", "group")


@dataclass(frozen=True)
class Shard:
    """A finished part of an export.

    Attributes:
        name: of the shard, e.g. train-00000.
        split: of its rows.
        files: path in the export -> what it is.
        rows: in order.
        digests: digest of each row, as the store's digest is made of.
    """

    name: str
    split: str
    files: dict[str, FileEntry]
    rows: list[RowEntry]
    digests: list[str]


def write_folder(
    store: Path, info: StoreInfo, split: str, out: Path, images_per_shard: int
) -> Iterator[Shard]:
    """Write a folder a class, and metadata.csv beside them.

    Every class has its folder in every split, be it empty: torchvision numbers classes by the
    folders that it finds.
    """
    folders = class_folders(info.classes)
    paths = [UNLABELLED_FOLDER] if split == "pool" else folders
    names = _Names()
    for path in paths:
        (out / split / path).mkdir(parents=True, exist_ok=True)
    extra = _extra_columns(store, split)
    with (out / split / METADATA).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*_FIRST_COLUMNS, *(cell(name) for name in extra)])
        for name, part in _parts(read_rows(store, info, split), split, images_per_shard):
            shard = _new(name, split)
            for row in part:
                below = folders[row.label] if row.label >= 0 else UNLABELLED_FOLDER
                image = f"{below}/{names.take(row, below)}.png"
                _write_image(shard, out, f"{split}/{image}", row)
                first = (image, row.class_name, row.label, split, row.origin, row.id, row.group)
                last = (
                    row.extra[one] if row.extra[one] is not None else extra[one] for one in extra
                )
                table.writerow([cell(value) for value in (*first, *last)])
            yield shard


def write_coco(
    store: Path, info: StoreInfo, split: str, out: Path, images_per_shard: int
) -> Iterator[Shard]:
    """Write images and COCO's JSON: one box an image, the whole of it, of the image's category.

    Category ids are label + 1, because detectors keep 0 for the background.
    """
    names, side = _Names(), info.image_size_px
    labels: list[int] = []
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    path = out / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    categories = [
        {"id": label + 1, "name": name, "supercategory": ""}
        for label, name in enumerate(info.classes)
    ]
    with path.open("w", encoding="utf-8") as file:
        about = {"description": f"Written by Replenish from store {info.digest}"}
        file.write(f'{{"info": {json.dumps(about)}, "licenses": [], "images": [')
        for name, part in _parts(read_rows(store, info, split), split, images_per_shard):
            shard = _new(name, split)
            for row in part:
                image = f"{split}/{names.take(row, '')}.png"
                _write_image(shard, out, f"images/{image}", row)
                size = {"width": side, "height": side}
                entry = {"id": len(labels) + 1, "file_name": image, **size}
                file.write(",\n" if labels else "\n")
                file.write(json.dumps({**entry, "replenish": row.facts()}, allow_nan=False))
                labels.append(row.label)
            yield shard
        file.write('\n], "annotations": [')
        first = True
        for number, label in enumerate(labels, start=1):
            if label >= 0:  # the pool's images have none
                entry = {"id": number, "image_id": number, "category_id": label + 1}
                box = {"bbox": [0, 0, side, side], "area": side * side, "iscrowd": 0}
                file.write("\n" if first else ",\n")
                file.write(json.dumps({**entry, **box, "segmentation": []}))
                first = False
        file.write(f'\n], "categories": {json.dumps(categories)}}}\n')


def write_webdataset(
    store: Path, info: StoreInfo, split: str, out: Path, images_per_shard: int
) -> Iterator[Shard]:
    """Write tar files of .png, .cls (the class index) and .json (all columns) a row."""
    for name, part in _parts(read_rows(store, info, split), split, images_per_shard):
        names, shard = _Names(), _new(name, split)
        path = out / f"{name}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
            for row in part:
                key = names.take(row, "")
                facts = json.dumps(row.facts(), sort_keys=True, allow_nan=False)
                _add_member(file, f"{key}.png", row.png)
                _add_member(file, f"{key}.cls", str(row.label).encode())
                _add_member(file, f"{key}.json", facts.encode())
                _note(shard, f"{key}.png", row)
        _note_file(shard, out, path)
        yield shard


def write_parquet(
    store: Path, info: StoreInfo, split: str, out: Path, images_per_shard: int
) -> Iterator[Shard]:
    """Write one Parquet file for each of the store's, with the marked images in it.

    `images_per_shard` does not count here: the store's own cut is kept.
    """
    files = split_files(store, split)
    for number, source in enumerate(files):
        shard = _new(f"{split}-{number:05d}", split)
        path = out / "data" / f"{split}-{number:05d}-of-{len(files):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        schema = read_schema(source)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch, rows in read_batches(source, info):
                images = [
                    {"bytes": row.png, "path": f"{row.id[:_ID_DIGITS]}{_suffix(row)}.png"}
                    for row in rows
                ]
                position = schema.get_field_index("image")
                column = pa.array(images, schema.field("image").type)
                writer.write_batch(batch.set_column(position, schema.field("image"), column))
                for row in rows:
                    _note(shard, str(len(shard.rows)), row)
        _note_file(shard, out, path)
        yield shard


class _Names:
    """File names that were given already: `<first digits of the id>`, a mark, a number."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], int] = {}

    def take(self, row: Row, below: str) -> str:
        name = f"{row.id[:_ID_DIGITS]}{_suffix(row)}"
        count = self._given.get((below, name), 0) + 1
        self._given[below, name] = count
        return name if count == 1 else f"{name}-{count}"


def _suffix(row: Row) -> str:
    return "-synthetic" if row.synthetic else ""


def _parts(rows: Iterator[Row], split: str, size: int) -> Iterator[tuple[str, Iterator[Row]]]:
    """Yield name and rows of each shard; the rows are to be taken before the next shard."""
    for number in itertools.count():
        first = next(rows, None)
        if first is None:
            return
        yield f"{split}-{number:05d}", itertools.chain([first], itertools.islice(rows, size - 1))


def _new(name: str, split: str) -> Shard:
    return Shard(name, split, {}, [], [])


def _note(shard: Shard, image: str, row: Row) -> None:
    parent = row.extra.get("parent_id")
    shard.rows.append(
        RowEntry.model_validate(
            {
                "image": image,
                "id": row.id,
                "label": row.label,
                "origin": row.origin,
                "parent": str(parent) if parent else None,
            }
        )
    )
    shard.digests.append(row.digest)


def _write_image(shard: Shard, out: Path, name: str, row: Row) -> None:
    (out / name).write_bytes(row.png)
    shard.files[name] = file_entry(row.png)
    _note(shard, name, row)


def _note_file(shard: Shard, out: Path, path: Path) -> None:
    name = path.relative_to(out).as_posix()
    shard.files[name] = FileEntry(sha256=digest_file(path), bytes=path.stat().st_size)


def _add_member(file: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time is 0 and its owner root, whoever writes it
    member.size = len(data)
    file.addfile(member, io.BytesIO(data))


def _extra_columns(store: Path, split: str) -> dict[str, str | None]:
    """Return further column -> what stands in it where there is nothing.

    Readers of CSV guess a column's type from its cells. A text column that is empty in one split
    would be numbers there and text elsewhere, and `datasets` refuses such tables.
    """
    files = split_files(store, split)
    schema = read_schema(files[0]) if files else pa.schema([])
    return {
        one.name: NOTHING if pa.types.is_string(one.type) else None
        for one in schema
        if one.name not in BASE_COLUMNS
    }
