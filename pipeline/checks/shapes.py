"""Odd aspect ratios and odd sizes, as the files have them before they are made square."""

import numpy as np
import numpy.typing as npt

from pipeline.checks.examined import Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Finding
from pipeline.checks.scale import deviations

_OUTLYING = 4.0


def shapes(examined: Examined) -> list[Finding]:
    """Report images at least twice as elongated as is usual, or 4 times as large or as small.

    Both must also be outliers of the set's own scale: where all sizes occur, none is odd.
    """
    if not len(examined):
        return []
    width = np.log(examined.facts.width.astype(np.float64))
    height = np.log(examined.facts.height.astype(np.float64))
    aspect = deviations(width - height, np.log(2) / _OUTLYING)
    size = deviations(np.maximum(width, height), np.log(4) / _OUTLYING)
    findings = [
        _finding(
            examined,
            "odd_shape",
            np.abs(aspect),
            "of another shape than the others",
            "kept, made square as prepare.fit says; cut them to the object if much is lost",
        ),
        _finding(
            examined,
            "odd_size",
            np.abs(size),
            "far larger or smaller than the others",
            "kept and resized; far smaller ones turn out blurred",
        ),
    ]
    return [one for one in findings if one is not None]


def _finding(
    examined: Examined, check: str, away: npt.NDArray[np.float64], what: str, action: str
) -> Finding | None:
    rows = np.flatnonzero(away >= _OUTLYING - 1e-9)
    if not len(rows):
        return None
    shown = rows[np.argsort(-away[rows], kind="stable")][:MAX_EXAMPLES]
    facts = examined.facts
    return Finding(
        check,
        "info",
        len(rows),
        f"{count_of(len(rows), 'image is', 'images are')} {what}",
        action,
        tuple(
            examined.example(row, f"{facts.width[row]} x {facts.height[row]} px") for row in shown
        ),
    )
