"""prepare: read the images, check them, split them, write the sample store."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import Limits
from pipeline.data.images import ImageMode
from pipeline.data.listing import Quarantined
from pipeline.data.loading import Loaded, load_images
from pipeline.data.readers import Source, read_pool, read_source, source_digest
from pipeline.data.shaping import LARGEST_AUTO_SIDE_PX, RESIZED
from pipeline.data.splits import long_tail_profile, stratified_split, thin_to_long_tail
from pipeline.data.store import (
    UNLABELLED,
    Samples,
    concatenate,
    make_samples,
    rows_digest,
)
from pipeline.data.store_writer import write_store
from pipeline.device import usable_cores
from pipeline.errors import InputError
from pipeline.folders import write_bytes, write_ids
from pipeline.params import Imbalance, PrepareParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

DATASET = "dataset"
QUARANTINE = "quarantine.jsonl"
UNLABELLED_IDS = "unlabelled_ids.txt"

LABEL_CONFLICT = "label conflict"
ALSO_IN_TEST = "also in test"

_SHOWN_REASONS = 3
_SHOWN_FILES = 5
_DIGITS_TAIL = Imbalance(max=60, min=6)  # what makes a small, imbalanced set of the digits


class PrepareSummary(Summary):
    """What prepare found and wrote.

    Attributes:
        classes: class names, in label order.
        image_size_px: side of the square images.
        image_mode: L or RGB.
        counts: split -> class name -> rows; the pool counts as `unlabelled`.
        quarantined: files and rows that were set aside.
        quarantine_reasons: category -> number.
        conversions: what was converted -> number of images.
        dataset_digest: digest of the sample store's rows.
    """

    classes: list[str]
    image_size_px: int
    image_mode: ImageMode
    counts: dict[str, dict[str, int]]
    quarantined: int
    quarantine_reasons: dict[str, int]
    conversions: dict[str, int]
    dataset_digest: str


@stage("prepare", PrepareSummary, extra_key=source_digest)
def run(params: PrepareParams, inputs: Inputs, out: Path, tracker: Tracker) -> PrepareSummary:
    """Write `dataset/`, `quarantine.jsonl` and `unlabelled_ids.txt`.

    The last holds the sorted ids of all train and pool rows, one a line: what a base that is
    trained without labels depends on.

    Raises:
        InputError: the source is missing or damaged, no image of it is usable, a class has too
            few distinct images to be split, or the pool holds a validation or test image.
    """
    shutil.rmtree(out / DATASET, ignore_errors=True)  # what an interrupted run left
    source = read_source(params)
    pool = read_pool(Path(params.pool_path))
    total = len(source.names) + len(pool.names)
    loaded = _load(
        params, source, params.image_size_px, params.image_mode, _progress(tracker, 0, total)
    )
    side = loaded.images.shape[1]
    if (
        params.image_size_px is None
        and side == LARGEST_AUTO_SIDE_PX
        and RESIZED in loaded.conversions
    ):
        tracker.note(
            f"prepare: images are brought to {side} px, which two cores can train in minutes; "
            "set prepare.image_size_px for more, up to 128"
        )
    samples, conflicts = _check_labels(source, loaded)
    quarantine = [*source.quarantine, *loaded.quarantine, *conflicts]
    reasons = Counter(item.reason for item in quarantine)
    if not len(samples):
        raise InputError(_nothing_left(params, reasons))
    samples = _split(params, source.classes, samples, reasons, tracker)
    # The labelled images decide side and mode, so that a pool never changes what is judged.
    unlabelled = _load(
        params, pool, side, loaded.image_mode, _progress(tracker, len(source.names), total)
    )
    samples = _with_pool(params, samples, pool, unlabelled, tracker)
    quarantine = sorted(
        (*quarantine, *pool.quarantine, *unlabelled.quarantine), key=lambda item: item.file
    )
    reasons = Counter(item.reason for item in quarantine)
    conversions = Counter(loaded.conversions) + Counter(unlabelled.conversions)
    info = write_store(out / DATASET, samples, source.classes, side, loaded.image_mode)
    _write_quarantine(out / QUARANTINE, quarantine)
    _write_unlabelled_ids(out / UNLABELLED_IDS, samples)
    _tell(samples, quarantine, reasons, tracker)
    return PrepareSummary(
        classes=list(info.classes),
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        counts=info.counts,
        quarantined=len(quarantine),
        quarantine_reasons=dict(sorted(reasons.items())),
        conversions=dict(sorted(conversions.items())),
        dataset_digest=info.digest,
    )


def _load(
    params: PrepareParams,
    source: Source,
    side_px: int | None,
    mode: Literal["auto", "L", "RGB"],
    on_image: Callable[[int], None],
) -> Loaded:
    return load_images(
        source,
        side_px=side_px,
        mode=mode,
        fit=params.fit,
        limits=Limits(params.max_file_bytes, params.max_image_pixels),
        workers=params.execution.workers or usable_cores(),
        on_image=on_image,
    )


def _progress(tracker: Tracker, before: int, total: int) -> Callable[[int], None]:
    every = max(1, total // 100)

    def on_image(count: int) -> None:
        done = before + count
        if done % every == 0 or done == total:
            tracker.progress("prepare", done, total, "images")

    return on_image


def _check_labels(source: Source, loaded: Loaded) -> tuple[Samples, list[Quarantined]]:
    """Set aside equal pixels under two labels, and training rows that the given test holds too."""
    given = [source.given[row] or "train" for row in loaded.rows]
    samples = make_samples(loaded.images, source.labels[loaded.rows], given, "real")
    names = [source.names[row] for row in loaded.rows]
    first_of: dict[tuple[str, int], int] = {}
    labels_of: dict[str, set[int]] = {}
    test_name: dict[str, str] = {}
    for row, (identity, label) in enumerate(zip(samples.ids, samples.labels.tolist(), strict=True)):
        first_of.setdefault((identity, label), row)
        labels_of.setdefault(identity, set()).add(label)
        if given[row] == "test":
            test_name.setdefault(identity, names[row])
    keep: list[int] = []
    aside: list[Quarantined] = []
    for row, (identity, label) in enumerate(zip(samples.ids, samples.labels.tolist(), strict=True)):
        other = min(labels_of[identity] - {label}, default=None)
        if other is not None:
            detail = (
                f"labelled {source.classes[label]!r}, with the same pixels as "
                f"{names[first_of[identity, other]]}, labelled {source.classes[other]!r}"
            )
            aside.append(Quarantined(names[row], LABEL_CONFLICT, detail))
        elif given[row] != "test" and identity in test_name:
            detail = f"the same pixels as {test_name[identity]}"
            aside.append(Quarantined(names[row], ALSO_IN_TEST, detail))
        else:
            keep.append(row)
    return samples.take(keep), aside


def _split(
    params: PrepareParams,
    classes: Sequence[str],
    samples: Samples,
    reasons: Counter[str],
    tracker: Tracker,
) -> Samples:
    """Return the rows with their final splits, thinned if asked for, in store order."""
    given = [split if split == "test" else None for split in samples.splits]
    try:
        drawn = stratified_split(
            samples.labels,
            samples.groups,
            params.validation_fraction,
            params.test_fraction,
            params.seed,
            given,
            classes,
        )
    except InputError as error:
        aside = f"\nquarantined: {_listing(reasons)}" if reasons else ""
        raise InputError(f"{_origin(params)}: {error}{aside}") from None
    splits = np.asarray(drawn, dtype=object)
    labels = samples.labels.copy()
    keep = np.ones(len(samples), dtype=bool)
    imbalance = params.imbalance
    if imbalance == "auto":
        imbalance = _DIGITS_TAIL if params.source == "digits" else None
    if imbalance is not None:
        train = np.flatnonzero(splits == "train")
        left = _thin(imbalance, params.seed, classes, samples, train, tracker)
        pool = _pool(samples, np.setdiff1d(train, left), left) if params.keep_pool else left[:0]
        if params.keep_pool and len(pool) < len(left):
            tracker.note(
                f"prepare: {len(left) - len(pool)} exact copies of kept training images stay out "
                "of the pool"
            )
        keep[left] = False
        keep[pool] = True
        splits[pool] = "pool"
        labels[pool] = UNLABELLED
    rows = np.flatnonzero(keep)
    return Samples(
        images=samples.images[rows],
        labels=labels[rows],
        ids=tuple(samples.ids[i] for i in rows),
        splits=tuple(splits[rows]),
        groups=tuple(samples.groups[i] for i in rows),
        origins=("real",) * len(rows),
        extra={},
    )


def _thin(
    imbalance: Imbalance,
    seed: int,
    classes: Sequence[str],
    samples: Samples,
    train: npt.NDArray[np.int64],
    tracker: Tracker,
) -> npt.NDArray[np.int64]:
    profile = long_tail_profile(len(classes), imbalance.max, imbalance.min)
    held = np.bincount(samples.labels[train], minlength=len(classes))
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
    return thin_to_long_tail(
        samples.labels, samples.groups, train, imbalance.max, imbalance.min, seed
    )[1]


def _pool(
    samples: Samples, kept: npt.NDArray[np.int64], left: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    training = {samples.groups[row] for row in kept}
    return np.asarray([row for row in left if samples.groups[row] not in training], dtype=np.int64)


def _with_pool(
    params: PrepareParams, samples: Samples, pool: Source, loaded: Loaded, tracker: Tracker
) -> Samples:
    """Return the rows with those of the user's pool that are new, as split `pool`.

    Raises:
        InputError: the pool holds the pixels of a validation or test row.
    """
    names = [pool.names[row] for row in loaded.rows]
    rows = make_samples(loaded.images, pool.labels[loaded.rows], "pool", "real")
    held_out = {
        identity
        for identity, split in zip(samples.ids, samples.splits, strict=True)
        if split in ("validation", "test")
    }
    leaks = [name for name, identity in zip(names, rows.ids, strict=True) if identity in held_out]
    if leaks:
        # A file's name may hold what a terminal would obey.
        shown = [name if name.isprintable() else ascii(name) for name in leaks[:_SHOWN_FILES]]
        if len(leaks) > _SHOWN_FILES:
            shown.append(f"and {len(leaks) - _SHOWN_FILES} more")
        raise InputError(
            f"prepare.pool_path = {params.pool_path}: {len(leaks)} "
            f"image{'' if len(leaks) == 1 else 's'} with the pixels of a validation or test image: "
            f"{', '.join(shown)}; a generator that learned from them would spoil the verdict; "
            "remove these files from the pool"
        )
    seen = set(samples.ids)
    new: list[int] = []
    for row, identity in enumerate(rows.ids):
        if identity not in seen:
            new.append(row)
        seen.add(identity)
    if len(new) < len(rows):
        tracker.note(
            f"prepare: {len(rows) - len(new)} exact copies of training images or of other pool "
            "images are left out of the pool"
        )
    return concatenate([samples, rows.take(new)])


def _write_unlabelled_ids(path: Path, samples: Samples) -> None:
    rows = zip(samples.ids, samples.splits, strict=True)
    write_ids(path, (identity for identity, split in rows if split in ("train", "pool")))


def _write_quarantine(path: Path, quarantine: Sequence[Quarantined]) -> None:
    lines = [
        json.dumps({"file": item.file, "reason": item.reason, "detail": item.detail}) + "\n"
        for item in quarantine
    ]
    write_bytes(path, "".join(lines).encode())


def _tell(
    samples: Samples,
    quarantine: Sequence[Quarantined],
    reasons: Counter[str],
    tracker: Tracker,
) -> None:
    splits = np.asarray(samples.splits, dtype=object)
    for split, context in (("train", "training"), ("test", "evaluation")):
        part = samples.take(splits == split)
        tracker.dataset(split, rows_digest(part), len(part), context)
    tracker.metrics(
        {"prepare/images": float(len(samples)), "prepare/quarantined": float(len(quarantine))}
    )
    if quarantine:
        tracker.note(
            f"prepare: {len(quarantine)} quarantined ({_listing(reasons)}); each is listed in "
            f"prepare/{QUARANTINE}"
        )


def _listing(reasons: Counter[str]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count} {reason}" for reason, count in ordered[:_SHOWN_REASONS])
    return shown + (", ..." if len(ordered) > _SHOWN_REASONS else "")


def _nothing_left(params: PrepareParams, reasons: Counter[str]) -> str:
    return (
        f"{_origin(params)}: no usable image; all {sum(reasons.values())} files were quarantined "
        f"({_listing(reasons)}); mend or replace them"
    )


def _origin(params: PrepareParams) -> str:
    return "digits" if params.source == "digits" else params.path
