"""Label conflicts: equal pixels under two labels; nobody can tell which of them is right."""

import numpy as np

from pipeline.checks.examined import Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Aside, Example, Finding

LABEL_CONFLICT = "label conflict"


def label_conflicts(examined: Examined) -> tuple[list[Finding], list[Aside]]:
    """Report and set aside every image whose pixels stand under another label too."""
    same, labels = examined.same, examined.labels
    split = np.zeros(len(examined), dtype=bool)
    split[same[labels != labels[same]]] = True  # first rows whose pixels have a second label
    rows = np.flatnonzero(split[same])
    first_of: dict[int, dict[int, int]] = {}
    for row in rows.tolist():
        first_of.setdefault(int(same[row]), {}).setdefault(int(labels[row]), row)
    aside: list[Aside] = []
    examples: list[Example] = []
    for row in rows.tolist():
        others = first_of[int(same[row])]
        label = min(others.keys() - {int(labels[row])})
        detail = (
            f"labelled {examined.class_name(row)}, with the same pixels as "
            f"{examined.names[others[label]]}, labelled {examined.classes[label]!r}"
        )
        aside.append(Aside(row, LABEL_CONFLICT, detail))
        if len(examples) < MAX_EXAMPLES:
            examples.append(examined.example(row, detail, others[label]))
    if not aside:
        return [], []
    found = count_of(len(aside), "image has", "images have")
    finding = Finding(
        "label_conflicts",
        "warning",
        len(aside),
        f"{found} the same pixels as one under another label",
        f"all are set aside ({LABEL_CONFLICT}); remove the wrong ones and run again to use the "
        "others",
        tuple(examples),
    )
    return [finding], aside
