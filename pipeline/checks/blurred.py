"""Blurred images: far less fine structure than their contrast lets expect, for their class."""

import numpy as np

from pipeline.checks.examined import Examined, count_of
from pipeline.checks.exposure import BLANK_STD
from pipeline.checks.findings import MAX_EXAMPLES, Finding
from pipeline.checks.scale import deviations

_OUTLYING = 5.0
_LEAST_IMAGES = 20  # of a class that has a scale of its own
_LEAST_SCALE = 0.2  # of the logarithm


def blurred(examined: Examined) -> list[Finding]:
    """Report images whose Laplacian varies far less than is usual in their class.

    The variance is divided by that of the grey values, so that faint is not taken for blurred.
    Small classes are compared with the whole set.
    """
    facts = examined.facts
    seen = np.flatnonzero(facts.std >= BLANK_STD)
    if len(seen) < _LEAST_IMAGES:
        return []
    share = np.log(
        (facts.sharpness[seen].astype(np.float64) + 0.1) / facts.std[seen].astype(np.float64) ** 2
    )
    below = deviations(share, _LEAST_SCALE)
    labels = examined.labels[seen]
    for label in range(len(examined.classes)):
        own = np.flatnonzero(labels == label)
        if len(own) >= _LEAST_IMAGES:
            below[own] = deviations(share[own], _LEAST_SCALE)
    found = np.flatnonzero(below < -_OUTLYING)
    if not len(found):
        return []
    rows = seen[found[np.argsort(below[found], kind="stable")]]
    return [
        Finding(
            "blurred",
            "warning",
            len(rows),
            f"{count_of(len(rows), 'image is', 'images are')} far smoother than usual in their "
            "class",
            "kept; remove those that are out of focus",
            tuple(
                examined.example(row, f"of class {examined.class_name(row)}")
                for row in rows[:MAX_EXAMPLES]
            ),
        )
    ]
