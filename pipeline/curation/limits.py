"""Limits of the rules, fitted so that all of them together cost a stated share of real rows.

A limit is an order statistic of real rows that no judge and no index has seen: of n rows, the k-th
lowest is undercut by a further such row with probability k / (n + 1) (Vovk et al. 2005,
"Algorithmic learning in a random world"). With k = 1 at least, n rows cannot promise
less than 1 / (n + 1) a rule.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.curation.selection import Rule

Columns = Mapping[str, npt.NDArray[Any]]  # score by name, each (N,)
Labels = npt.NDArray[np.int64]
Limits = dict[str, npt.NDArray[np.float64]]  # one number, () or by label, (C,)


@dataclass(frozen=True)
class Thresholds:
    """What scores are held against, those of disabled rules too.

    Attributes:
        confidence: least probability of the meant label, by label.
        copy_distance: least pixel distance to a training row, and to the parent.
        copy_ratio: least nearest over second-nearest pixel distance.
        near_copy: least closeness to a training row once aligned.
        near_repeat: least closeness to an earlier candidate of the class; 0 where `repeats` is off
            and none is compared.
        spread: least contrast.
        dark: largest share of black values.
        bright: largest share of white values.
        rough: largest share of the variance that is from pixel to pixel.
        support_distance: largest distance to the class's real rows.
        class_ratio: largest ratio of that to another class's.
        typical_distance: least distance to the class's real rows.
    """

    confidence: tuple[float, ...]
    copy_distance: float
    copy_ratio: float
    near_copy: float
    near_repeat: float
    spread: float
    dark: float
    bright: float
    rough: float
    support_distance: float
    class_ratio: float
    typical_distance: float

    def as_dict(self) -> dict[str, float]:
        """Return the limits by name; those of the confidence end in the label's number."""
        values = asdict(self)
        by_label = values.pop("confidence")
        return {f"confidence_{label}": limit for label, limit in enumerate(by_label)} | values


@dataclass(frozen=True)
class Limit:
    """One limit that is fitted.

    Attributes:
        name: in the thresholds.
        column: score that it is held against.
        rule: that it belongs to.
        side: low: reject below it; high: reject above it.
        weight: share of what the rules may cost, relative to the others. The labels get the most:
            a wrong label harms most, and is what real rows are least clear about.
        floor: the limit is at least this, whatever real rows do.
        by_label: one limit a class: judges are less sure of the real rows of thin classes, and it
            is for these that most candidates are drawn.
    """

    name: str
    column: str
    rule: Rule
    side: Literal["low", "high"]
    weight: float
    floor: float = 0.0
    by_label: bool = False


# A closeness of 0.01 is a residual of 0.1 where the next picture has 1, or 0.07 where it has 0.5.
LIMITS: tuple[Limit, ...] = (
    Limit("copy_distance", "pixel_distance", "copies", "low", 0.1),
    Limit("near_copy", "near_closeness", "near_copies", "low", 0.15, floor=0.01),
    Limit("near_repeat", "repeat_closeness", "repeats", "low", 0.15, floor=0.01),
    Limit("confidence", "confidence", "labels", "low", 1.0, by_label=True),
    Limit("support_distance", "support_distance", "realism", "high", 0.15),
    Limit("class_ratio", "class_ratio", "off_class", "high", 0.15),
)
COPY_COLUMNS = ("pixel_distance", "near_closeness", "repeat_closeness")
SUPPORT_COLUMNS = ("support_distance", "class_ratio")
# What all other classes weigh together in the limit of one, in rows. With 50, a class of 45 rows
# sets half of its limit itself; measured on digits, 15 to 100 do about as well.
_OTHERS_ROWS = 50.0
_SCALES = np.geomspace(4.0, 0.1, 60)


def order_limit(values: npt.NDArray[Any], share: float, side: Literal["low", "high"]) -> float:
    """Return the limit that a share of further real rows is expected to lie beyond.

    Args:
        values: (N,) scores of real rows, N >= 1.
        share: expected share beyond; at least 1 / (N + 1) is given.
        side: low: the k-th lowest, k = share * (N + 1) rounded down; high: the k-th highest.
    """
    ordered = np.sort(values)
    k = min(len(ordered), max(1, int(share * (len(ordered) + 1))))
    return float(ordered[k - 1] if side == "low" else ordered[-k])


def class_limits(
    values: npt.NDArray[Any], labels: Labels, classes: int, share: float
) -> npt.NDArray[np.float64]:
    """Return each class's low limit, (C,), from all rows, those of other classes weighing less.

    Args:
        values: (N,) scores of real rows, N >= 1.
        labels: (N,) of them.
        classes: C.
        share: expected share below, of the weighted rows and one more.
    """
    order = np.argsort(values, kind="stable")
    ordered, owners = values[order], labels[order]
    limits = np.zeros(classes)
    for label in range(classes):
        own = owners == label
        weights = np.where(own, 1.0, min(1.0, _OTHERS_ROWS / max(1, int((~own).sum()))))
        below = np.cumsum(weights)
        k = np.searchsorted(below, share * (below[-1] + 1), side="right")
        limits[label] = ordered[max(0, int(k) - 1)]
    return limits


def fit_limits(
    reference: Columns,
    labels: Labels,
    classes: int,
    pools: Columns,
    fixed: npt.NDArray[np.bool_],
    rules: Collection[Rule],
    share: float,
) -> Limits:
    """Return all limits; those of the enabled rules reject at most `share` of the reference rows.

    The rules overlap, and how much differs from set to set: all shares are scaled alike, to the
    largest scale that keeps the union; with very few rows even the smallest may exceed it.

    Args:
        reference: scores of real rows, every column; N >= 1.
        labels: (N,) of them.
        classes: number of classes.
        pools: columns of other real rows, that these columns' limits are read off instead.
        fixed: (N,) reference rows that rules without a fitted limit reject.
        rules: enabled ones.
        share: that may be rejected.
    """
    limits: Limits = {}
    for scale in _SCALES:
        lost = fixed.copy()
        for one in LIMITS:
            part = float(scale * one.weight * share)
            pool = pools.get(one.column, reference[one.column])
            if one.by_label:
                limit = class_limits(reference[one.column], labels, classes, part)
            else:
                limit = np.asarray(order_limit(pool, part, one.side))
            limits[one.name] = np.maximum(limit, one.floor)
            if one.rule in rules:
                # `<=`: the row that gives the limit counts, as a further row in its place would.
                values, bar = reference[one.column], _of(limits[one.name], labels)
                lost |= values <= bar if one.side == "low" else values >= bar
        if lost.mean() <= share:
            break
    return limits


def fails(columns: Columns, labels: Labels, limits: Limits, rule: Rule) -> npt.NDArray[np.bool_]:
    """Return which of N rows with meant (N,) labels a rule's fitted limits reject."""
    failed = np.zeros(len(labels), dtype=bool)
    for one in LIMITS:
        if one.rule == rule and one.column in columns:
            values, bar = columns[one.column], _of(limits[one.name], labels)
            failed |= values < bar if one.side == "low" else values > bar
    return failed


def _of(limit: npt.NDArray[np.float64], labels: Labels) -> npt.NDArray[np.float64]:
    """Return the limit of each row."""
    return limit[labels] if limit.ndim else limit
