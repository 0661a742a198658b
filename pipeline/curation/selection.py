"""Acceptance: which candidates stay, and the reason of each one that does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.curation.scores import Scores

Reason = Literal[
    "accepted",
    "repeat",
    "copy_parent",
    "copy_ratio",
    "copy_distance",
    "disagrees",
    "unsure",
    "surplus",
]
Identity = TypeVar("Identity", str, bytes)
REASONS: dict[Reason, str] = {
    "accepted": "kept",
    "repeat": "the same pixels as a real image or as an earlier candidate",
    "copy_parent": "nearer to the training image that it was made from than held-out real images "
    "come to any: a copy of it",
    "copy_ratio": "far nearer to one training image than to any other: a copy of it",
    "copy_distance": "nearer to a training image than held-out real images come: a copy of it",
    "disagrees": "the judge sees another class",
    "unsure": "the judge is less sure of the class than of held-out real images",
    "surplus": "good, but the class has all the images that it wanted",
}


@dataclass(frozen=True)
class Thresholds:
    """Limits of acceptance, the first two fitted on validation rows.

    Attributes:
        confidence: least probability of the meant label.
        copy_distance: least pixel distance to the nearest training row.
        copy_ratio: least nearest over second-nearest pixel distance.
    """

    confidence: float
    copy_distance: float
    copy_ratio: float


def fit_thresholds(
    validation: Scores, confidence_quantile: float, copy_quantile: float, copy_ratio: float
) -> Thresholds:
    """Return the limits that the given shares of real held-out rows would fall short of.

    A judge that is unsure of real images thus asks little of synthetic ones. The lower empirical
    quantile is taken, so that a share of 0 is the least value seen.
    """
    return Thresholds(
        confidence=_low_quantile(validation.confidence, confidence_quantile),
        copy_distance=_low_quantile(validation.pixel_distance, copy_quantile),
        copy_ratio=copy_ratio,
    )


def find_reasons(
    ids: Sequence[Identity],
    labels: npt.NDArray[np.int64],
    scores: Scores,
    thresholds: Thresholds,
    seen: set[Identity],
) -> list[Reason]:
    """Return each candidate's reason, `accepted` where it passes; the first rule that fails counts.

    Args:
        ids: sha256 of the candidates' pixels, in the form that `seen` has.
        labels: (N,) meant labels.
        scores: of the candidates.
        thresholds: limits.
        seen: ids of real rows and earlier candidates; the candidates' own are added.
    """
    reasons: list[Reason] = []
    for i, identity in enumerate(ids):
        reasons.append(_reason(i, identity in seen, int(labels[i]), scores, thresholds))
        seen.add(identity)
    return reasons


def _reason(i: int, repeated: bool, label: int, scores: Scores, limits: Thresholds) -> Reason:
    if repeated:
        return "repeat"
    if scores.parent_distance is not None and scores.parent_distance[i] < limits.copy_distance:
        return "copy_parent"
    if scores.pixel_ratio[i] < limits.copy_ratio:
        return "copy_ratio"
    if scores.pixel_distance[i] < limits.copy_distance:
        return "copy_distance"
    if scores.predicted[i] != label:
        return "disagrees"
    if scores.confidence[i] < limits.confidence:
        return "unsure"
    return "accepted"


def _low_quantile(values: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share, method="lower"))
