"""Groups (a patient, a scene) that the source itself puts on more than one side."""

from pipeline.checks.examined import SIDES, Examined, count_of
from pipeline.checks.findings import MAX_EXAMPLES, Example, Finding


def split_groups(examined: Examined) -> list[Finding]:
    """Report groups whose images are given to two or three splits."""
    first: dict[str, dict[int, int]] = {}
    for row, (group, side) in enumerate(
        zip(examined.groups, examined.sides.tolist(), strict=False)
    ):
        if group is not None and side >= 0:
            first.setdefault(group, {}).setdefault(side, row)
    names = {number: name for name, number in SIDES.items()}
    examples: list[Example] = []
    count = 0
    for group, rows in first.items():
        if len(rows) < 2:
            continue
        count += 1
        if len(examples) < MAX_EXAMPLES:
            sides = sorted(rows)
            told = " and ".join(names[side] for side in sides)
            examples.append(
                examined.example(rows[sides[0]], f"group {group!r} is in {told}", rows[sides[-1]])
            )
    if not count:
        return []
    return [
        Finding(
            "split_groups",
            "warning",
            count,
            f"{count_of(count, 'group has', 'groups have')} images on more than one side of the "
            "given split",
            "kept as given; the score on the held-out side may be too good, so give each group to "
            "one side, or give no split and let the groups be kept together",
            tuple(examples),
        )
    ]
