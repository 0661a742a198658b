"""Scores of predictions: recall of each class, balanced accuracy, macro F1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, recall_score

from pipeline.errors import InputError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Scores of one classifier on one split; all in [0, 1], best 1.

    Attributes:
        balanced_accuracy: mean recall over the classes that the split has.
        macro_f1: mean F1 over the classes that the split has.
        recall: (K,) recall of each class; NaN where the split has no row of it.
        n: rows of the split.
    """

    balanced_accuracy: float
    macro_f1: float
    recall: npt.NDArray[np.float64]
    n: int


def score(labels: Labels, predicted: Labels, classes: int) -> Scores:
    """Score (N,) predictions against (N,) labels, both in [0, classes).

    Raises:
        InputError: there are no rows.
    """
    if not len(labels):
        raise InputError("no rows to score; check the split's counts in prepare/summary.json")
    present = np.unique(labels)
    recall = np.full(classes, np.nan)
    recall[present] = recall_score(
        labels, predicted, labels=present, average=None, zero_division=0.0
    )
    f1 = f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0)
    return Scores(float(recall[present].mean()), float(f1), recall, len(labels))


def require_every_class(labels: Labels, names: Sequence[str], split: str) -> None:
    """Refuse a split that lacks a class: its recall would be unknown.

    Raises:
        InputError: names the classes that are absent.
    """
    absent = [name for k, name in enumerate(names) if not (labels == k).any()]
    if absent:
        raise InputError(
            f"the {split} split has no image of {', '.join(absent)}; add images of it, raise "
            f"prepare.{split}_fraction, or leave the class out"
        )
