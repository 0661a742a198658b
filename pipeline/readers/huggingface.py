"""Hugging Face datasets: saved to disk, as Parquet, by id, and folders with `metadata.csv`.

Nothing of the hub's is run: saved datasets are read as the Arrow files that they are, and by id
only `datasets` itself is asked. What a file says of its features stands in its schema's metadata.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.hf_files import (
    DICTIONARY,
    METADATA_FILES,
    STATE,
    Part,
    known_splits,
    metadata_files,
    parquet_parts,
    saved_parts,
)
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import entries, stays_inside
from pipeline.readers.manifest import Listed, table_columns
from pipeline.readers.naming import UNKNOWN_SPLIT, printable, split_of
from pipeline.readers.parquet_images import TableImages, batches_of, is_image_type, open_table
from pipeline.readers.rows import Kept, Rows
from pipeline.readers.source import Source
from pipeline.readers.tables import check_type, match_columns, one_line, read_table, table_faults

HUB = "hub:"  # prepare.path = hub:owner/name or hub:owner/name@revision


@dataclass(frozen=True)
class _Layout:
    """Which column is what; `names` has the class of each label that is a number."""

    image: str
    label: str
    fields: dict[str, str]
    classes: tuple[str, ...] | None
    names: dict[str, str]


def recognise_huggingface(path: Path, columns: Columns | None = None) -> str | None:
    """Return why `path` looks like a Hugging Face dataset, or None; the network is not asked."""
    if str(path).startswith(HUB):
        return "an id on the hub"
    if path.is_dir():
        for name in (DICTIONARY, STATE):
            if (path / name).is_file():
                return f"the file {name} of a dataset saved to disk"
        found = metadata_files(path)
        if found and _names_files(path.joinpath(*found[0]), columns or Columns()):
            return f"an image folder with {'/'.join(part for part in found[0] if part)}"
    elif path.suffix.lower() != ".parquet":
        return None
    parts = parquet_parts(path) if path.exists() else []
    if not parts:
        return None
    faults: tuple[type[Exception], ...] = (InputError, *table_faults())
    try:
        table = open_table("parquet", parts[0].files[0], None)
    except faults:
        return None
    schema = table.schema
    image = next((field.name for field in schema if is_image_type(field.type)), None)
    return f"Parquet with the image column {printable(image)}" if image else None


def read_huggingface(path: str, limits: ReadLimits, columns: Columns | None = None) -> Source:
    """Return the images of a Hugging Face dataset.

    Args:
        path: folder or file, or `hub:owner/name`, which is downloaded by `datasets`.
        limits: bounds.
        columns: names of the columns; without a column of the label's name, the first that is a
            ClassLabel is taken, and without an image column named as the path's, the first.

    Raises:
        InputError: it is none, damaged or unreachable, or nothing usable is left.
    """
    columns = columns or Columns()
    if path.startswith(HUB):
        from pipeline.readers.hub import download

        parts, aside = known_splits(download(path.removeprefix(HUB)))
        return read_parts(path, parts, aside, limits, columns)
    root = Path(path)
    if not root.is_file():
        entries(root)
    parts, aside = known_splits(saved_parts(root))
    if not parts and root.is_dir() and (found := metadata_files(root)):
        return _read_image_folder(root, found, limits, columns)
    if not parts:
        parts, aside = known_splits(parquet_parts(root))
    if not parts:
        raise InputError(
            f"prepare.path = {path}: no Hugging Face dataset; give a folder of save_to_disk, one "
            f"with .parquet files or with {METADATA_FILES[0]}, or {HUB}owner/name"
        )
    return read_parts(path, parts, aside, limits, columns)


def read_parts(
    where: str,
    parts: Sequence[Part],
    aside: Sequence[str],
    limits: ReadLimits,
    columns: Columns,
) -> Source:
    """Return the images of Arrow or Parquet files of one schema.

    Args:
        where: the source, for messages.
        parts: the files, by split.
        aside: words of splits that are none of ours, set aside whole.
        limits: bounds.
        columns: names of the columns.

    Raises:
        InputError: a file is damaged, files differ in their classes, or a column is missing.
    """
    rows: Rows | None = None
    layout: _Layout | None = None
    places: list[int] = []
    ends: list[int] = []
    file_of: list[int] = []
    group_of: list[int] = []
    files: list[Path] = []
    start = 0
    for part in parts:
        number = 0
        for path in part.files:
            try:
                table = open_table(part.kind, path, None)
                own = _layout(table.schema, columns, str(path))
                if layout is None or rows is None:
                    layout, rows = own, Rows(where, limits, own.classes)
                if (own.classes, own.image) != (layout.classes, layout.image):
                    raise InputError(f"{path}: other columns or classes than the files before")
                table = open_table(part.kind, path, own.image)
                fields = {**own.fields, "label": own.label}
                for cells in batches_of(table, list(dict.fromkeys(fields.values()))):
                    for i in range(len(cells[own.label])):
                        row = {field: cells[name][i] for field, name in fields.items()}
                        if _add(rows, f"{part.name}/{number:07d}", row, part.split, own.names):
                            places.append(start + i)
                        number += 1
                    start += len(cells[own.label])
                ends += [
                    start - sum(table.group_rows) + int(n) for n in np.cumsum(table.group_rows)
                ]
                file_of += [len(files)] * len(table.group_rows)
                group_of += range(len(table.group_rows))
                files.append(path)
            except table_faults() as error:
                raise InputError(
                    f"{path}: a damaged {part.kind} file ({one_line(error)}); save it again"
                ) from None
    if rows is None or layout is None:
        raise InputError(f"{where}: holds no files of images")
    for word in aside:
        rows.set_aside(word, UNKNOWN_SPLIT, "a whole split; train, validation and test are read")
    kind, image, max_bytes = parts[0].kind, layout.image, limits.max_file_bytes
    index = [np.asarray(values, dtype=np.int64) for values in (ends, file_of, group_of, places)]

    def contents(kept: Kept) -> TableImages:
        return TableImages(
            kind, files, index[0], index[1], index[2], image, index[3][kept], max_bytes
        )

    return rows.source(contents)


def _add(
    rows: Rows,
    name: str,
    row: Mapping[str, str | None],
    split: str | None,
    names: Mapping[str, str],
) -> bool:
    label = row["label"]
    if label is not None:
        label = names.get(label, None if label.startswith("-") else label) if names else label
    return rows.add(
        name,
        label,
        row.get("split") or split,
        row.get("group"),
        row.get("time"),
        row.get("text"),
        row.get("origin"),
    )


def _layout(schema: Any, columns: Columns, where: str) -> _Layout:
    import pyarrow as pa

    features = _features(schema, where)
    images = [field.name for field in schema if is_image_type(field.type)]
    told = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    if not images:
        raise InputError(f"{where}: no column of images (bytes, or a struct with bytes)")
    names = columns.model_dump()
    del names["path"], names["mask"]
    fields = match_columns(schema.names, names, (), where)
    labels = [name for name, one in features.items() if one.get("_type") == "ClassLabel"]
    if "label" not in fields:
        if not labels:
            match_columns(schema.names, {"label": columns.label}, ("label",), where)
        fields["label"] = schema.get_field_index(labels[0])
    if "origin" in schema.names:
        fields["origin"] = schema.get_field_index("origin")
    for field, i in fields.items():
        if i < 0:
            raise InputError(f"{where}: a column is missing, or stands there twice")
        check_type(schema.field(i), f"{where}, column of {field}")
    label = schema.names[fields.pop("label")]
    listed = features.get(label, {}).get("names")
    classes = None
    if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
        classes = tuple(dict.fromkeys(listed))
        if len(classes) != len(listed):
            raise InputError(f"{where}: two classes of the column {label!r} have one name")
    code_of = {}
    if classes is not None and pa.types.is_integer(schema.field(label).type):
        code_of = {str(i): name for i, name in enumerate(classes)}
    others = {field: schema.names[i] for field, i in fields.items()}
    image = columns.path if columns.path in images else (told or images)[0]
    return _Layout(image, label, others, classes, code_of)


def _features(schema: Any, where: str) -> dict[str, dict[str, Any]]:
    raw = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        told = json.loads(raw)
        features = told.get("info", {}).get("features", {})
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{where}: its huggingface metadata is damaged; save it again") from None


def _names_files(table: Path, columns: Columns) -> bool:
    # A class folder may hold a table of that name for its own ends: its columns decide.
    names = columns.model_dump() | {"path": "file_name"}
    try:
        next(read_table(table, names, ("path", "label"), ReadLimits()), None)
    except InputError:
        return False
    return True


def _read_image_folder(
    root: Path, found: Sequence[tuple[str, str]], limits: ReadLimits, columns: Columns
) -> Source:
    rows = Rows(str(root), limits)
    listed = Listed(rows)
    for below, name in found:
        table = root / below / name
        if not stays_inside(root, f"{below}/{name}" if below else name):
            raise InputError(f"{table}: leads out of {root}; put the file itself there")
        names = table_columns(columns) | {"path": "file_name"}
        for row in read_table(table, names, ("path", "label"), limits):
            top = below or (row.cells.get("path") or "").partition("/")[0]
            listed.add(row, below, split_of(top))
    return listed.source(root, limits)
