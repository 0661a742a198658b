"""Stage synthesize: candidates from the generator, judged, chosen, measured."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Literal

import torch

from pipeline.data.images import Images
from pipeline.data.store import (
    StoreInfo,
    read_ids,
    read_info,
    read_samples,
)
from pipeline.data.store_writer import StoreWriter
from pipeline.device import pick_device, pick_precision, usable_cores, visible_gpus
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.errors import StageError
from pipeline.folders import write_json
from pipeline.metrics.table import MOST_ROWS, Measured, write_table
from pipeline.params import EvaluateParams, Execution, SynthesizeParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.synthesis.accounts import ClassAccount, RuleAccount, class_accounts, rule_accounts
from pipeline.synthesis.encoding import weights_digest
from pipeline.synthesis.engine import refuse_impossible
from pipeline.synthesis.executors import Executor, ProcessExecutor, ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.judging import Judging
from pipeline.synthesis.ledger import choose_kept, kept_images, write_out
from pipeline.synthesis.masks import masks_digest
from pipeline.synthesis.parents import Editing, Mode, make_editing
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.planner import Plan, plan_images, write_plan
from pipeline.synthesis.quality import measure_quality
from pipeline.synthesis.recipes import Recipe, other_recipes
from pipeline.synthesis.remote import lent_executor
from pipeline.synthesis.rounds import fill_plan
from pipeline.synthesis.search import (
    NO_GUIDANCE,
    SearchResult,
    Tried,
    search_guidance,
    write_search,
)
from pipeline.synthesis.settings import choose_generator, settings_of
from pipeline.synthesis.shards import Shard, read_shard
from pipeline.tracking.tracker import Tracker


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
        good: of them, those that no rule rejects.
        accepted: of these, those that were kept.
        acceptance_rate: good over candidates.
        judge_validation_accuracy: balanced accuracy of the judges on validation rows.
        thresholds: limits of acceptance.
        classes: each class's account.
        rules: each rule's account, in the order in which they are asked.
        plan: how many images each class was found to need; None where nobody asked.
        encoder: whose features realism, variety and quality are measured in.
        encoder_warning: classes that it does not tell apart; None where it does.
        quality: of the accepted images, each metric beside its ceiling.
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
    good: int
    accepted: int
    acceptance_rate: float
    judge_validation_accuracy: float
    thresholds: dict[str, float]
    classes: list[ClassAccount]
    rules: list[RuleAccount]
    plan: Plan | None
    encoder: str
    encoder_warning: str | None
    quality: list[Measured]


@dataclass(frozen=True)
class _Source:
    """Whose images are drawn and how, and what was tried to find out how."""

    name: Literal["teacher", "student"]
    recipes: tuple[Recipe, ...]
    searched: SearchResult | None


def _read_beside(params: SynthesizeParams) -> str:
    """Return the digest of the files that the section asks for beside the stages' folders."""
    return masks_digest(params) + weights_digest(params)


@stage("synthesize", SynthesizeSummary, extra_key=_read_beside)
def run(params: SynthesizeParams, inputs: Inputs, out: Path, tracker: Tracker) -> SynthesizeSummary:
    """Draw and judge candidates, in rounds; decide how many are kept, and which; measure them.

    Raises:
        InputError: what the params ask for does not go with the generator, the images or the masks,
            or the encoder's weights cannot be used.
        StageError: a broken generator or store.
    """
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    training = read_samples(store, ("train",))
    validation = read_samples(store, ("validation",))
    device = pick_device(params.execution.device)
    pool = read_samples(store, ("pool",)).images if params.encoder == "selfsupervised" else None
    judging = Judging(params, info.classes, training, validation, pool, device, tracker)
    judging.refuse_bad_weights()
    # The pilot of a plan is as many as `auto` would keep, unless a number is given.
    counts, first = info.counts["train"], params.images_per_class
    if first == "planned":
        first = params.pilot_images or "auto"
    wanted = [wanted_images(counts, first)[name] for name in info.classes]
    source = _choose_source(params, inputs, info, judging, wanted, out)
    curator = judging.curator(read_ids(store))
    times = 1.0 if params.select == "first" else params.select_from
    shards = out / "shards"
    began = time.monotonic()
    shards.mkdir(exist_ok=True)

    def read(shard: Shard) -> Images:
        images = read_shard(shards, shard)
        if images is None:
            raise StageError(
                f"{shards / shard.name}: not readable any more; run the same command again"
            )
        return images

    with _executor(params, source.recipes, device, shards, tracker) as executor:
        ledger = fill_plan(
            info.classes,
            wanted,
            [math.ceil(times * one) for one in wanted],
            params.shard_images,
            params.max_rounds,
            lambda wave: _sample_wave(wave, executor, shards, tracker),
            curator,
            source.recipes,
            params.seed,
            params.adapt_below,
            params.select != "first",
        )
    chosen = choose_kept(ledger, params.select)
    plan = None
    if params.images_per_class == "planned":
        plan = plan_images(
            info.classes,
            training,
            validation,
            *kept_images(ledger, chosen, read),
            params.plan_budget_images,
            params.plan_margin_points,
            EvaluateParams(
                seed=params.seed, seeds=params.plan_seeds, execution=Execution(workers=1)
            ),
            device,
            params.execution.workers or usable_cores(),
            lambda done, total: tracker.progress("plan", done, total, "classifiers"),
        )
        write_plan(out / "plan.csv", plan)
        wanted = plan.images
        chosen = chosen.cut(wanted)
    total, asked = sum(one.candidates.total() for one in ledger.classes), source.recipes[0]
    with ExitStack() as stack:
        accepted, rejected = (
            stack.enter_context(_open_store(out / name, info)) for name in ("accepted", "rejected")
        )
        write_out(
            ledger,
            chosen,
            source.recipes,
            params.seed,
            read,
            accepted.add,
            rejected.add,
            lambda done: tracker.progress("write", done, total, "images"),
        )
        accepted.close()
        rejected.close()
    seconds = time.monotonic() - began
    most = math.ceil(MOST_ROWS / len(info.classes))
    quality = measure_quality(
        *kept_images(ledger, chosen.cut([most] * len(info.classes)), read),
        training,
        validation,
        judging.ensemble,
        judging.encoder,
        inputs["train"] / "generator",
        params.seed,
        device,
        asked.settings.precision,
        lambda done, total: tracker.progress("measure", done, total, "steps"),
    )
    write_table(out / "quality.csv", quality)
    guidance, searched = asked.settings.guidance, source.searched
    classes = class_accounts(ledger, chosen, wanted, source.recipes)
    good = sum(one.good for one in classes)
    summary = SynthesizeSummary(
        generator_digest=asked.digest,
        generator=source.name,
        mode=params.mode,
        sampler=asked.settings.sampler,
        sampler_steps=asked.settings.steps,
        guidance=guidance.describe(),
        guidance_weight=guidance.weight,
        guidance_low=guidance.low,
        guidance_high=guidance.high if math.isfinite(guidance.high) else None,
        guidance_reason=searched.reason if searched else None,
        search=list(searched.rows) if searched else [],
        rounds=ledger.rounds,
        candidates=total,
        good=good,
        accepted=sum(one.accepted for one in classes),
        acceptance_rate=good / total if total else 0.0,
        judge_validation_accuracy=judging.accuracy,
        thresholds=curator.thresholds.as_dict(),
        classes=classes,
        rules=rule_accounts(ledger, curator.rules, curator.rules_on_validation()),
        plan=plan,
        encoder=judging.encoder.name,
        encoder_warning=judging.warning,
        quality=quality,
    )
    _report(summary, seconds, out, tracker)
    _clear(shards)
    return summary


def _clear(shards: Path) -> None:
    """Remove the shards: all at once, since a late worker may be writing one."""
    gone = shards.parent.with_name(f"{shards.parent.name}.shards")  # outside of what is hashed
    rmtree(gone, ignore_errors=True)
    shards.rename(gone)
    rmtree(gone, ignore_errors=True)


def _choose_source(
    params: SynthesizeParams,
    inputs: Inputs,
    info: StoreInfo,
    judging: Judging,
    wanted: Sequence[int],
    out: Path,
) -> _Source:
    """Return the recipes, the one that was asked for first; refuse what is impossible early."""
    precision = pick_precision(params.precision, judging.device)
    choice = choose_generator(params, inputs["train"], precision)
    searches = choice.settings is None and params.guidance == "auto"
    # On the processor, and not kept: workers load their own.
    generator = load_generator(choice.folder, torch.device("cpu"))
    if generator.spec.classes != info.classes:
        raise StageError("synthesize: the generator knows other classes; run `replenish train`")
    settings, searched = choice.settings, None
    # What a search will put in the place of no guidance goes with the generator by itself.
    own = settings_of(params, precision, NO_GUIDANCE if searches or settings else None)
    if settings is None:
        settings = own
    refuse_impossible(generator, settings)
    editing = make_editing(params, judging.training, info.classes, params.mode)
    if editing is not None:
        for label, count in enumerate(wanted):
            if count:
                editing.origin(params.seed, label, 0)  # refuse what has no parent, before any work
        _tell_own_masks(editing, judging.tracker)
    if choice.note:
        judging.tracker.note(choice.note)
    if searches:
        searched = _search(params, judging, choice.folder, settings, out)
        settings = own = settings_of(params, precision, searched.guidance)
    asked = Recipe("as asked", choice.folder, generator.digest, settings, editing)
    recipes: tuple[Recipe, ...] = (asked,)
    if params.adapt_below:
        teacher, folder = generator, inputs["train"] / "generator"
        if folder != choice.folder:
            teacher = load_generator(folder, torch.device("cpu"))
        recipes += other_recipes(
            asked,
            Recipe("from noise", folder, teacher.digest, own),
            teacher,
            make_editing(params, judging.training, info.classes, "edit"),
        )
    return _Source("teacher" if choice.settings is None else "student", recipes, searched)


def _tell_own_masks(editing: Editing, tracker: Tracker) -> None:
    if editing.needs_own:
        tracker.note(
            f"synthesize: {len(editing.own):,} of {len(editing.ids):,} training images have a mask "
            "that marks a part and leaves a part; the others are no parents"
        )


def _search(
    params: SynthesizeParams,
    judging: Judging,
    folder: Path,
    settings: SamplerSettings,
    out: Path,
) -> SearchResult:
    searched = search_guidance(
        load_generator(folder, judging.device),
        judging.training,
        judging.validation,
        judging.encoder.embed,
        settings,
        params.search_images,
        params.seed,
        judging.device,
        judging.tracker,
    )
    write_search(out / "search.csv", searched)
    return searched


def _executor(
    params: SynthesizeParams,
    recipes: tuple[Recipe, ...],
    device: torch.device,
    shards: Path,
    tracker: Tracker,
) -> Executor:
    execution = params.execution
    elsewhere = execution.backend in ("prefect", "ray")
    lent = lent_executor() if elsewhere else None
    if elsewhere and lent is None:
        tracker.note(
            f"synthesize: execution.backend = {execution.backend} sends shards from a flow alone "
            "(python -m flows.augment, or a deployment); this run draws the same images here"
        )
    # A GPU does one batch after the other; on a processor each worker has a thread of its own.
    workers = 1 if device.type == "cuda" else execution.workers or usable_cores()
    job = ShardJob(
        recipes,
        params.seed,
        str(device),
        compiled=params.compile,
        batch_images=None if execution.batch_images == "auto" else execution.batch_images,
        workers=workers,
        memory_mib=execution.memory_mib,
        shard_images=params.shard_images,
    )
    if lent is not None:
        # Another machine has its own device and all of its memory.
        return lent(replace(job, device=execution.device, workers=1), shards, execution, tracker)
    if execution.backend == "processes":
        gpus = visible_gpus() if device.type == "cuda" else ()
        return ProcessExecutor(job.start, shards, len(gpus) or workers, gpus)
    return ThreadExecutor(job.start, shards, workers)


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
    if summary.plan is not None:
        tracker.note(f"synthesize: planned {summary.accepted:,} images: {summary.plan.reason}")
    if not summary.candidates:
        tracker.note(
            "synthesize: the plan asks for no image; set synthesize.images_per_class to a number"
        )
    for one in summary.classes:
        if len(one.recipes) > 1:
            tracker.note(f"synthesize: class {one.name} tried {_tried(one)}")
        if one.shortfall:
            tracker.note(
                f"synthesize: class {one.name} is {one.shortfall} images short of "
                f"{one.wanted} after {summary.rounds} rounds; raise synthesize.max_rounds or "
                "train.steps, or see the rejected images in the report"
            )


def _tried(one: ClassAccount) -> str:
    return ", ".join(
        f"{recipe.name} ({recipe.good} of {recipe.candidates} good)" for recipe in one.recipes
    )
