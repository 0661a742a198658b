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
    ids: Sequence[str] | None = None,
    fold: int = 0,
) -> tuple[Split, ...]:
    """Return the split of each row; rows of one group stay on one side.

    Fractions are shares of the distinct images of a class, rounded to whole groups and at least
    one. Groups of one class are drawn class by class, each by a rank of its own, so that a new
    image moves few others. Groups of several classes are placed before them, the largest first,
    each where its classes lack most (Sechidis et al. 2011, "On the Stratification of Multi-Label
    Data", by groups in the place of examples).

    A row with a `given` split keeps it, and its group with it. Where test rows are given, no others
    are drawn and `validation_fraction` is the share of the remaining images; likewise where
    validation rows are given. Rows given to train can be drawn unless both are given.

    Args:
        labels: (N,) index of each row's class.
        groups: (N,) name of each row's group.
        validation_fraction: in (0, 1).
        test_fraction: in (0, 1).
        seed: root seed.
        given: (N,) splits that the source decides, or None.
        classes: names for the error message; also finds classes without any row.
        ids: (N,) identity of each row's image; without it a group counts as one image.
        fold: which share of the ranks is the test: the tests of two folds have no group of one
            class in common while (fold + 1) * test_fraction is at most 1.

    Raises:
        InputError: a class has too few distinct images for one in every split.
        ValueError: a group has two given splits.
    """
    given = free_train(given if given is not None else (None,) * len(labels))
    names = classes if classes is not None else [str(i) for i in range(_count(labels))]
    sides = _given_sides(groups, given)
    sizes = _sizes(labels, groups, ids if ids is not None else groups)
    shares: dict[Split, float] = {"test": test_fraction, "validation": validation_fraction}
    drawn = {split: share for split, share in shares.items() if split not in set(given)}
    wanted = _wanted(sizes, sides, drawn)
    placed = _place_mixed(sizes, sides, wanted, seed)
    sides |= placed
    troubles: list[str] = []
    groups_of: dict[int, list[str]] = {}
    for group, counts in sizes.items():
        for label in counts:
            groups_of.setdefault(label, []).append(group)
    for label, name in enumerate(names):
        own = groups_of.get(label, [])
        free = [group for group in own if group not in sides]
        held = {sides[group] for group in own if group in sides}
        lacking = [split for split in shares if split not in drawn and split not in held]
        missing = [split for split in ("train", *drawn) if split not in held]
        if len(free) < len(missing) or lacking or (len(free) < 1 and not held):
            troubles.append(_trouble(name, len(free), drawn, lacking))
            continue
        left = {
            split: (
                wanted[split, label]
                - sum(sizes[g][label] for g in own if g in placed and placed[g] == split),
                split in missing,
            )
            for split in drawn
        }
        sides |= _draw({group: sizes[group][label] for group in free}, left, seed, fold)
    if troubles:
        raise InputError("\n".join(_shortened(troubles)))
    return tuple(sides[group] for group in groups)


def time_split(
    labels: Labels,
    groups: Sequence[str],
    times: Sequence[str],
    validation_fraction: float,
    test_fraction: float,
    classes: Sequence[str],
) -> tuple[Split, ...]:
    """Return the split of each row: the latest groups are the test, those before them validation.

    The cuts are the same for all classes, as they will be for whoever uses the classifier; a group
    stands where its latest row stands. Groups of one time stay together.

    Args:
        labels: (N,) index of each row's class.
        groups: (N,) name of each row's group.
        times: (N,) time of each row; sorts as text (ISO 8601), or as numbers where all are.
        validation_fraction: share of all rows, in (0, 1).
        test_fraction: likewise.
        classes: names, for the error message.

    Raises:
        InputError: a class lacks images in one of the splits.
    """
    latest: dict[str, int] = {}
    for group, place in zip(groups, _comparable(times), strict=True):
        latest[group] = max(place, latest.get(group, place))
    at = np.asarray([latest[group] for group in groups])
    ranked = np.sort(at)
    count = len(ranked)
    test_from = ranked[min(count - 1, round((1 - test_fraction) * count))]
    held_from = ranked[min(count - 1, round((1 - test_fraction - validation_fraction) * count))]
    sides: tuple[Split, ...] = tuple(
        "test" if one >= test_from else "validation" if one >= held_from else "train" for one in at
    )
    troubles = [
        f"class {name!r}: no {split} images when split by time; set prepare.split_by = class, "
        "other fractions, or leave the class out"
        for label, name in enumerate(classes)
        for split in _SPLITS
        if not any(s == split and k == label for s, k in zip(sides, labels.tolist(), strict=True))
    ]
    if troubles:
        raise InputError("\n".join(_shortened(troubles)))
    return sides


def free_train(given: Sequence[str | None]) -> Sequence[str | None]:
    """Return the given splits without `train`, unless validation and test are given too."""
    if {"validation", "test"} <= set(given):
        return given
    return [None if split == "train" else split for split in given]


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


def _given_sides(groups: Sequence[str], given: Sequence[str | None]) -> dict[str, Split]:
    sides: dict[str, Split] = {}
    for group, split in zip(groups, given, strict=True):
        if split is None:
            continue
        if split not in _SPLITS:
            raise ValueError(f"group {group!r} is given the unknown split {split!r}")
        side = _SPLITS[split]
        if sides.setdefault(group, side) != side:
            raise ValueError(f"group {group!r} is given to {sides[group]} and to {side}")
    return sides


def _sizes(labels: Labels, groups: Sequence[str], ids: Sequence[str]) -> dict[str, dict[int, int]]:
    """Return group -> class -> distinct images, groups in order of name."""
    # Most groups are one image: they share their counts, and their id is not kept a second time.
    single = {label: {label: 1} for label in np.unique(labels).tolist()}
    seen: set[tuple[str, int, str]] = set()
    sizes: dict[str, dict[int, int]] = {}
    for label, group, identity in zip(labels.tolist(), groups, ids, strict=True):
        counts = sizes.get(group)
        if counts is None:
            sizes[group] = single[label]
        elif group == identity:
            if label not in counts:
                sizes[group] = counts | {label: 1}
        elif (group, label, identity) not in seen:
            sizes[group] = counts | {label: counts.get(label, 0) + 1}
        if group != identity:
            seen.add((group, label, identity))
    return dict(sorted(sizes.items()))


def _wanted(
    sizes: Mapping[str, Mapping[int, int]],
    sides: Mapping[str, Split],
    drawn: Mapping[Split, float],
) -> dict[tuple[Split, int], float]:
    """Return (split, class) -> distinct images to be drawn; what is left over is train's."""
    free: dict[int, int] = {}
    for group, counts in sizes.items():
        if group not in sides:
            for label, count in counts.items():
                free[label] = free.get(label, 0) + count
    wanted: dict[tuple[Split, int], float] = {
        (split, label): share * count
        for split, share in drawn.items()
        for label, count in free.items()
    }
    rest = 1.0 - sum(drawn.values())
    return wanted | {("train", label): rest * count for label, count in free.items()}


def _place_mixed(
    sizes: Mapping[str, Mapping[int, int]],
    sides: Mapping[str, Split],
    wanted: Mapping[tuple[Split, int], float],
    seed: int,
) -> dict[str, Split]:
    mixed = [group for group, counts in sizes.items() if len(counts) > 1 and group not in sides]
    mixed.sort(key=lambda group: (-sum(sizes[group].values()), _rank(seed, group)))
    lacks = dict(wanted)
    splits = list(dict.fromkeys(split for split, _ in wanted))
    placed: dict[str, Split] = {}
    for group in mixed:
        # The share of what a split still lacks, over the classes of the group.
        best = max(
            splits,
            key=lambda split: sum(
                count * lacks[split, label] / wanted[split, label]
                for label, count in sizes[group].items()
            ),
        )
        placed[group] = best
        for label, count in sizes[group].items():
            lacks[best, label] -= count
    return placed


def _draw(
    sizes: Mapping[str, int], wanted: Mapping[Split, tuple[float, bool]], seed: int, fold: int
) -> dict[str, Split]:
    """Draw a class's groups: split -> (images that it still wants, must it get one?)."""
    # Each group has a rank of its own, so that a new or relabelled image moves few others: what is
    # held out stays held out, and a base that was trained on the rest can be used again.
    groups = sorted(sizes, key=lambda group: _rank(seed, group))
    if fold and groups:
        turned = fold * len(_nearest(groups, sizes, next(iter(wanted.values()), (0.0, False))[0]))
        groups = groups[turned % len(groups) :] + groups[: turned % len(groups)]
    sides: dict[str, Split] = {}
    waiting = 1 + sum(must for _, must in wanted.values())  # those to come must still get one
    for split, (images, must) in wanted.items():
        waiting -= must
        taken = _nearest(groups, sizes, images) or groups[: int(must)]
        taken = taken[: max(0, len(groups) - waiting)]
        sides |= dict.fromkeys(taken, split)
        groups = [group for group in groups if group not in sides]
    return sides | dict.fromkeys(groups, "train")


def _nearest(groups: Sequence[str], sizes: Mapping[str, int], images: float) -> list[str]:
    """Return the first groups that together have so many images; what is too large is left out."""
    taken, total = [], 0
    for group in groups:
        if images - total >= sizes[group] / 2:
            taken.append(group)
            total += sizes[group]
    return taken


def _rank(seed: int, group: str) -> str:
    return digest_json([seed, "split", group])


def _comparable(times: Sequence[str]) -> list[int]:
    """Return the place of each time among the distinct ones, in order."""
    try:
        values: dict[str, float | str] = {time: float(time) for time in times}
    except ValueError:
        values = {time: time for time in times}
    ordered = sorted(set(values.values()))
    place = {value: number for number, value in enumerate(ordered)}
    return [place[values[time]] for time in times]


def _shortened(troubles: Sequence[str]) -> list[str]:
    more = len(troubles) - _SHOWN_CLASSES
    return [*troubles[:_SHOWN_CLASSES], *([f"... and {more} more classes"] if more > 0 else [])]


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
