"""Which row goes where: the stratified split by groups, and the thinning to a long tail.

Both depend on the seed, the labels and the groups' names, and not on the order of the rows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.hashing import digest_json
from pipeline.seeds import numpy_generator

Split = Literal["train", "validation", "test"]
Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

_SHOWN_CLASSES = 10
_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "test": "test",
}


def stratified_split(
    labels: Labels,
    groups: Sequence[str],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    given: Sequence[str | None] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Split, ...]:
    """Return the split of each row; rows of one group stay on one side.

    Fractions are shares of the groups (distinct images) of a class, rounded to the nearest whole
    and at least one. A row with a `given` split keeps it, and its group with it. Where test rows
    are given, no others are drawn and `validation_fraction` is the share of the remaining groups;
    likewise where validation rows are given.

    Args:
        labels: (N,) index of each row's class.
        groups: (N,) name of each row's group; all rows of a group have one label.
        validation_fraction: in (0, 1).
        test_fraction: in (0, 1).
        seed: root seed.
        given: (N,) splits that the source decides, or None.
        classes: names for the error message; also finds classes without any row.

    Raises:
        InputError: a class has too few distinct images for one in every split.
        ValueError: a group has two labels or two given splits.
    """
    given = given if given is not None else (None,) * len(labels)
    names = classes if classes is not None else [str(i) for i in range(_count(labels))]
    sides, groups_of = _given_sides(labels, groups, given)
    shares: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    drawn = {split: share for split, share in shares.items() if split not in set(given)}
    troubles: list[str] = []
    for label, name in enumerate(names):
        own = groups_of.get(label, [])
        free = sorted(group for group in own if group not in sides)
        held = {sides[group] for group in own if group in sides}
        lacking = [split for split in shares if split not in drawn and split not in held]
        if len(free) < 1 + len(drawn) or lacking:
            troubles.append(_trouble(name, len(free), drawn, lacking))
            continue
        sides |= _draw(free, drawn, seed)
    if troubles:
        more = len(troubles) - _SHOWN_CLASSES
        shown = troubles[:_SHOWN_CLASSES] + ([f"... and {more} more classes"] if more > 0 else [])
        raise InputError("\n".join(shown))
    return tuple(sides[group] for group in groups)


def long_tail_profile(classes: int, maximum: int, minimum: int) -> tuple[int, ...]:
    """Return the number of training images of each class, in class order.

    n_c = round(maximum * (minimum / maximum) ** (c / (K - 1))), the profile of long-tailed CIFAR
    (Cao et al. 2019, "Learning Imbalanced Datasets with LDAM Loss", arXiv:1906.07413).
    """
    ratio = minimum / maximum
    return tuple(
        int(np.floor(maximum * ratio ** (c / max(1, classes - 1)) + 0.5)) for c in range(classes)
    )


def thin_to_long_tail(
    labels: Labels,
    groups: Sequence[str],
    rows: Rows,
    maximum: int,
    minimum: int,
    seed: int,
) -> tuple[Rows, Rows]:
    """Return the rows that are kept and those that are left, both ascending.

    A class keeps as many rows as `long_tail_profile` says, or all where it has fewer. Distinct
    images are kept before repetitions of one.

    Args:
        labels: (N,) index of each row's class, in [0, K).
        groups: (N,) name of each row's group.
        rows: the training rows, indices into `labels`.
        maximum: training images of the first class.
        minimum: training images of the last class.
        seed: root seed.
    """
    kept: list[int] = []
    for label, wanted in enumerate(long_tail_profile(_count(labels), maximum, minimum)):
        of_group: dict[str, list[int]] = {}
        for row in rows[labels[rows] == label]:
            of_group.setdefault(groups[row], []).append(int(row))
        order = sorted(of_group)
        numpy_generator(seed, "long tail", label).shuffle(order)
        first = [of_group[group][0] for group in order]
        again = [row for group in order for row in of_group[group][1:]]
        kept += (first + again)[:wanted]
    keep = np.asarray(sorted(kept), dtype=np.int64)
    return keep, np.setdiff1d(rows, keep)


def _count(labels: Labels) -> int:
    return int(labels.max()) + 1 if len(labels) else 0


def _given_sides(
    labels: Labels, groups: Sequence[str], given: Sequence[str | None]
) -> tuple[dict[str, Split], dict[int, list[str]]]:
    sides: dict[str, Split] = {}
    label_of: dict[str, int] = {}
    for label, group, split in zip(labels.tolist(), groups, given, strict=True):
        if label_of.setdefault(group, label) != label:
            raise ValueError(f"group {group!r} has the labels {label_of[group]} and {label}")
        if split is None:
            continue
        if split not in _SPLITS:
            raise ValueError(f"group {group!r} is given the unknown split {split!r}")
        side = _SPLITS[split]
        if sides.setdefault(group, side) != side:
            raise ValueError(f"group {group!r} is given to {sides[group]} and to {side}")
    groups_of: dict[int, list[str]] = {}
    for group, label in label_of.items():
        groups_of.setdefault(label, []).append(group)
    return sides, groups_of


def _draw(groups: list[str], shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
    # Each group has a rank of its own, so that a new or relabelled image moves few others: what is
    # held out stays held out, and a base that was trained on the rest can be used again.
    groups = sorted(groups, key=lambda group: digest_json([seed, "split", group]))
    sides: dict[str, Split] = {}
    start = 0
    waiting = len(shares)  # each later split, and train, must still get one
    for split, share in shares.items():
        rounded = int(np.floor(share * len(groups) + 0.5))
        size = min(max(1, rounded), len(groups) - start - waiting)
        sides |= dict.fromkeys(groups[start : start + size], split)
        start += size
        waiting -= 1
    return sides | dict.fromkeys(groups[start:], "train")


def _trouble(name: str, free: int, drawn: Mapping[Split, float], lacking: Sequence[Split]) -> str:
    if lacking:
        return (
            f"class {name!r}: has no {lacking[0]} images, while the source gives other classes "
            "theirs; add some or remove the class"
        )
    needed = ["train", *sorted(drawn, reverse=True)]
    return (
        f"class {name!r}: {free} usable distinct image{'' if free == 1 else 's'}, and at least "
        f"{len(needed)} are needed (one each for {', '.join(needed)}); add images or remove the "
        "class"
    )
