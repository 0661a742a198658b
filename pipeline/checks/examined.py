"""The set that is examined, and what the checks are told to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.checks.facts import Facts
from pipeline.checks.findings import Example
from pipeline.data.images import Images

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examined:
    """N labelled images.

    Attributes:
        names: of each image, unique.
        labels: (N,) int64, indices into `classes`.
        classes: class names.
        splits: of each image where the source gives one (train, validation, test), else None.
        groups: of each image where the source names it, else None; empty where none has one.
        ids: digest of each image's pixels; equal pixels have equal ids.
        facts: of each image, as decoded.
        images: rows -> (n, S, S, C) uint8, as they will be trained on.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    splits: Sequence[str | None]
    groups: Sequence[str | None]
    ids: Sequence[str]
    facts: Facts
    images: Callable[[Rows], Images]

    def __len__(self) -> int:
        """Return N."""
        return len(self.names)

    @cached_property
    def same(self) -> Rows:
        """Return (N,) the first row with the same pixels, for each row."""
        first: dict[str, int] = {}
        return np.fromiter(
            (first.setdefault(identity, row) for row, identity in enumerate(self.ids)),
            dtype=np.int64,
            count=len(self.ids),
        )

    @cached_property
    def first_rows(self) -> Rows:
        """Return the first row of each distinct image, ascending."""
        return np.flatnonzero(self.same == np.arange(len(self)))

    @cached_property
    def sides(self) -> npt.NDArray[np.int8]:
        """Return (N,) the given split: -1 none, 0 train, 1 validation, 2 test."""
        return np.fromiter(
            (SIDES.get(split, -1) if split else -1 for split in self.splits),
            dtype=np.int8,
            count=len(self.splits),
        )

    def example(self, row: int, detail: str, other: int | None = None) -> Example:
        """Return a row as an example."""
        row = int(row)
        return Example(
            self.names[row], self.ids[row], detail, None if other is None else self.ids[int(other)]
        )

    def class_name(self, row: int) -> str:
        """Return the name of a row's class, quoted."""
        return repr(self.classes[self.labels[row]])


SIDES = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Settings:
    """What is looked for, and what the set is wanted for.

    Attributes:
        near_duplicates: look for them?
        label_issues: look for likely wrong labels?
        drop_label_issues: quarantine them too?
        validation_fraction: share of each class's distinct images.
        test_fraction: likewise.
        folds: of the cross-validations to come; a class needs as many training images.
        target_images: training images that a class is to be topped up to; None where not planned.
        seed: root seed.
        threads: of the searches and fits, at least 1.
        near_duplicate_rows: sets of more distinct images are not searched for near duplicates.
        label_issue_rows: so many images are looked through for wrong labels, drawn from all.
    """

    near_duplicates: bool = True
    label_issues: bool = True
    drop_label_issues: bool = False
    validation_fraction: float = 0.15
    test_fraction: float = 0.25
    folds: int = 5
    target_images: int | None = None
    seed: int = 0
    threads: int = 1
    near_duplicate_rows: int = 200_000
    label_issue_rows: int = 5_000


def count_of(count: int, one: str, many: str) -> str:
    """Return a number with its noun: `1 image is`, `1,200 images are`."""
    return f"{count:,} {one if count == 1 else many}"
