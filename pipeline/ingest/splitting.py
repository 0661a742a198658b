"""Which usable row goes where: splits, the long tail, and what of a pool is new."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.checks.examine import Checked
from pipeline.data.grouping import join_groups
from pipeline.data.splits import (
    free_train,
    long_tail_profile,
    stratified_split,
    thin_to_long_tail,
    time_split,
)
from pipeline.data.store import UNLABELLED
from pipeline.errors import InputError
from pipeline.ingest.loading import Loaded
from pipeline.ingest.parts import Part
from pipeline.params import Imbalance, PrepareParams
from pipeline.readers.source import Source
from pipeline.tracking.tracker import Tracker

_SHOWN_FILES = 5
_DIGITS_TAIL = Imbalance(max=60, min=6)  # what makes a small, imbalanced set of the digits


def split_rows(
    params: PrepareParams,
    source: Source,
    loaded: Loaded,
    checked: Checked,
    tracker: Tracker,
) -> Part:
    """Return the labelled rows with their final splits, thinned if asked for, in source order.

    Raises:
        InputError: a class has too few distinct images to be split, or rows lack their time.
    """
    aside = {one.row for one in checked.aside}
    places = np.asarray([row for row in range(len(loaded)) if row not in aside], dtype=np.int64)
    rows = loaded.rows[places].tolist()
    labels = source.labels[rows]
    ids = [loaded.ids[place] for place in places.tolist()]
    given = free_train([source.given[row] for row in rows])
    named = [source.groups[row] for row in rows] if source.groups else [None] * len(rows)
    groups = join_groups(ids, named, checked.clusters[places], given)
    drawn = _sides(params, source, rows, labels, ids, groups, given)
    part = Part(
        loaded=loaded,
        places=places,
        labels=labels,
        splits=drawn,
        groups=groups,
        extra=_extra(source, rows),
        masks=source.masks is not None,
    )
    imbalance = params.imbalance
    if imbalance == "auto":
        imbalance = _DIGITS_TAIL if params.source == "digits" else None
    if imbalance is None:
        return part
    return _thinned(params, imbalance, source.classes, part, tracker)


def pool_rows(
    params: PrepareParams, labelled: Part, pool: Source, loaded: Loaded, tracker: Tracker
) -> Part:
    """Return those rows of the user's pool that are new, as split `pool`.

    Raises:
        InputError: the pool holds the pixels of a validation or test row.
    """
    held_out = {
        identity
        for identity, split in zip(labelled.ids, labelled.splits, strict=True)
        if split in ("validation", "test")
    }
    leaks = [
        pool.names[row]
        for row, identity in zip(loaded.rows.tolist(), loaded.ids, strict=True)
        if identity in held_out
    ]
    if leaks:
        shown = leaks[:_SHOWN_FILES]
        if len(leaks) > _SHOWN_FILES:
            shown.append(f"and {len(leaks) - _SHOWN_FILES} more")
        raise InputError(
            f"prepare.pool_path = {params.pool_path}: {len(leaks)} "
            f"image{'' if len(leaks) == 1 else 's'} with the pixels of a validation or test image: "
            f"{', '.join(shown)}; a generator that learned from them would spoil the verdict; "
            "remove these files from the pool"
        )
    seen = set(labelled.ids)
    new: list[int] = []
    for place, identity in enumerate(loaded.ids):
        if identity not in seen:
            new.append(place)
        seen.add(identity)
    if len(new) < len(loaded):
        tracker.note(
            f"prepare: {len(loaded) - len(new)} exact copies of training images or of other pool "
            "images are left out of the pool"
        )
    return Part(
        loaded=loaded,
        places=np.asarray(new, dtype=np.int64),
        labels=np.full(len(new), UNLABELLED, dtype=np.int64),
        splits=("pool",) * len(new),
        groups=tuple(loaded.ids[place] for place in new),
        extra={name: (None,) * len(new) for name in labelled.extra},
        masks=labelled.masks,
    )


def _sides(
    params: PrepareParams,
    source: Source,
    rows: list[int],
    labels: npt.NDArray[np.int64],
    ids: Sequence[str],
    groups: Sequence[str],
    given: Sequence[str | None],
) -> tuple[str, ...]:
    if params.split_by == "class":
        return stratified_split(
            labels,
            groups,
            params.validation_fraction,
            params.test_fraction,
            params.seed,
            given,
            source.classes,
            ids,
            params.fold,
        )
    times = [source.times[row] if source.times else None for row in rows]
    missing = [source.names[row] for row, time in zip(rows, times, strict=True) if time is None]
    if missing:
        raise InputError(
            f"prepare.split_by = time: {len(missing)} images have no time, first {missing[0]}; "
            "name the column in prepare.columns, fill it, or set split_by = class"
        )
    if any(given):
        raise InputError(
            "prepare.split_by = time: the source gives splits of its own; leave that column out "
            "(prepare.columns.split), or set split_by = class"
        )
    return time_split(
        labels,
        groups,
        [time for time in times if time is not None],
        params.validation_fraction,
        params.test_fraction,
        source.classes,
    )


def _extra(source: Source, rows: Sequence[int]) -> dict[str, tuple[str | None, ...]]:
    columns = {"text": source.texts, "time": source.times}
    return {name: tuple(values[r] for r in rows) for name, values in columns.items() if values}


def _thinned(
    params: PrepareParams,
    imbalance: Imbalance,
    classes: Sequence[str],
    part: Part,
    tracker: Tracker,
) -> Part:
    train = np.flatnonzero(np.asarray(part.splits, dtype=object) == "train")
    left = _thin(imbalance, params.seed, classes, part, train, tracker)
    training = {part.groups[row] for row in np.setdiff1d(train, left)}
    pool = left[:0]
    if params.keep_pool:
        pool = np.asarray([row for row in left if part.groups[row] not in training], np.int64)
        if len(pool) < len(left):
            tracker.note(
                f"prepare: {len(left) - len(pool)} copies of kept training images, or images of "
                "their groups, stay out of the pool"
            )
    splits = np.asarray(part.splits, dtype=object)
    splits[pool] = "pool"
    labels = part.labels.copy()
    labels[pool] = UNLABELLED
    keep = np.ones(len(splits), dtype=bool)
    keep[left] = False
    keep[pool] = True
    return replace(part, splits=tuple(splits), labels=labels).take(np.flatnonzero(keep))


def _thin(
    imbalance: Imbalance,
    seed: int,
    classes: Sequence[str],
    part: Part,
    train: npt.NDArray[np.int64],
    tracker: Tracker,
) -> npt.NDArray[np.int64]:
    profile = long_tail_profile(len(classes), imbalance.max, imbalance.min)
    held = np.bincount(part.labels[train], minlength=len(classes))
    short = [
        f"{name} ({has} of {wanted})"
        for name, has, wanted in zip(classes, held, profile, strict=True)
        if has < wanted
    ]
    if short:
        tracker.note(
            "prepare: fewer training images than prepare.imbalance asks for, all kept: "
            + ", ".join(short)
        )
    return thin_to_long_tail(part.labels, part.groups, train, imbalance.max, imbalance.min, seed)[1]
