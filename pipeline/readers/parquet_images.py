"""Images inside Parquet and Arrow files, fetched a row group or record batch at a time.

A cell is bytes, or Hugging Face's struct of `bytes` and `path`. The last groups are kept, in the
process that reads, because rows are asked for in about their order.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import DAMAGED, EMPTY_FILE, FILE_TOO_LARGE, UNREADABLE, Rejected
from pipeline.errors import InputError
from pipeline.hashing import digest_bytes
from pipeline.readers.source import NO_FILE, Payload
from pipeline.readers.tables import THRIFT_LIMITS, one_line, table_faults, texts

Kind = Literal["parquet", "arrow"]

_KEPT_GROUPS = 4
_KEPT_BYTES = 64 << 20
_MAX_GROUP_BYTES = 1 << 30


@dataclass(frozen=True)
class TableImages:
    """Contents of an image column.

    Attributes:
        kind: of the files.
        files: in order.
        ends: (G,) rows up to and with each group, over all files.
        file_of: (G,) index into `files`.
        group_of: (G,) number of the group within its file.
        column: name of the image column.
        rows: (N,) row of each item, over all files.
        max_bytes: longer images are rejected.
    """

    kind: Kind
    files: Sequence[Path]
    ends: npt.NDArray[np.int64]
    file_of: npt.NDArray[np.int64]
    group_of: npt.NDArray[np.int64]
    column: str
    rows: npt.NDArray[np.int64]
    max_bytes: int
    _kept: "OrderedDict[int, Any]" = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )
    _open: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and kept groups behind when sent to another process."""
        return self.__dict__ | {"_kept": OrderedDict(), "_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another process."""
        self.__dict__.update(state)

    def fetch(self, row: int) -> Payload | Rejected:
        """Return the bytes of the image."""
        import pyarrow as pa

        place = int(self.rows[row])
        group = bisect.bisect_right(self.ends, place)
        try:
            values = self._group(group)
            within = place - (int(self.ends[group - 1]) if group else 0)
            cell = values[within]
            if not cell.is_valid:
                return Rejected(NO_FILE, "the cell holds no bytes of an image")
            data = (cell.value if pa.types.is_dictionary(cell.type) else cell).as_buffer()
        except table_faults() as error:
            return Rejected(DAMAGED, one_line(error))
        if len(data) > self.max_bytes:
            detail = f"{len(data)} bytes; at most {self.max_bytes} are read (max_file_bytes)"
            return Rejected(FILE_TOO_LARGE, detail)
        return bytes(data) if len(data) else Rejected(EMPTY_FILE, "0 bytes")

    def digest(self, row: int) -> str:
        """Return the digest of the image's bytes, or why there are none."""
        found = self.fetch(row)
        return digest_bytes(found) if isinstance(found, bytes) else UNREADABLE

    def _group(self, group: int) -> Any:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        file = int(self.file_of[group])
        if file not in self._open:
            self._open.clear()  # one file at a time: a set may have thousands of them
            self._open[file] = open_table(self.kind, self.files[file], self.column)
        column = self._open[file].column(int(self.group_of[group]), self.column)
        column.validate()  # or Arrow ends the process where a struct's part has a length below 0
        values = image_bytes(column)
        values.validate(full=True)
        self._kept[group] = values
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        while len(self._kept) > _KEPT_GROUPS:
            self._kept.popitem(last=False)
        return values


class _ParquetTable:
    """A Parquet file, its image column read as a dictionary: what is repeated stays one."""

    def __init__(self, path: Path, image: str | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        dictionary = None
        if image is not None:
            with pq.ParquetFile(path, **THRIFT_LIMITS) as plain:
                struct = pa.types.is_struct(plain.schema_arrow.field(image).type)
            dictionary = [f"{image}.bytes" if struct else image]
        self.file = pq.ParquetFile(path, read_dictionary=dictionary, **THRIFT_LIMITS)
        self.schema = self.file.schema_arrow
        metadata = self.file.metadata
        self.group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        largest = max(
            (metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)),
            default=0,
        )
        if largest > _MAX_GROUP_BYTES or min(self.group_rows, default=0) < 0:
            raise InputError(
                f"{path}: a row group of {largest} bytes; at most {_MAX_GROUP_BYTES} are read at "
                "once: write it again with smaller row groups"
            )

    def column(self, group: int, name: str) -> Any:
        return self.file.read_row_group(group, columns=[name], use_threads=False).column(name)


class _ArrowTable:
    """An Arrow stream or file, mapped into memory; what is not looked at is not read."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        source = pa.memory_map(str(path), "r")
        try:
            reader = pa.ipc.open_stream(source)
            self.batches = list(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.schema = reader.schema
        self.group_rows = [batch.num_rows for batch in self.batches]

    def column(self, group: int, name: str) -> Any:
        import pyarrow as pa

        return pa.Table.from_batches([self.batches[group]]).column(name)


def open_table(kind: Kind, path: Path, image: str | None) -> _ParquetTable | _ArrowTable:
    """Return an opened table with `schema`, `group_rows` and `column(group, name)`.

    Raises:
        InputError: a row group is too large, or it is no regular file.
        ArrowException: the file is damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited on for ever
        raise InputError(f"{path}: a folder, pipe or device, where a file is expected")
    return _ParquetTable(path, image) if kind == "parquet" else _ArrowTable(path)


def batches_of(
    table: _ParquetTable | _ArrowTable, names: Sequence[str]
) -> Iterator[dict[str, list[str | None]]]:
    """Yield name -> cells as text for each group of a table, in order.

    Raises:
        ArrowException: the file is damaged.
    """
    for group, rows in enumerate(table.group_rows):
        cells: dict[str, list[str | None]] = {name: [] for name in names}
        for name in names if rows else ():
            for chunk in table.column(group, name).chunks:
                cells[name] += texts(chunk)
            if len(cells[name]) != rows:
                raise ValueError(f"{len(cells[name])} cells in a group of {rows} rows")
        yield cells


def is_image_type(kind: Any) -> bool:
    """Say whether an Arrow type can hold encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(
            kind.field(i).name == "bytes" and is_image_type(kind.field(i).type)
            for i in range(kind.num_fields)
        )
    if pa.types.is_dictionary(kind):
        return is_image_type(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_bytes(values: Any) -> Any:
    """Return the chunked array of bytes of an image column, null where the cell is."""
    import pyarrow as pa

    kind = values.type
    if not pa.types.is_struct(kind):
        return values
    names = [kind.field(i).name for i in range(kind.num_fields)]
    return values.flatten()[names.index("bytes")]
