"""Scores of predictions: recall and precision of each class, balanced accuracy, and more."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from pipeline.errors import InputError

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of one classifier on one split; all in [0, 1], best 1.

    Attributes:
        balanced_accuracy: mean recall over the classes that the split has.
        macro_f1: mean F1 over the classes that the split has.
        recall: (K,) recall of each class; NaN where the split has no row of it.
        precision: (K,) precision of each class; 0 where it is never predicted, NaN where the split
            has no row of it.
        n: rows of the split.
    """

    balanced_accuracy: float
    macro_f1: float
    recall: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    n: int


def score(labels: Labels, predicted: Labels, classes: int) -> Scores:
    """Score (N,) predictions against (N,) labels, both in [0, classes).

    Raises:
        InputError: there are no rows.
    """
    if not len(labels):
        raise InputError("no rows to score; check the split's counts in prepare/summary.json")
    present = np.unique(labels)
    recall, precision = np.full(classes, np.nan), np.full(classes, np.nan)
    recall[present] = recall_score(
        labels, predicted, labels=present, average=None, zero_division=0.0
    )
    precision[present] = precision_score(
        labels, predicted, labels=present, average=None, zero_division=0.0
    )
    f1 = f1_score(labels, predicted, labels=present, average="macro", zero_division=0.0)
    return Scores(float(recall[present].mean()), float(f1), recall, precision, len(labels))


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


def auroc(labels: Labels, probabilities: Probabilities) -> float | None:
    """Return the area under the ROC curve, each class against the rest, mean over classes.

    Args:
        labels: (N,) in [0, K).
        probabilities: (N, K) of each class.

    Returns:
        In [0, 1], best 1, chance 0.5, ties count half; None where a class has no row, or where
        there are fewer than two classes.
    """
    classes = probabilities.shape[1]
    if classes < 2 or len(np.unique(labels)) < classes:
        return None
    # Class by class: scikit-learn's own mean asks that rows sum to 1 more exactly than halves do.
    return float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)]))


def calibration_error(labels: Labels, probabilities: Probabilities, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017, eq. 3), in [0, 1], best 0.

    Rows are put into equal bins of their largest probability, (m / M, (m + 1) / M]; the error is
    the mean over rows of |share right - mean probability| of their bin. Biased upwards for few
    rows: a calibrated classifier has about 0.05 with 200 rows.

    Args:
        labels: (N,) in [0, K).
        probabilities: (N, K) of each class.
        bins: number of bins M.

    Raises:
        InputError: there are no rows.
    """
    if not len(labels):
        raise InputError("no rows to score; check the split's counts in prepare/summary.json")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def worst_group_recall(
    labels: Labels, predicted: Labels, groups: Sequence[str], least: int = 5
) -> float | None:
    """Return the balanced accuracy of the group that has the lowest one (Sagawa et al. 2020).

    Args:
        labels: (N,) class of each row.
        predicted: (N,) predicted class of each row.
        groups: (N,) name of each row's group.
        least: a group with fewer rows does not count.

    Returns:
        In [0, 1], best 1: the minimum over groups of the mean recall over the classes that the
        group has; None where fewer than two groups have `least` rows.
    """
    names, group_of, counts = np.unique(
        np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    large = [g for g in range(len(names)) if counts[g] >= least]
    if len(large) < 2:
        return None
    lowest = 1.0
    for g in large:
        rows = group_of == g
        recall = recall_score(
            labels[rows], predicted[rows], labels=np.unique(labels[rows]), average="macro"
        )
        lowest = min(lowest, float(recall))
    return lowest
