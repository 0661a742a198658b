"""The rows of a source as they are read: each is kept, or set aside with its reason."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import (
    LABEL_CONFLICT,
    LISTED_AGAIN,
    NO_LABEL,
    SYNTHETIC,
    UNKNOWN_LABEL,
    UNKNOWN_SPLIT,
    UNREADABLE_TIME,
    check_class_name,
    in_class_order,
    label_fault,
    printable,
    split_of,
)
from pipeline.readers.source import Contents, Quarantined, Source

MIN_CLASSES = 2

Kept = npt.NDArray[np.int64]
T = TypeVar("T")

_NUMBER = re.compile(r"\d{1,18}(\.\d{1,9})?")
_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")
_SHOWN_REASONS = 3


class Rows:
    """Columns that grow row by row, within the limits.

    Attributes:
        where: the source, for messages.
        aside: what was set aside so far; readers add to it.
        conversions: what was converted -> number of items; readers add to it.
    """

    def __init__(
        self, where: str, limits: ReadLimits, classes: Sequence[str] | None = None
    ) -> None:
        self.where = where
        self.aside: list[Quarantined] = []
        self.conversions: Counter[str] = Counter()
        self._limits = limits
        self._order = None if classes is None else list(classes)
        self._known = None if classes is None else set(classes)
        for name in classes or ():
            check_class_name(name, where)
        self._codes: dict[str, int] = {}
        self._labels = array("i")
        self._names: list[str] = []
        self._row_of: dict[str, int] = {}
        self._given: list[str | None] = []
        self._groups: list[str | None] = []
        self._times: list[str | None] = []
        self._texts: list[str | None] = []
        self._dropped: set[int] = set()
        self._seen = 0

    def add(
        self,
        name: str,
        label: str | None,
        split: str | None = None,
        group: str | None = None,
        time: str | None = None,
        text: str | None = None,
        origin: str | None = None,
    ) -> bool:
        """Keep a row, or set it aside; say which.

        Args:
            name: of the item, relative to the source; escaped here.
            label: name of its class.
            split: the word that the source uses, or None or blank.
            group: what it belongs to, or None or blank.
            time: number or ISO 8601, or None or blank.
            text: caption.
            origin: `synthetic` in what Replenish wrote of a model's images: they must never pass
                for real ones.

        Raises:
            InputError: more rows or classes than the limits allow.
        """
        self.count()
        name = printable(name)
        fault = (NO_LABEL, "no label is given") if label is None else label_fault(label)
        if origin == "synthetic":
            fault = SYNTHETIC, "a model drew it; only real images are read"
        given = split_of(split) if split and split.strip() else None
        if fault is None and given is None and split and split.strip():
            shown = printable(split[:40])
            fault = UNKNOWN_SPLIT, f"{shown!r}; use train, validation or test, or leave it blank"
        if fault is None and self._known is not None and label not in self._known:
            fault = UNKNOWN_LABEL, f"{label!r} is none of the {len(self._known)} classes"
        if fault is not None or label is None:
            self.set_aside(name, *(fault or (NO_LABEL, "")))
            return False
        code = self._codes.setdefault(label, len(self._codes))
        if len(self._codes) > self._limits.max_classes:
            raise InputError(
                f"{self.where}: more than {self._limits.max_classes} different labels; name "
                "the right column or folder, or raise prepare.max_classes"
            )
        first = self._row_of.setdefault(name, len(self._names))
        if first < len(self._names):
            self._again(name, first, code)
            return False
        self._names.append(name)
        self._labels.append(code)
        self._given.append(given)
        self._groups.append(printable(group) if group and group.strip() else None)
        self._times.append(time if time and time.strip() else None)
        self._texts.append(text if text and text.strip() else None)
        return True

    def count(self) -> None:
        """Count an item, kept or not.

        Raises:
            InputError: there are more than `max_rows`.
        """
        self._seen += 1
        if self._seen > self._limits.max_rows:
            raise InputError(
                f"{self.where}: more than {self._limits.max_rows} items; take a part of it, or "
                "raise prepare.max_rows"
            )

    def set_aside(self, name: str, reason: str, detail: str) -> None:
        """Quarantine an item that `count` or `add` has counted."""
        self.aside.append(Quarantined(printable(name), reason, detail))

    def source(
        self,
        contents: Callable[[Kept], Contents],
        masks: Callable[[Kept], Contents] | None = None,
    ) -> Source:
        """Return the source of the kept rows.

        Args:
            contents: makes the images of the rows it is given, numbered in the order of `add`.
            masks: the same for the masks.

        Raises:
            InputError: no row is left, or only one class.
        """
        times = self._sortable_times()
        count = len(self._names)
        kept = np.asarray([i for i in range(count) if i not in self._dropped], dtype=np.int64)
        codes = np.asarray(self._labels, dtype=np.int64)[kept]
        by_code = list(self._codes)
        held = {by_code[code] for code in np.unique(codes)}
        classes = in_class_order(held)
        if self._order is not None:
            classes = [name for name in self._order if name in held]
        check_classes(self.where, len(kept), classes, self.aside)
        index = {name: i for i, name in enumerate(classes)}
        lookup = np.asarray([index.get(name, -1) for name in by_code], dtype=np.int64)
        return Source(
            classes=tuple(classes),
            names=tuple(take(self._names, kept)),
            labels=lookup[codes],
            given=settled(take(self._given, kept)),
            contents=contents(kept),
            groups=_column(take(self._groups, kept)),
            times=_column(take(times, kept)),
            masks=None if masks is None else masks(kept),
            texts=_column(take(self._texts, kept)),
            quarantine=tuple(self.aside),
            conversions=dict(sorted(self.conversions.items())),
        )

    def _again(self, name: str, first: int, code: int) -> None:
        if self._labels[first] == code:
            self.set_aside(name, LISTED_AGAIN, "the first row of it is kept")
            return
        # Which label is right cannot be told, so neither row may stay.
        labels = list(self._codes)
        detail = f"labelled {labels[self._labels[first]]!r} and {labels[code]!r}; keep one row"
        self.set_aside(name, LABEL_CONFLICT, detail)
        if first not in self._dropped:
            self._dropped.add(first)
            self.set_aside(name, LABEL_CONFLICT, detail)

    def _sortable_times(self) -> list[str | None]:
        written = [time.strip() for time in self._times if time]
        if not written:
            return self._times
        if all(_NUMBER.fullmatch(time) for time in written):
            width = max(len(time.partition(".")[0]) for time in written)
            return [_padded(time.strip(), width) if time else None for time in self._times]
        times: list[str | None] = []
        for row, time in enumerate(self._times):
            times.append(_iso(time.strip()) if time else None)
            if time and times[-1] is None and row not in self._dropped:
                self._dropped.add(row)
                detail = f"{printable(time[:40])!r}; write ISO 8601 (2024-05-31), or numbers only"
                self.set_aside(self._names[row], UNREADABLE_TIME, detail)
        return times


def check_classes(
    where: str, rows: int, classes: Sequence[str], aside: Sequence[Quarantined]
) -> None:
    """Refuse a source without rows, or with fewer than 2 classes.

    Raises:
        InputError: says what was set aside and why.
    """
    if rows and len(classes) >= MIN_CLASSES:
        return
    found = "no usable item" if not rows else f"only the class {classes[0]!r}; at least 2 needed"
    raise InputError(f"{where}: {found}{told(aside)}")


def told(aside: Sequence[Quarantined]) -> str:
    """Return a half sentence on what was set aside, or nothing."""
    if not aside:
        return ""
    reasons = Counter(item.reason for item in aside).most_common(_SHOWN_REASONS)
    first = aside[0]
    return (
        f"; set aside: {', '.join(f'{count} {reason}' for reason, count in reasons)} "
        f"(first: {first.file}: {first.detail})"
    )


def settled(given: Sequence[str | None]) -> tuple[str | None, ...]:
    """Return the splits that a source truly decides.

    Rows said to be training rows are free to be drawn from while validation or test rows have
    still to be found among them: `train` stands only where the source has all three, or where it
    leaves other rows open.
    """
    words = set(given)
    if "train" not in words or None in words or {"validation", "test"} <= words:
        return tuple(given)
    return tuple(None if word == "train" else word for word in given)


def take(values: list[T], kept: Kept) -> list[T]:
    """Return the values of the kept rows; the very list where all are kept."""
    return values if len(kept) == len(values) else [values[i] for i in kept.tolist()]


def _column(values: list[str | None]) -> tuple[str | None, ...]:
    return tuple(values) if any(value is not None for value in values) else ()


def _padded(time: str, width: int) -> str:
    whole, _, part = time.partition(".")
    return whole.zfill(width) + (f".{part}" if part else "")


def _iso(time: str) -> str | None:
    if _YEAR_OR_MONTH.fullmatch(time):
        return time
    try:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return moment.isoformat()
