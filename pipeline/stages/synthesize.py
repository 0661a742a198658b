"""Stage synthesize: candidates from the generator, scored, accepted or rejected with reasons."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from sklearn.metrics import balanced_accuracy_score

from pipeline.curation.scores import Scorer
from pipeline.curation.selection import Thresholds, fit_thresholds
from pipeline.data.images import Images
from pipeline.data.store import (
    Samples,
    StoreInfo,
    read_ids,
    read_info,
    read_samples,
)
from pipeline.data.store_writer import StoreWriter
from pipeline.device import pick_device, pick_precision, usable_cores
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.solvers import default_spacing
from pipeline.errors import StageError
from pipeline.features.classifier import embed
from pipeline.features.judge import fit_judge
from pipeline.folders import write_json
from pipeline.params import SynthesizeParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.synthesis.engine import refuse_impossible
from pipeline.synthesis.executors import Executor, ProcessExecutor, ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.parents import Editing, Lineage, Mode, make_editing, masks_digest
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.rounds import Result, fill_plan
from pipeline.synthesis.search import (
    NO_GUIDANCE,
    SearchResult,
    Tried,
    search_guidance,
    write_search,
)
from pipeline.synthesis.settings import choose_generator, settings_of
from pipeline.synthesis.shards import Shard
from pipeline.tracking.tracker import Tracker


class ClassAccount(BaseModel):
    """What became of one class's candidates."""

    name: str
    wanted: int
    candidates: int
    accepted: int
    shortfall: int
    reasons: dict[str, int]


class SynthesizeSummary(Summary):
    """What was generated, and what was kept.

    Attributes:
        generator_digest: of the network that drew the images.
        generator: teacher or student.
        mode: what the images were drawn from.
        sampler: by name.
        sampler_steps: network evaluations an image, guidance not counted.
        guidance: in words; a student has some within beside it.
        guidance_weight: w; 1 is none.
        guidance_low: it acts above this sigma,
        guidance_high: and up to this one; None is no end.
        guidance_reason: why this one, where it was searched for.
        search: what was tried; empty where nothing was.
        rounds: of generating, scoring, accepting.
        candidates: images that were drawn.
        accepted: images that were kept.
        acceptance_rate: share that was good, those beyond the plan included.
        judge_validation_accuracy: balanced accuracy of the judge on validation rows.
        thresholds: limits of acceptance.
        classes: each class's account.
    """

    generator_digest: str
    generator: Literal["teacher", "student"]
    mode: Mode
    sampler: str
    sampler_steps: int
    guidance: str
    guidance_weight: float
    guidance_low: float
    guidance_high: float | None
    guidance_reason: str | None
    search: list[Tried]
    rounds: int
    candidates: int
    accepted: int
    acceptance_rate: float
    judge_validation_accuracy: float
    thresholds: dict[str, float]
    classes: list[ClassAccount]


@dataclass(frozen=True)
class _Source:
    """Whose images are drawn, how, and what was tried to find out how."""

    folder: Path
    digest: str
    name: Literal["teacher", "student"]
    settings: SamplerSettings
    searched: SearchResult | None


@stage("synthesize", SynthesizeSummary, extra_key=masks_digest)
def run(params: SynthesizeParams, inputs: Inputs, out: Path, tracker: Tracker) -> SynthesizeSummary:
    """Fill the balance plan, in rounds.

    Raises:
        InputError: what the params ask for does not go with the generator, the images or the masks.
        StageError: a broken generator or store.
    """
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    training = read_samples(store, ("train",))
    validation = read_samples(store, ("validation",))
    device = pick_device(params.execution.device)
    precision = pick_precision(params.precision, device)
    choice = choose_generator(params, inputs["train"], precision)
    searches = choice.settings is None and params.guidance == "auto"
    # On the processor, and not kept: workers load their own.
    generator = load_generator(choice.folder, torch.device("cpu"))
    if generator.spec.classes != info.classes:
        raise StageError("synthesize: the generator knows other classes; run `replenish train`")
    settings, searched = choice.settings, None
    if settings is None:
        # What a search will put in the place of no guidance goes with the generator by itself.
        settings = settings_of(params, precision, NO_GUIDANCE if searches else None)
    refuse_impossible(generator, settings)
    editing = None
    if params.mode != "generate":
        editing = make_editing(params, training, info.classes)
        for label in range(len(info.classes)):
            editing.origin(params.seed, label, 0)  # refuse what has no parent, before any work
    if choice.note:
        tracker.note(choice.note)
    wanted = wanted_images(info.counts["train"], params.images_per_class)
    judge = fit_judge(
        training,
        len(info.classes),
        params.judge_steps,
        params.seed,
        device,
        lambda step: tracker.progress("judge", step, params.judge_steps, "steps"),
    )
    scorer = Scorer(judge, training)
    held_out = scorer.score(validation.images, validation.labels)
    accuracy = float(balanced_accuracy_score(validation.labels, held_out.predicted))
    thresholds = fit_thresholds(
        held_out, params.confidence_quantile, params.copy_quantile, params.copy_ratio
    )
    if searches:
        searched = search_guidance(
            generator if device.type == "cpu" else load_generator(choice.folder, device),
            training,
            validation,
            partial(embed, judge),
            settings,
            params.search_images,
            params.seed,
            device,
            tracker,
        )
        write_search(out / "search.csv", searched)
        settings = settings_of(params, precision, searched.guidance)
    source = _Source(
        choice.folder,
        generator.digest,
        "teacher" if choice.settings is None else "student",
        settings,
        searched,
    )
    del generator
    shards = out / "shards"
    began = time.monotonic()
    with ExitStack() as stack:
        accepted, rejected = (
            stack.enter_context(_open_store(out / name, info)) for name in ("accepted", "rejected")
        )
        executor = stack.enter_context(_executor(params, source, editing, device, shards))

        def keep(candidates: Samples) -> None:
            good = np.asarray([reason == "accepted" for reason in candidates.extra["reason"]])
            accepted.add(candidates.take(good))
            rejected.add(candidates.take(~good))

        def parents(shard: Shard) -> Lineage | None:
            if editing is None:
                return None
            return editing.lineage(params.seed, shard.label, shard.indices)

        result = fill_plan(
            info.classes,
            [wanted[name] for name in info.classes],
            params.shard_images,
            params.max_rounds,
            lambda wave: _sample_wave(wave, executor, shards, tracker),
            scorer,
            thresholds,
            # Ids alone: a candidate with the pixels of a real row of any split is rejected unseen.
            read_ids(store),
            _lineage(params, source),
            keep,
            parents,
        )
        accepted.close()
        rejected.close()
    seconds = time.monotonic() - began
    summary = _summarise(params, result, source, accuracy, thresholds)
    _report(summary, seconds, out, tracker)
    rmtree(shards, ignore_errors=True)
    return summary


def _executor(
    params: SynthesizeParams,
    source: _Source,
    editing: Editing | None,
    device: torch.device,
    shards: Path,
) -> Executor:
    execution = params.execution
    # A GPU does one batch after the other; on a processor each worker has a thread of its own.
    workers = 1 if device.type == "cuda" else execution.workers or usable_cores()
    job = ShardJob(
        source.folder,
        source.settings,
        params.seed,
        str(device),
        editing,
        compiled=params.compile,
        batch_images=None if execution.batch_images == "auto" else execution.batch_images,
        workers=workers,
        memory_mib=execution.memory_mib,
        shard_images=params.shard_images,
    )
    kind = ProcessExecutor if execution.backend == "processes" else ThreadExecutor
    return kind(job.start, shards, workers)


def _open_store(folder: Path, info: StoreInfo) -> StoreWriter:
    rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    return StoreWriter(folder, info.classes, info.image_size_px, info.image_mode)


def _sample_wave(
    wave: Sequence[Shard], executor: Executor, folder: Path, tracker: Tracker
) -> Iterator[tuple[Shard, Images]]:
    total = sum(shard.size for shard in wave)
    done = 0
    tracker.progress("sample", 0, total, "images")

    def count(shard: Shard) -> None:
        nonlocal done
        done += shard.size
        tracker.progress("sample", done, total, "images")

    return in_order(executor, wave, folder, count)


def _lineage(params: SynthesizeParams, source: _Source) -> dict[str, str | int | float]:
    settings, guidance = source.settings, source.settings.guidance
    return {
        "generator": source.digest,
        "mode": params.mode,
        "seed": params.seed,
        "sampler": settings.sampler,
        "sampler_steps": settings.steps,
        "sampler_spacing": settings.spacing or default_spacing(settings.sampler),
        "sampler_eta": settings.eta,
        "guidance": guidance.weight,
        "guidance_low": guidance.low,
        "guidance_high": guidance.high,
        "guide": guidance.guide,
        "precision": settings.precision,
    }


def _summarise(
    params: SynthesizeParams,
    result: Result,
    source: _Source,
    accuracy: float,
    thresholds: Thresholds,
) -> SynthesizeSummary:
    candidates = sum(one.candidates for one in result.classes)
    accepted = sum(one.accepted for one in result.classes)
    good = accepted + sum(one.reasons["surplus"] for one in result.classes)
    guidance, searched = source.settings.guidance, source.searched
    return SynthesizeSummary(
        generator_digest=source.digest,
        generator=source.name,
        mode=params.mode,
        sampler=source.settings.sampler,
        sampler_steps=source.settings.steps,
        guidance=guidance.describe(),
        guidance_weight=guidance.weight,
        guidance_low=guidance.low,
        guidance_high=guidance.high if math.isfinite(guidance.high) else None,
        guidance_reason=searched.reason if searched else None,
        search=list(searched.rows) if searched else [],
        rounds=result.rounds,
        candidates=candidates,
        accepted=accepted,
        acceptance_rate=good / candidates if candidates else 0.0,
        judge_validation_accuracy=accuracy,
        thresholds={
            "confidence": thresholds.confidence,
            "copy_distance": thresholds.copy_distance,
            "copy_ratio": thresholds.copy_ratio,
        },
        classes=[
            ClassAccount(
                name=one.name,
                wanted=one.wanted,
                candidates=one.candidates,
                accepted=one.accepted,
                shortfall=one.shortfall,
                reasons={str(reason): count for reason, count in sorted(one.reasons.items())},
            )
            for one in result.classes
        ],
    )


def _report(summary: SynthesizeSummary, seconds: float, out: Path, tracker: Tracker) -> None:
    shortfall = sum(one.shortfall for one in summary.classes)
    numbers = {
        "synthesize/accepted": float(summary.accepted),
        "synthesize/candidates": float(summary.candidates),
        "synthesize/acceptance_rate": summary.acceptance_rate,
        "synthesize/shortfall": float(shortfall),
        "synthesize/judge_validation_accuracy": summary.judge_validation_accuracy,
    }
    write_json(out / "metrics.json", {k.partition("/")[2]: v for k, v in numbers.items()})
    tracker.metrics(
        {**numbers, "synthesize/images_per_second": summary.candidates / max(seconds, 1e-9)}
    )
    tracker.note(
        f"synthesize: accepted {summary.accepted:,} of {summary.candidates:,} candidates "
        f"({summary.acceptance_rate:.0%} were good) in {summary.rounds} rounds"
    )
    if not summary.candidates:
        tracker.note(
            "synthesize: the plan asks for no image; set synthesize.images_per_class to a number"
        )
    for one in summary.classes:
        if one.shortfall:
            tracker.note(
                f"synthesize: class {one.name} is {one.shortfall} images short of "
                f"{one.wanted} after {summary.rounds} rounds; raise synthesize.max_rounds or "
                "train.steps, or see the rejected images in the report"
            )
