"""A manifest: a table that names image files and their labels."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import files_ending
from pipeline.readers.naming import (
    LEADS_OUT,
    MALFORMED_ROW,
    clean_path,
    path_fault,
    printable,
)
from pipeline.readers.rows import Kept, Rows, take
from pipeline.readers.source import Contents, Files, Source
from pipeline.readers.tables import Row, read_table

ENDINGS = (".csv", ".tsv", ".parquet")
NO_PATH = "no path"

_NEEDED = ("path", "label")


def recognise_manifest(path: Path, columns: Columns | None = None) -> str | None:
    """Return why `path` looks like a manifest, or a folder with one, or None."""
    table = _find(path)
    if table is None:
        return None
    if path.is_dir():
        # A table beside folders of images may be any table: its columns decide.
        try:
            next(
                read_table(table, table_columns(columns or Columns()), _NEEDED, ReadLimits()), None
            )
        except InputError:
            return None
    return f"the table {printable(table.name)}"


def read_manifest(path: Path, limits: ReadLimits, columns: Columns | None = None) -> Source:
    """Return the images that a table names, in its order.

    Paths are relative to the table's folder and stay inside of it. A row is set aside where its
    label is blank, its split is unknown, its path leads out, or another row names the same path
    (both where the labels differ).

    Args:
        path: a .csv, .tsv or .parquet file, or a folder that has one such file.
        limits: bounds.
        columns: names of the columns.

    Raises:
        InputError: there is no table, it is damaged or lacks a column, or nothing usable is left.
    """
    table = _find(path)
    if table is None:
        raise InputError(
            f"prepare.path = {path}: no table; name a file that ends in {', '.join(ENDINGS)}, or "
            "a folder with one such file"
        )
    rows = Rows(str(table), limits)
    listed = Listed(rows)
    for row in read_table(table, table_columns(columns or Columns()), _NEEDED, limits):
        listed.add(row)
    return listed.source(table.parent, limits)


def table_columns(columns: Columns) -> dict[str, str]:
    """Return field -> column, with the column by which our own tables tell synthetic rows."""
    return {**columns.model_dump(), "origin": "origin"}


class Listed:
    """The paths that tables name, beside the rows they make.

    Attributes:
        rows: receives every row.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._paths: list[str] = []
        self._masks: list[str] = []

    def add(self, row: Row, below: str = "", split: str | None = None) -> None:
        """Keep a row of a table, or set it aside.

        Args:
            row: fields `path`, `label` and the optional ones.
            below: folder of the table relative to the root of the paths, or empty.
            split: for rows that name none.
        """
        if row.fault is not None:
            self._aside(f"row {row.number}", MALFORMED_ROW, row.fault)
            return
        path, fault = _below(below, row.cells.get("path"))
        if not path:
            self._aside(f"row {row.number}", NO_PATH, "the row names no file")
            return
        mask, mask_fault = _below(below, row.cells.get("mask"))
        if fault or mask_fault:
            what = fault or f"mask: {mask_fault}"
            self._aside(f"row {row.number}: {path[:200]}", LEADS_OUT, what)
            return
        cells = row.cells
        added = self.rows.add(
            path,
            cells.get("label"),
            cells.get("split") or split,
            cells.get("group"),
            cells.get("time"),
            cells.get("text"),
            cells.get("origin"),
        )
        if added:
            self._paths.append(path)
            self._masks.append(mask)

    def source(self, root: Path, limits: ReadLimits) -> Source:
        """Return the source of the rows, their files below `root`.

        Raises:
            InputError: see `Rows.source`.
        """

        def files(paths: list[str], kept: Kept) -> Contents:
            return Files(root, take(paths, kept), limits.max_file_bytes)

        masks = (lambda kept: files(self._masks, kept)) if any(self._masks) else None
        return self.rows.source(lambda kept: files(self._paths, kept), masks)

    def _aside(self, name: str, reason: str, detail: str) -> None:
        self.rows.count()
        self.rows.set_aside(name, reason, detail)


def _below(folder: str, path: str | None) -> tuple[str, str | None]:
    if path is None or not path.strip():
        return "", None
    path = clean_path(path.strip())
    return f"{folder}/{path}" if folder else path, path_fault(path)


def _find(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in ENDINGS else None
    if not path.is_dir():
        return None
    found = [
        name for name in files_ending(path, ENDINGS) if not name.lower().startswith("metadata.")
    ]
    return path / found[0] if len(found) == 1 else None
