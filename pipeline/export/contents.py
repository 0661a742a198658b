"""Check what lies in a shard's files against its manifest: pixels, ids, labels, marks.

Files come from strangers: the size of an image or a member of a tar is bounded before it is read, a
Parquet file is read some hundreds of rows at a time, and what a parser trips over is a fault of the
file.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.decoding import quiet_pillow
from pipeline.export.choices import Layout
from pipeline.export.manifests import ExportManifest, RowEntry, ShardManifest, read_bounded
from pipeline.export.marks import is_marked
from pipeline.export.names import UNLABELLED_FOLDER, class_folders
from pipeline.export.rows import MAX_IMAGE_BYTES, checked_pixels

MISSING = "rows without an image"
ADDED = "images that are no row"
MISMATCH = "rows whose label, split, origin or id is another than in the manifest"
UNMARKED = "synthetic images without their mark"
MARKED = "real images marked as synthetic"
UNREADABLE = "files that cannot be read"

Faults = dict[str, list[str]]  # kind of fault -> names of rows
_BATCH_ROWS = 500
_COLUMNS = ("image", "id", "label", "split", "origin")


def check_contents(
    folder: Path, export: ExportManifest, shard: ShardManifest, present: set[str]
) -> Faults:
    """Return what is wrong with the images of one shard.

    Args:
        folder: of the export.
        export: its manifest.
        shard: manifest of the shard.
        present: files of the shard that exist, as regular files inside the folder.
    """
    faults: Faults = {}
    with quiet_pillow():
        try:
            _CHECKS[export.layout](folder, export, shard, present, faults)
        except (pa.ArrowException, tarfile.TarError, OSError, ValueError, EOFError) as error:
            _add(faults, UNREADABLE, f"{shard.shard} ({type(error).__name__})")
    return faults


def _check_folder(
    folder: Path, export: ExportManifest, shard: ShardManifest, present: set[str], faults: Faults
) -> None:
    folders = class_folders(export.classes)
    for row in shard.rows:
        below = folders[row.label] if 0 <= row.label < len(folders) else UNLABELLED_FOLDER
        if not row.image.startswith(f"{shard.split}/{below}/"):
            _add(faults, MISMATCH, row.image)
    _check_files(folder, export, shard, present, faults)


def _check_files(
    folder: Path, export: ExportManifest, shard: ShardManifest, present: set[str], faults: Faults
) -> None:
    left = set(shard.files)
    for row in shard.rows:
        if row.image in left and row.image in present:
            _check_png(faults, read_bounded(folder / row.image, MAX_IMAGE_BYTES), row, export)
        else:
            _add(faults, MISSING, row.image)
        left.discard(row.image)
    for name in sorted(left):
        _add(faults, ADDED, name)


def _check_tar(
    folder: Path, export: ExportManifest, shard: ShardManifest, present: set[str], faults: Faults
) -> None:
    rows = {row.image: row for row in shard.rows}
    expected = {image.removesuffix("png") + end for image in rows for end in ("png", "cls", "json")}
    for path in sorted(present):
        with tarfile.open(folder / path, "r:") as file:
            for member in file:
                if member.name not in expected or not member.isreg():
                    _add(faults, ADDED, member.name)
                    continue
                expected.discard(member.name)
                row = rows[member.name.rpartition(".")[0] + ".png"]
                data = _bounded(file.extractfile(member))
                if member.name.endswith(".png"):
                    _check_png(faults, data, row, export)
                elif not _says(data, member.name, row, shard.split):
                    _add(faults, MISMATCH, row.image)
    for name in sorted(expected):
        _add(faults, MISSING, name)


def _says(data: bytes | None, name: str, row: RowEntry, split: str) -> bool:
    """Say whether a .cls or .json member tells the same as the manifest."""
    if data is None:
        return False
    if name.endswith(".cls"):
        return data == str(row.label).encode()
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and _is_row(facts, row, split)


def _check_parquet(
    folder: Path, export: ExportManifest, shard: ShardManifest, present: set[str], faults: Faults
) -> None:
    rows = iter(shard.rows)
    for path in sorted(present):
        with pq.ParquetFile(folder / path) as file:
            absent = sorted(set(_COLUMNS) - set(file.schema_arrow.names))
            if absent:
                _add(faults, UNREADABLE, f"{path}: no column {absent[0]}")
                return
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(_COLUMNS)):
                for values in batch.to_pylist():
                    row = next(rows, None)
                    if row is None:
                        _add(faults, ADDED, str(values["id"])[:12])
                        continue
                    if not _is_row(values, row, shard.split):
                        _add(faults, MISMATCH, row.id[:12])
                    image = values["image"]
                    png = image.get("bytes") if isinstance(image, dict) else None
                    _check_png(faults, png if isinstance(png, bytes) else None, row, export)
    for row in rows:
        _add(faults, MISSING, row.id[:12])


def _is_row(values: dict[str, Any], row: RowEntry, split: str) -> bool:
    stated = tuple(values.get(name) for name in ("id", "label", "split", "origin"))
    return stated == (row.id, row.label, split, row.origin)


def _check_png(faults: Faults, png: bytes | None, row: RowEntry, export: ExportManifest) -> None:
    if png is None:
        _add(faults, f"no image, or more than {MAX_IMAGE_BYTES:,} bytes", row.id[:12])
        return
    pixels = checked_pixels(png, export.image_size_px, export.image_mode, row.id)
    if isinstance(pixels, str):
        _add(faults, pixels, row.id[:12])
        return
    try:
        marked = is_marked(png)
    except Exception:  # a parser's fault on a hostile file is the file's fault
        _add(faults, UNREADABLE, row.id[:12])
        return
    if marked != (row.origin == "synthetic"):
        _add(faults, MARKED if marked else UNMARKED, row.id[:12])


def _bounded(stream: IO[bytes] | None) -> bytes | None:
    data = b"" if stream is None else stream.read(MAX_IMAGE_BYTES + 1)
    return None if len(data) > MAX_IMAGE_BYTES else data


def _add(faults: Faults, kind: str, name: str) -> None:
    faults.setdefault(kind, []).append(name)


_Check = Callable[[Path, ExportManifest, ShardManifest, set[str], Faults], None]
_CHECKS: dict[Layout, _Check] = {
    "store": _check_parquet,
    "huggingface": _check_parquet,
    "folder": _check_folder,
    "coco": _check_files,
    "webdataset": _check_tar,
}
