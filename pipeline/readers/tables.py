"""Tables of text from a stranger: CSV, TSV, JSON lines and Parquet, batch by batch.

Whatever a cell holds comes out as text or None. What breaks one row is told of that row, what
breaks the table is one error.
"""

import csv
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import InputError
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import printable

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")

_DELIMITERS = {".csv": (",", ";", "\t"), ".tsv": ("\t",)}
_MAX_LINE_CHARACTERS = 1 << 20
_MAX_COLUMNS = 2_000
_BATCH_ROWS = 4_096
_MAX_THRIFT_BYTES = 64 << 20
_MAX_THRIFT_ITEMS = 4_000_000
_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        number: of its line, from 1 and with the header; in Parquet of the row, from 1.
        cells: field -> text or None, for the fields that the table has.
        fault: what makes the row unreadable, or None.
    """

    number: int
    cells: Mapping[str, str | None]
    fault: str | None = None


def read_table(
    path: Path, columns: Mapping[str, str], needed: Sequence[str], limits: ReadLimits
) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        path: a file named .csv, .tsv, .jsonl or .parquet.
        columns: field -> name of its column; case and blanks around it do not count.
        needed: fields without which the table is of no use.
        limits: `max_metadata_bytes` bounds the file.

    Raises:
        InputError: the file is no plain file, too large, damaged, or has not the needed columns.
    """
    ending = path.suffix.lower()
    try:
        most = limits.max_metadata_bytes
        check_file(path, most, f"tables of at most {most} are read: cut it into several folders")
        if ending == ".parquet":
            yield from _parquet_rows(path, columns, needed)
            return
        # Bytes that are no UTF-8 may be the name of a file; they are told apart later.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if ending == ".jsonl":
                yield from _json_rows(file, path, columns, needed)
            else:
                yield from _csv_rows(file, path, columns, needed)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def check_file(path: Path, most_bytes: int, bound: str) -> None:
    """Refuse what should not be opened: what is no plain file, and what is too large.

    Args:
        path: of the file.
        most_bytes: a larger file is refused.
        bound: the limit and the remedy in words, for the message.

    Raises:
        InputError: it is refused.
        OSError: it is not there, or cannot be reached.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited on for ever
        raise InputError(f"{path}: a folder, pipe or device, where a file is expected")
    if status.st_size > most_bytes:
        raise InputError(f"{path}: {status.st_size} bytes; {bound}")


def match_columns(
    present: Sequence[str], columns: Mapping[str, str], needed: Sequence[str], where: str
) -> dict[str, int]:
    """Return field -> position of its column.

    Raises:
        InputError: a needed column is missing, or two columns bear the name of one.
    """
    plain = [name.strip().lower() for name in present]
    found: dict[str, int] = {}
    for field, name in columns.items():
        places = [i for i, one in enumerate(plain) if one == name.strip().lower()]
        if len(places) > 1:
            raise InputError(f"{where}: {len(places)} columns are named {name!r}; keep one")
        if places:
            found[field] = places[0]
        elif field in needed:
            shown = ", ".join(printable(one[:60]) for one in present[:_SHOWN_COLUMNS])
            raise InputError(
                f"{where}: no column {name!r} (prepare.columns.{field}); it has: {shown or 'none'}"
            )
    return found


def as_text(value: Any) -> str | None:
    """Return a cell as text: what is blank or not a number is None.

    Raises:
        TypeError: the value is a list, a table or the like.
    """
    if value is None or value != value:  # NaN, by which pandas writes an empty cell
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    raise TypeError(type(value).__name__)


def _csv_rows(
    file: TextIO, path: Path, columns: Mapping[str, str], needed: Sequence[str]
) -> Iterator[Row]:
    header = file.readline(_MAX_LINE_CHARACTERS)
    choices = _DELIMITERS.get(path.suffix.lower(), (",",))
    delimiter = max(choices, key=header.count)
    reader = csv.reader(_lines(file, path, header), delimiter=delimiter, strict=True)
    try:
        present = next(reader, [])
        if len(present) > _MAX_COLUMNS:
            raise InputError(f"{path}: {len(present)} columns; at most {_MAX_COLUMNS} are read")
        places = match_columns(present, columns, needed, str(path))
        for cells in reader:
            number = reader.line_num
            if not cells:
                continue
            if len(cells) != len(present):
                detail = f"{len(cells)} cells, where the header has {len(present)}"
                yield Row(number, {}, detail)
                continue
            yield Row(number, {field: cells[i] for field, i in places.items()})
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; close its quotes, or write the table again"
        ) from None


def _lines(file: TextIO, path: Path, header: str) -> Iterator[str]:
    number = 1
    line = header
    while line:
        if len(line) >= _MAX_LINE_CHARACTERS:
            raise InputError(f"{path}, line {number}: more than {_MAX_LINE_CHARACTERS} characters")
        yield line
        line = file.readline(_MAX_LINE_CHARACTERS)
        number += 1


def _json_rows(
    file: TextIO, path: Path, columns: Mapping[str, str], needed: Sequence[str]
) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, path, file.readline(_MAX_LINE_CHARACTERS)), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError("no JSON object")
            if number == 1:
                match_columns(list(value), columns, needed, f"{path}, line 1")
            cells = {
                field: as_text(value[name]) for field, name in columns.items() if name in value
            }
        except (ValueError, RecursionError):
            yield Row(number, {}, "no JSON")
        except TypeError as error:
            yield Row(number, {}, f"{error}, where text is expected")
        else:
            yield Row(number, cells)


def _parquet_rows(path: Path, columns: Mapping[str, str], needed: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, **THRIFT_LIMITS) as plain:
            schema = plain.schema_arrow
        places = match_columns(schema.names, columns, needed, str(path))
        wanted = {field: schema.names[i] for field, i in places.items()}
        for field, i in places.items():
            check_type(schema.field(i), f"{path}, column of {field}")
        names = list(wanted.values())
        # Dictionaries stay dictionaries: one long text that a million rows share stays one.
        with pq.ParquetFile(path, read_dictionary=names, **THRIFT_LIMITS) as file:
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
                cells = {field: texts(batch.column(name)) for field, name in wanted.items()}
                for i in range(batch.num_rows):
                    number += 1
                    yield Row(number, {field: values[i] for field, values in cells.items()})
    except table_faults() as error:
        raise InputError(f"{path}: damaged Parquet ({one_line(error)})") from None


def check_type(field: Any, where: str) -> None:
    """Refuse an Arrow column whose cells cannot become text.

    Raises:
        InputError: it holds lists, tables, bytes or the like.
    """
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    tests = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean),
        *(pa.types.is_floating, pa.types.is_timestamp, pa.types.is_date, pa.types.is_null),
    )
    if not any(test(kind) for test in tests):
        raise InputError(f"{where}: holds {str(kind)[:80]}, where text or numbers are expected")


def texts(values: Any) -> list[str | None]:
    """Return the cells of an Arrow array as text, after a check of its inner offsets.

    Raises:
        ArrowInvalid: the array points outside itself.
    """
    import pyarrow as pa

    values.validate(full=True)
    if not pa.types.is_dictionary(values.type):
        return [_cell(value) for value in values.to_pylist()]
    codes = values.indices.to_pylist()
    # Only the entries that are used: a dictionary may be much longer than the batch.
    used = sorted({code for code in codes if code is not None})
    entries = values.dictionary.take(pa.array(used, pa.int64())).to_pylist()
    cells = dict(zip(used, map(_cell, entries), strict=True))
    return [None if code is None else cells[code] for code in codes]


def one_line(error: BaseException) -> str:
    """Return what an error says, short, on one line, and safe to be shown."""
    return printable(" ".join(str(error).split())[:200])


def table_faults() -> tuple[type[Exception], ...]:
    """Return what pyarrow and its wrappers raise over a damaged file."""
    import pyarrow as pa

    # Not all of Arrow's own are ValueErrors: types it does not know are NotImplementedErrors.
    return (pa.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError)


def _cell(value: Any) -> str | None:
    return value.isoformat() if isinstance(value, date) else as_text(value)


THRIFT_LIMITS = {
    "thrift_string_size_limit": _MAX_THRIFT_BYTES,
    "thrift_container_size_limit": _MAX_THRIFT_ITEMS,
}
