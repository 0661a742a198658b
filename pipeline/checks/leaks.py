"""Leaks: the pixels of a held-out image that the source gives to another side too.

The held-out image stays, since a score on fewer test images than others report compares with
nothing; its twin goes.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.checks.examined import SIDES, Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Aside, Finding

ALSO_IN_TEST = "also in test"
ALSO_IN_VALIDATION = "also in validation"
_REASONS = {"test": ALSO_IN_TEST, "validation": ALSO_IN_VALIDATION}


def leaks(examined: Examined, aside: Sequence[Aside]) -> tuple[list[Finding], list[Aside]]:
    """Report and set aside images whose pixels are in the given test or validation split too.

    Args:
        examined: the set.
        aside: rows that are set aside already; they are not named twice.
    """
    gone = np.zeros(len(examined), dtype=bool)
    gone[[one.row for one in aside]] = True
    findings: list[Finding] = []
    found: list[Aside] = []
    for split, reason in _REASONS.items():
        inside = examined.sides == SIDES[split]
        first = np.full(len(examined), -1, dtype=np.int64)
        held = np.flatnonzero(inside)[::-1]
        first[examined.same[held]] = held  # the last one written is the first row
        twins = first[examined.same]
        # A test image never goes because of validation.
        rows = np.flatnonzero((twins >= 0) & (examined.sides < SIDES[split]) & ~gone)
        if not len(rows):
            continue
        gone[rows] = True
        details = [f"the same pixels as {examined.names[twins[row]]}" for row in rows]
        found += [Aside(int(row), reason, d) for row, d in zip(rows, details, strict=True)]
        count = count_of(len(rows), "image outside", "images outside")
        findings.append(
            Finding(
                f"leaks_to_{split}",
                "warning",
                len(rows),
                f"{count} the given {split} split with the pixels of one inside it",
                f"set aside ({reason}); the {split} image stays",
                tuple(
                    examined.example(row, detail, twins[row])
                    for row, detail in zip(rows[:MAX_EXAMPLES], details, strict=False)
                ),
            )
        )
    return findings, sorted(found)
