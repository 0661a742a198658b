"""Exact duplicates: the same pixels, more than once in one class."""

import numpy as np

from pipeline.checks.examined import Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Finding


def exact_duplicates(examined: Examined) -> list[Finding]:
    """Report images that repeat an earlier one of their own class."""
    earlier = examined.same
    rows = np.flatnonzero(
        (earlier != np.arange(len(examined))) & (examined.labels == examined.labels[earlier])
    )
    if not len(rows):
        return []
    found = count_of(len(rows), "image is an exact copy", "images are exact copies")
    return [
        Finding(
            "exact_duplicates",
            "info",
            len(rows),
            f"{found} of an earlier one of the same class",
            "copies stay on one side of every split, and count once in validation and in test",
            tuple(
                examined.example(
                    row, f"the same pixels as {examined.names[earlier[row]]}", earlier[row]
                )
                for row in rows[:MAX_EXAMPLES]
            ),
        )
    ]
