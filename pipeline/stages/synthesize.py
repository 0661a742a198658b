"""Stage synthesize: candidates from the generator, scored, accepted or rejected with reasons."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree

import numpy as np
from pydantic import BaseModel
from sklearn.metrics import balanced_accuracy_score

from pipeline.curation.scores import Scorer
from pipeline.curation.selection import Thresholds, fit_thresholds
from pipeline.data.images import CHANNELS, Images
from pipeline.data.store import (
    Samples,
    StoreInfo,
    read_ids,
    read_info,
    read_samples,
    write_store,
)
from pipeline.device import Precision, pick_device, pick_precision, usable_cores
from pipeline.diffusion.checkpoints import Generator, load_generator
from pipeline.errors import StageError
from pipeline.features.judge import fit_judge
from pipeline.folders import write_json
from pipeline.params import SynthesizeParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.synthesis.executors import Executor, ThreadExecutor
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.rounds import Result, fill_plan
from pipeline.synthesis.settings import settings_of
from pipeline.synthesis.shards import Shard, read_shard, sample_shard, write_shard
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
    """What was generated, and what was kept."""

    generator_digest: str
    rounds: int
    candidates: int
    accepted: int
    acceptance_rate: float
    judge_validation_accuracy: float
    thresholds: dict[str, float]
    classes: list[ClassAccount]


@stage("synthesize", SynthesizeSummary)
def run(params: SynthesizeParams, inputs: Inputs, out: Path, tracker: Tracker) -> SynthesizeSummary:
    """Fill the balance plan, in rounds."""
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    training = read_samples(store, ("train",))
    validation = read_samples(store, ("validation",))
    device = pick_device(params.execution.device)
    generator = load_generator(inputs["train"] / "generator", device)
    if generator.spec.classes != info.classes:
        raise StageError("synthesize: the generator knows other classes; run `replenish train`")
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
    settings = settings_of(params, pick_precision(params.precision, device))
    # A GPU does one shard after the other; on a processor each worker has a thread of its own.
    workers = 1 if device.type == "cuda" else params.execution.workers or usable_cores()
    executor = ThreadExecutor(workers)
    shards = out / "shards"
    began = time.monotonic()

    def sample_shards(wave: Sequence[Shard]) -> list[Images]:
        def work(shard: Shard) -> None:
            if read_shard(shards, shard) is None:
                images = sample_shard(shard, generator, settings, params.seed, device)
                write_shard(shards, shard, images)

        return _sample_wave(wave, executor, work, shards, tracker)

    result = fill_plan(
        info.classes,
        [wanted[name] for name in info.classes],
        params.shard_images,
        params.max_rounds,
        sample_shards,
        scorer,
        thresholds,
        # Ids alone: a candidate with the pixels of a real row of any split is rejected unseen.
        read_ids(store),
        _lineage(params, generator, settings.precision),
    )
    seconds = time.monotonic() - began
    _write_stores(out, result, info)
    summary = _summarise(result, generator, accuracy, thresholds)
    _report(summary, seconds, out, tracker)
    rmtree(shards, ignore_errors=True)
    return summary


def _sample_wave(
    wave: Sequence[Shard],
    executor: Executor,
    work: Callable[[Shard], None],
    folder: Path,
    tracker: Tracker,
) -> list[Images]:
    total = sum(shard.size for shard in wave)
    done = 0
    tracker.progress("sample", 0, total, "images")
    for shard in executor.run(wave, work):
        done += shard.size
        tracker.progress("sample", done, total, "images")
    images = [read_shard(folder, shard) for shard in wave]
    return [found for found in images if found is not None]


def _lineage(
    params: SynthesizeParams, generator: Generator, precision: Precision
) -> dict[str, str | int | float]:
    return {
        "generator": generator.digest,
        "seed": params.seed,
        "sampler": params.sampler,
        "sampler_steps": params.sampler_steps,
        "guidance": params.guidance,
        "precision": precision,
        "shard_images": params.shard_images,
    }


def _write_stores(out: Path, result: Result, info: StoreInfo) -> None:
    candidates = result.candidates
    if candidates is None:
        candidates = _no_samples(info)
    kept = np.asarray([reason == "accepted" for reason in candidates.extra.get("reason", [])], bool)
    for name, mask in (("accepted", kept), ("rejected", ~kept)):
        rmtree(out / name, ignore_errors=True)
        write_store(
            out / name,
            candidates.take(mask),
            info.classes,
            info.image_size_px,
            info.image_mode,
        )


def _no_samples(info: StoreInfo) -> Samples:
    side = info.image_size_px
    images = np.zeros((0, side, side, CHANNELS[info.image_mode]), dtype=np.uint8)
    return Samples(images, np.zeros(0, dtype=np.int64), (), (), (), (), {})


def _summarise(
    result: Result, generator: Generator, accuracy: float, thresholds: Thresholds
) -> SynthesizeSummary:
    candidates = sum(one.candidates for one in result.classes)
    accepted = sum(one.accepted for one in result.classes)
    good = accepted + sum(one.reasons["surplus"] for one in result.classes)
    return SynthesizeSummary(
        generator_digest=generator.digest,
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
