"""Predictions that a user's script wrote: one CSV or Parquet file, checked row by row."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.folders import safe_join

FILES = ("predictions.csv", "predictions.parquet")
_PROBABILITY = "probability_"
_MOST_BYTES = 256 << 20  # of the file, and of a Parquet file's columns unpacked
_SUM_TOLERANCE = 0.01
_NAMED = 3  # offenders that a message names


@dataclass(frozen=True)
class CommandPredictions:
    """What a user's classifier says; rows in the order of the ids that were asked for.

    Attributes:
        validation: (N,) int64 predicted class of each validation row.
        test: (M,) int64 predicted class of each test row.
        validation_probabilities: (N, K) float32, each row sums to 1; (N, 0) where none are given.
        test_probabilities: (M, K) float32; (M, 0) where none are given.
    """

    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    validation_probabilities: npt.NDArray[np.float32]
    test_probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Row:
    where: str
    label: str
    probabilities: tuple[float, ...]


def read_predictions(
    work: Path, validation_ids: Sequence[str], test_ids: Sequence[str], classes: Sequence[str]
) -> CommandPredictions:
    """Read predictions.csv or predictions.parquet in `work`.

    Columns: `id`, `label` (class names, or indices of classes, one kind throughout), and either no
    or all of `probability_NAME`, one a class. Other columns are passed over.

    Args:
        work: the script's folder.
        validation_ids: of the rows asked for.
        test_ids: of the rows asked for; an image in both needs one prediction.
        classes: class names.

    Raises:
        InputError: no file, two, a link out of the folder, too large or unreadable; an id is
            missing, unknown or doubled; a class is unknown; probabilities are incomplete, not
            finite, or sum to something other than 1. Names the file, the row and the remedy.
    """
    path = _find(work)
    wanted = set(validation_ids) | set(test_ids)
    rows: dict[str, _Row] = {}
    unknown: list[str] = []
    read = _read_csv if path.suffix == ".csv" else _read_parquet
    for identity, row in read(path, classes, len(wanted)):
        if identity in rows:
            raise InputError(
                f"{row.where}: id {_short(identity)} occurs a second time; write each id once"
            )
        if identity in wanted:
            rows[identity] = row
        else:
            unknown.append(f"{_short(identity)} ({row.where.rpartition(': ')[2]})")
            if len(unknown) > _NAMED:
                break
    if unknown:
        raise InputError(
            f"{path}: unknown ids: {', '.join(unknown[:_NAMED])}; write the ids of the validation "
            "and test stores, and no others"
        )
    missing = [one for one in (*validation_ids, *test_ids) if one not in rows]
    if missing:
        raise InputError(
            f"{path}: {len(set(missing))} of {len(wanted)} ids are missing, such as "
            f"{', '.join(_short(one) for one in missing[:_NAMED])}; predict every row of the "
            "validation and test stores"
        )
    labels = _labels(rows, classes)

    def table(ids: Sequence[str]) -> npt.NDArray[np.float32]:
        width = len(rows[ids[0]].probabilities) if ids else 0
        found = np.asarray([rows[one].probabilities for one in ids], dtype=np.float32)
        return found.reshape(len(ids), width)

    return CommandPredictions(
        validation=np.asarray([labels[one] for one in validation_ids], dtype=np.int64),
        test=np.asarray([labels[one] for one in test_ids], dtype=np.int64),
        validation_probabilities=table(validation_ids),
        test_probabilities=table(test_ids),
    )


def _find(work: Path) -> Path:
    found = [safe_join(work, name) for name in FILES if (work / name).exists()]
    if len(found) != 1:
        what = "both of" if found else "neither of"
        raise InputError(f"{work}: holds {what} {' and '.join(FILES)}; write one of them there")
    if not found[0].is_file():
        raise InputError(f"{found[0]}: not a file; write the predictions into a plain file")
    size = found[0].stat().st_size
    if size > _MOST_BYTES:
        raise InputError(
            f"{found[0]}: {size / 2**20:,.0f} MiB, more than {_MOST_BYTES >> 20} MiB; write one "
            "row an image with the columns id, label and probabilities alone, or Parquet"
        )
    return found[0]


def _read_csv(path: Path, classes: Sequence[str], _: int) -> Iterator[tuple[str, _Row]]:
    row_number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            columns = _columns(path, header, classes)
            for row_number, values in enumerate(reader, start=2):
                if not values:  # a blank line
                    continue
                if len(values) != len(header):
                    raise InputError(
                        f"{path}: row {row_number}: {len(values)} values for {len(header)} "
                        "columns; quote values that hold commas"
                    )
                yield _row(f"{path}: row {row_number}", [values[i] for i in columns])
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: row {row_number} or the one after it: no CSV in UTF-8 ({error}); write it "
            "with a CSV library"
        ) from None


def _read_parquet(path: Path, classes: Sequence[str], most: int) -> Iterator[tuple[str, _Row]]:
    try:
        file = pq.ParquetFile(path)
        header = file.schema_arrow.names
        columns = [header[i] for i in _columns(path, header, classes)]
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > _MOST_BYTES:
            raise InputError(
                f"{path}: more than {_MOST_BYTES >> 20} MiB unpacked; write one row an image with "
                "the columns id, label and probabilities alone"
            )
        number = 0
        for batch in file.iter_batches(batch_size=1 << 16, columns=columns):
            lists = [batch.column(name).to_pylist() for name in columns]
            for values in zip(*lists, strict=True):
                number += 1
                yield _row(f"{path}: row {number}", values)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not readable as Parquet ({_short(error, 160)}); write it again"
        ) from None


def _columns(path: Path, header: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the positions of id, label and, where given, each class's probability."""
    doubled = sorted({name for name in header if header.count(name) > 1 and name})
    if doubled:
        raise InputError(f"{path}: the column {_short(doubled[0])} occurs twice; write it once")
    for name in ("id", "label"):
        if name not in header:
            raise InputError(
                f"{path}: no column {name} (it has {_short(', '.join(header) or 'none', 160)}); "
                "the first row must name the columns id and label"
            )
    wanted = [f"{_PROBABILITY}{name}" for name in classes]
    given = [name for name in header if name.startswith(_PROBABILITY)]
    strange = [name for name in given if name not in wanted]
    absent = [name for name in wanted if name not in given] if given else []
    for names, what in ((strange, "belongs to no class"), (absent, "is missing")):
        if names:
            raise InputError(
                f"{path}: the column {_short(names[0])} {what}; write {_PROBABILITY}NAME for every "
                "class, or for none"
            )
    return [header.index(name) for name in ("id", "label", *(wanted if given else ()))]


def _row(where: str, values: Sequence[object]) -> tuple[str, _Row]:
    identity, label, *rest = values
    try:
        probabilities = tuple(float(str(value)) for value in rest)
    except ValueError:
        wrong = next(value for value in rest if not _is_number(value))
        raise InputError(
            f"{where}: probability {_short(wrong)!r} is no number; write one from 0 to 1"
        ) from None
    if probabilities:
        wrong = next((p for p in probabilities if not 0.0 <= p <= 1.0), None)  # NaN is not either
        if wrong is not None:
            raise InputError(
                f"{where}: probability {wrong:g} is not finite or outside [0, 1]; write "
                "probabilities, not logits"
            )
        total = math.fsum(probabilities)
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise InputError(
                f"{where}: the probabilities sum to {total:.4g}, not to 1; write one probability a "
                "class"
            )
        probabilities = tuple(p / total for p in probabilities)
    return str(identity), _Row(where, str(label), probabilities)


def _labels(rows: Mapping[str, _Row], classes: Sequence[str]) -> dict[str, int]:
    """Return id -> class. All labels are names where that is possible, else all are indices.

    One rule for the file, not for the row: a class named "1" need not have the index 1.
    """
    names = {name: index for index, name in enumerate(classes)}
    indices = {str(index): index for index in range(len(classes))}
    for known in (names, indices):
        if all(row.label in known for row in rows.values()):
            return {identity: known[row.label] for identity, row in rows.items()}
    wrong = next(
        (row for row in rows.values() if row.label not in names and row.label not in indices),
        next(row for row in rows.values() if row.label not in names),
    )
    shown = ", ".join(_short(name) for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
    raise InputError(
        f"{wrong.where}: unknown class {_short(wrong.label)!r}; write class names ({shown}) "
        f"throughout, or indices from 0 to {len(classes) - 1} throughout"
    )


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _short(value: object, most: int = 40) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."
