"""Classes too small for what is wanted of them: splits, cross-validation, a planned number."""

import numpy as np

from pipeline.checks.examined import SIDES, Examined, Rows, Settings, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Example, Finding, Severity

_FEW_TEST = 5  # one image more or less of 5 is 20 points of recall
_LARGEST_FACTOR = 20.0  # synthetic images that a real one has to stand for


def class_sizes(examined: Examined, units: Rows, settings: Settings) -> list[Finding]:
    """Report classes that cannot be split, or that will say little when they are.

    What must stay on one side counts once, and `settings` says how many of them go where; what
    the source gives is counted as it is. Rows that will be quarantined should not be among them.

    Args:
        examined: the set.
        units: (N,) number of what each row must stay together with; see `split_units`.
        settings: what the set is wanted for.
    """
    cases: dict[str, list[Example]] = {"small": [], "folds": [], "test": [], "target": []}
    given = {split for split, side in SIDES.items() if (examined.sides == side).any()}
    asked = {"validation": settings.validation_fraction, "test": settings.test_fraction}
    drawn = {split: share for split, share in asked.items() if split not in given}
    for label, name in enumerate(examined.classes):
        rows = np.flatnonzero(examined.labels == label)
        sides = examined.sides[rows]
        held = {split: len(np.unique(units[rows[sides == SIDES[split]]])) for split in asked}
        left = len(np.unique(units[rows[sides <= 0]]))
        for split, share in sorted(drawn.items()):
            held[split] = max(1, round(share * left))
        training = left - sum(held[split] for split in drawn)
        example = examined.example(int(rows[0]), "") if len(rows) else Example("", "", "")
        told = f"class {name!r}: {count_of(left, 'distinct image', 'distinct images')}"
        lacking = sorted(split for split in asked if not held[split])

        def note(case: str, text: str, example: Example = example) -> None:
            cases[case].append(Example(example.name, example.id, text))

        if left < 1 + len(drawn) or lacking:
            note("small", f"{told}{', none in ' + ' and '.join(lacking) if lacking else ''}")
            continue
        if training < settings.folds:
            note("folds", f"{told}, {training} of them for training")
        if held["test"] < _FEW_TEST:
            note("test", f"class {name!r}: {count_of(held['test'], 'test image', 'test images')}")
        wanted = settings.target_images
        if wanted is not None and training > 0 and wanted > _LARGEST_FACTOR * training:
            note("target", f"{told}, {training} of them for training, topped up to {wanted:,}")
    texts: dict[str, tuple[Severity, str, str]] = {
        "small": (
            "error",
            "with too few distinct images to be split",
            "the run stops there; add images or remove the class",
        ),
        "folds": (
            "warning",
            f"with fewer training images than the {settings.folds} folds of a cross-validation",
            "judged with what is there; add images for a judgement to rely on",
        ),
        "test": (
            "warning",
            f"with fewer than {_FEW_TEST} distinct test images",
            "kept; the recall of such a class moves by steps of 20 points or more, so raise "
            "prepare.test_fraction or add images",
        ),
        "target": (
            "warning",
            f"to be topped up to more than {_LARGEST_FACTOR:.0f} times the training images",
            "done as asked; so few images cannot vary that much, so plan for fewer",
        ),
    }
    return [
        Finding(
            f"class_{case}",
            severity,
            len(cases[case]),
            f"{count_of(len(cases[case]), 'class', 'classes')} {what}",
            action,
            tuple(cases[case][:MAX_EXAMPLES]),
        )
        for case, (severity, what, action) in texts.items()
        if cases[case]
    ]
