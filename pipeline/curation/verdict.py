"""The verdict: which rules a candidate's scores break, and the reason that is told of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.curation.limits import Limits, fails
from pipeline.curation.selection import Reason, Rule

Columns = Mapping[str, npt.NDArray[Any]]
Labels = npt.NDArray[np.int64]
Masks = npt.NDArray[np.bool_]

# Rules that have one reason each.
_REASONS: dict[Rule, Reason] = {
    "near_copies": "near_copy",
    "realism": "unreal",
    "off_class": "off_class",
    "typical": "typical",
    "repeats": "near_repeat",
}
_QUARREL = 0.5  # share of the judges' doubt that is among them, above which they disagree


def broken(columns: Columns, labels: Labels, limits: Limits, rules: Sequence[Rule]) -> Masks:
    """Return (N, R) whether each rule rejects each of N candidates.

    Args:
        columns: scores by name, (N,) each; a rule whose score is missing rejects nothing by it.
        labels: (N,) that the candidates are meant to show.
        limits: all of them.
        rules: R of them.
    """
    failed = np.zeros((len(labels), len(rules)), dtype=bool)
    for i, rule in enumerate(rules):
        failed[:, i] = fails(columns, labels, limits, rule) | fixed(columns, limits, rule)
    return failed


def fixed(columns: Columns, limits: Limits, rule: Rule) -> Masks:
    """Return (N,) what a rule rejects beyond the limits that are fitted together."""
    if rule == "artefacts":
        return (
            (columns["spread"] < limits["spread"])
            | (columns["dark"] > limits["dark"])
            | (columns["bright"] > limits["bright"])
            | (columns["rough"] > limits["rough"])
        )
    if rule == "typical":
        typical: Masks = columns["support_distance"] < limits["typical_distance"]
        return typical
    failed: Masks = np.zeros(len(columns["confidence"]), dtype=bool)
    if rule == "copies":
        failed = columns["pixel_ratio"] < limits["copy_ratio"]
        if "parent_distance" in columns:
            failed |= columns["parent_distance"] < limits["copy_distance"]
    return failed


def reason_of(
    columns: Columns, row: int, label: int, limits: Limits, rules: Sequence[Rule], failed: Masks
) -> Reason:
    """Return why one candidate stays or goes: the first rule that it breaks counts.

    Args:
        columns: scores of all candidates.
        row: which one.
        label: that it is meant to show.
        limits: all of them.
        rules: enabled ones, in the order in which they are asked.
        failed: (R,) which of them it breaks.
    """
    rule = next((rule for rule, bad in zip(rules, failed, strict=True) if bad), None)
    if rule is None:
        return "accepted"
    if rule == "copies":
        if "parent_distance" in columns and (
            columns["parent_distance"][row] < limits["copy_distance"]
        ):
            return "copy_parent"
        ratio = columns["pixel_ratio"][row] < limits["copy_ratio"]
        return "copy_ratio" if ratio else "copy_distance"
    if rule == "artefacts":
        if columns["spread"][row] < limits["spread"]:
            return "blank"
        clipped = any(columns[name][row] > limits[name] for name in ("dark", "bright"))
        return "saturated" if clipped else "noisy"
    if rule == "labels":
        if columns["predicted"][row] != label:
            return "disagrees"
        return "uncertain" if columns["disagreement"][row] > _QUARREL else "unsure"
    return _REASONS[rule]
