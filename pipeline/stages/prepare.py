"""prepare: read the images, check them, split them, write the sample store."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.checks.examine import Checked, examine
from pipeline.checks.examined import Examined, Settings
from pipeline.checks.findings import CHECKS, finding_notes, write_findings
from pipeline.data.decoding import Limits
from pipeline.data.images import ImageMode
from pipeline.data.shaping import LARGEST_AUTO_SIDE_PX, RESIZED
from pipeline.data.store import StoreInfo
from pipeline.device import usable_cores
from pipeline.errors import InputError
from pipeline.folders import write_bytes, write_ids
from pipeline.hashing import digest_lines
from pipeline.ingest.loading import Loaded, load_images
from pipeline.ingest.parts import Part, write_parts
from pipeline.ingest.splitting import pool_rows, split_rows
from pipeline.params import PrepareParams
from pipeline.readers.read import read_limits, read_pool, read_source, source_digest
from pipeline.readers.source import Quarantined, Source
from pipeline.recipe.advice import write_recipe
from pipeline.recipe.facts import set_facts
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

DATASET = "dataset"
QUARANTINE = "quarantine.jsonl"
UNLABELLED_IDS = "unlabelled_ids.txt"

_CHUNKS = "chunks"
_SHOWN_REASONS = 3


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
        findings: check -> number that it found; `checks.json` has them whole.
        dataset_digest: digest of the sample store's rows.
    """

    classes: list[str]
    image_size_px: int
    image_mode: ImageMode
    counts: dict[str, dict[str, int]]
    quarantined: int
    quarantine_reasons: dict[str, int]
    conversions: dict[str, int]
    findings: dict[str, int]
    dataset_digest: str


@stage("prepare", PrepareSummary, extra_key=source_digest)
def run(params: PrepareParams, inputs: Inputs, out: Path, tracker: Tracker) -> PrepareSummary:
    """Write `dataset/` and, beside it, what is known of it and what follows.

    `quarantine.jsonl` and `checks.json` say what is wrong with images; `recipe.json` which settings
    the set speaks for and why, `settings.json` the settings alone. Which gain to expect is said.
    `unlabelled_ids.txt` holds the sorted ids of all train and pool rows, one a line: what a base
    that is trained without labels depends on. The images are decoded into chunks, which an
    interrupted run finds again, and are never all in memory.

    Raises:
        InputError: the source is missing or damaged, no image of it is usable, a class has too
            few distinct images to be split, or the pool holds a validation or test image.
    """
    shutil.rmtree(out / DATASET, ignore_errors=True)  # what an interrupted run left
    source = read_source(params)
    pool = read_pool(Path(params.pool_path), read_limits(params))
    total = len(source) + len(pool)
    chunks = out / _CHUNKS
    loaded = _load(
        params,
        source,
        chunks / "labelled",
        params.image_size_px,
        params.image_mode,
        _progress(tracker, 0, total),
    )
    if (
        params.image_size_px is None
        and loaded.side_px == LARGEST_AUTO_SIDE_PX
        and RESIZED in loaded.conversions
    ):
        tracker.note(
            f"prepare: images are brought to {loaded.side_px} px, which two cores can train in "
            "minutes; set prepare.image_size_px for more, up to 128"
        )
    checked = _check(params, source, loaded, tracker)
    quarantine = [*source.quarantine, *loaded.quarantine]
    quarantine += [
        Quarantined(source.names[loaded.rows[row]], reason, detail)
        for row, reason, detail in checked.aside
    ]
    reasons = Counter(item.reason for item in quarantine)
    if len(loaded) == len(checked.aside):
        raise InputError(_nothing_left(params, reasons))
    try:
        labelled = split_rows(params, source, loaded, checked, tracker)
    except InputError as error:
        found = f"\nquarantined: {_listing(reasons)}" if reasons else ""
        raise InputError(f"{_origin(params)}: {error}{found}") from None
    # The labelled images decide side and mode, so that a pool never changes what is judged.
    unlabelled = _load(
        params,
        pool,
        chunks / "pool",
        loaded.side_px,
        loaded.image_mode,
        _progress(tracker, len(source), total),
    )
    parts = [labelled, pool_rows(params, labelled, pool, unlabelled, tracker)]
    quarantine = sorted(
        (*quarantine, *pool.quarantine, *unlabelled.quarantine), key=lambda item: item.file
    )
    reasons = Counter(item.reason for item in quarantine)
    conversions = Counter(loaded.conversions) + Counter(unlabelled.conversions)
    info = write_parts(
        out / DATASET, parts, source.classes, _workers(params), _writing(tracker, parts)
    )
    _write_quarantine(out / QUARANTINE, quarantine)
    write_findings(out / CHECKS, checked.findings)
    write_ids(
        out / UNLABELLED_IDS,
        (
            identity
            for part in parts
            for identity, split in zip(part.ids, part.splits, strict=True)
            if split in ("train", "pool")
        ),
    )
    _tell(parts, info, quarantine, reasons, tracker)
    advice = write_recipe(out, params.recipe, set_facts(info))
    if advice is not None:
        tracker.note(f"prepare: recipe: {advice}")
    shutil.rmtree(chunks)
    return PrepareSummary(
        classes=list(info.classes),
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        counts=info.counts,
        quarantined=len(quarantine),
        quarantine_reasons=dict(sorted(reasons.items())),
        conversions=dict(sorted(conversions.items())),
        findings={one.check: one.count for one in checked.findings},
        dataset_digest=info.digest,
    )


def _load(
    params: PrepareParams,
    source: Source,
    folder: Path,
    side_px: int | None,
    mode: Literal["auto", "L", "RGB"],
    on_image: Callable[[int], None],
) -> Loaded:
    return load_images(
        source,
        folder,
        side_px=side_px,
        mode=mode,
        fit=params.fit,
        limits=Limits(params.max_file_bytes, params.max_image_pixels),
        workers=_workers(params),
        on_image=on_image,
    )


def _workers(params: PrepareParams) -> int:
    return params.execution.workers or usable_cores()


def _progress(tracker: Tracker, before: int, total: int) -> Callable[[int], None]:
    return lambda count: tracker.progress("prepare", before + count, total, "images")


def _writing(tracker: Tracker, parts: Sequence[Part]) -> Callable[[int], None]:
    total = sum(len(part.places) for part in parts)
    return lambda count: tracker.progress("write", count, total, "images")


def _check(params: PrepareParams, source: Source, loaded: Loaded, tracker: Tracker) -> Checked:
    rows = loaded.rows.tolist()
    if not rows:
        return Checked((), np.zeros(0, dtype=np.int64), ())
    examined = Examined(
        names=[source.names[row] for row in rows],
        labels=source.labels[loaded.rows],
        classes=source.classes,
        splits=[source.given[row] for row in rows],
        groups=[source.groups[row] for row in rows] if source.groups else (),
        ids=loaded.ids,
        facts=loaded.facts,
        images=loaded.images,
    )
    settings = Settings(
        near_duplicates=params.near_duplicates == "auto",
        label_issues=params.label_issues == "auto" or params.drop_label_issues,
        drop_label_issues=params.drop_label_issues,
        validation_fraction=params.validation_fraction,
        test_fraction=params.test_fraction,
        seed=params.seed,
        threads=1,  # of small products: more threads would mostly wait for each other
    )
    checked = examine(
        examined,
        settings,
        lambda task, done, total: tracker.progress(task, done, total, "images"),
    )
    for note in finding_notes(checked.findings):
        tracker.note(note)
    return checked


def _write_quarantine(path: Path, quarantine: Sequence[Quarantined]) -> None:
    lines = [
        json.dumps({"file": item.file, "reason": item.reason, "detail": item.detail}) + "\n"
        for item in quarantine
    ]
    write_bytes(path, "".join(lines).encode())


def _tell(
    parts: Sequence[Part],
    info: StoreInfo,
    quarantine: Sequence[Quarantined],
    reasons: Counter[str],
    tracker: Tracker,
) -> None:
    for split, context in (("train", "training"), ("test", "evaluation")):
        rows = [row for part in parts for row in part.digests(split)]
        tracker.dataset(split, digest_lines(rows), len(rows), context)
    count = sum(number for classes in info.counts.values() for number in classes.values())
    tracker.metrics({"prepare/images": float(count), "prepare/quarantined": float(len(quarantine))})
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
