"""Stage train: fit the class-conditional diffusion model to the real training rows."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import Images
from pipeline.data.store import Samples, StoreInfo, read_ids, read_info, read_samples
from pipeline.device import Precision, pick_device, pick_precision
from pipeline.diffusion.augmentation import forget_augmentation
from pipeline.diffusion.bases import Base, read_base
from pipeline.diffusion.checkpoints import GeneratorSpec, drop_state, save_generator
from pipeline.diffusion.fitting import (
    class_labels,
    make_objective,
    pick_dropout,
    pick_preset,
    sheet_drawer,
    to_rows,
)
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.guides import (
    drop_guide_state,
    earlier_network,
    earlier_step,
    smaller_network,
)
from pipeline.diffusion.loop import Course, Outcome, Rows, class_chances, train_generator
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.starting import Fit, start_from
from pipeline.diffusion.stopping import copying_starts, describe
from pipeline.diffusion.trainable import choose_trainable, count_trained, merge_adapters
from pipeline.diffusion.unet import build_unet
from pipeline.errors import InputError, StageError
from pipeline.features.classifier import embed
from pipeline.features.judge import fit_judge
from pipeline.folders import write_ids, write_json
from pipeline.hashing import digest_lines
from pipeline.params import TrainParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.synthesis.acceptance import StudentAccount
from pipeline.synthesis.probe import Probe
from pipeline.synthesis.students import make_student
from pipeline.team import Team, join_team
from pipeline.tracking.tracker import Tracker

MINIMUM_IMAGES = 10
MINIMUM_CLASS_IMAGES = 2
_CHECK_SETTINGS = (12, 1.0)  # network evaluations and guidance of the samples of a check
_ENCODER_STEPS = 150  # of the classifier whose features the kernel distance is taken in
_SHOWN_TENSORS = 6

Examine = Callable[[UNet2DModel], tuple[float, float]]


class TrainSummary(Summary):
    """What came of the training.

    Attributes:
        steps: optimiser steps made.
        most_steps: steps that it would have made without stopping early.
        kept_step: step whose averaged weights were kept.
        ema_length: relative width of the average that was kept.
        parameters: weights of the network.
        trained_parameters: those that were trained.
        network: its size and the reason for it.
        dropout: in the network, in [0, 1).
        precision: of its arithmetic.
        base: source of the base; None where the weights began at random.
        base_digest: digest of the base's config and weights.
        reinitialised: weights that the base did not fit, by name.
        generator_digest: digest of the generator folder.
        training_images: real rows it was trained on.
        final_loss: training loss at the end.
        validation_loss: denoising loss of validation rows, of the network that was kept.
        loss_gap: that minus the same of training rows.
        copy_share: share of samples that are copies; None where it was not measured.
        kernel_distance: of samples to validation rows; None likewise.
        copies_from_step: step from which every check copies more than the limit; None: no such.
        endurance: how long the images last, in words.
        guide: the weaker network of autoguidance, in words; None where none was asked for.
        student: the distilled network, and whether it was accepted; None likewise.
    """

    steps: int
    most_steps: int
    kept_step: int
    ema_length: float
    parameters: int
    trained_parameters: int
    network: str
    dropout: float
    precision: str
    base: str | None
    base_digest: str | None
    reinitialised: list[str]
    generator_digest: str
    training_images: int
    final_loss: float
    validation_loss: float | None
    loss_gap: float | None
    copy_share: float | None
    kernel_distance: float | None
    copies_from_step: int | None
    endurance: str
    guide: str | None
    student: StudentAccount | None


@stage("train", TrainSummary, together=True)
def run(params: TrainParams, inputs: Inputs, out: Path, tracker: Tracker) -> TrainSummary:
    """Train on the real `train` rows; `validation` rows are only looked at, to know when to stop.

    Raises:
        InputError: too few images, or a base that does not go with them.
        StageError: a test row among the training rows or those of the base, or a loss that is no
            longer finite.
    """
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    training, heldout = read_samples(store, ("train",)), read_samples(store, ("validation",))
    _require_images(training, info.classes)
    held_ids = read_ids(store, ("test",))
    _refuse_test_rows(training, held_ids)
    base = read_base(inputs["pretrain"] / "base")
    if base is not None:
        _refuse_base_of_held_out(base, set(held_ids) | set(heldout.ids))
    device, team = pick_device(params.execution.device), join_team()
    precision = pick_precision(params.precision, device)
    dropout = pick_dropout(params, len(training))
    model, network, fit = _start(params, info, base, len(training), dropout)
    model = model.to(device)
    count = sum(weight.numel() for weight in model.parameters())
    choose_trainable(
        model, params.trainable, fit.reinitialised if fit else (), params.lora_rank, params.seed
    )
    trained = count_trained(model)
    spec = GeneratorSpec(
        classes=info.classes,
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        schedule=params.schedule,
        prediction=params.prediction,
        zero_terminal_snr=params.zero_terminal_snr,
        training_rows_digest=digest_lines(training.ids),
        base_digest=base.digest if base else None,
        null_class_trained=params.label_dropout > 0,
    )
    steps = params.steps or auto_steps(len(training), base is not None)
    tracker.note(
        f"train: {len(training):,} images in {len(info.classes)} classes, {network}, "
        f"{count / 1e6:.2f} M weights, {trained / 1e6:.2f} M of them trained, "
        f"dropout {dropout:g}, at most {steps:,} steps, {precision} on {device.type}"
    )
    if base is not None and fit is not None:
        _tell_base(base, fit, params, tracker)
    labels = class_labels(len(info.classes), params.sheet_images_per_class)
    objective = make_objective(
        params,
        precision,
        len(info.classes),
        params.label_dropout,
        params.class_balance_weight,
    )
    rows, held = to_rows(training, device), to_rows(heldout, device)
    chances = class_chances(torch.from_numpy(training.labels), params.class_balance_power)
    outcome = train_generator(
        model,
        objective,
        rows,
        held,
        chances,
        params,
        Course(
            "train",
            steps,
            params.checks,
            params.copy_limit,
            params.patience_checks,
            None if params.ema_length == "auto" else params.ema_length,
        ),
        out,
        tracker,
        _examiner(params, spec, training, heldout, precision, device, team, tracker),
        sheet_drawer(
            spec,
            labels,
            len(labels) // params.sheet_images_per_class,
            params.seed,
            precision,
            device,
            out,
            tracker,
        ),
        team,
    )
    kept = outcome.kept
    endurance = describe(outcome.checks, kept, len(training), params.copy_limit)
    early = f" (stopped early, of {steps:,})" if outcome.steps < steps else ""
    tracker.note(f"train: {endurance}; {outcome.steps:,} steps made{early}")
    if kept.copy_share > params.copy_limit:
        tracker.note(
            f"train: every network that was looked at copies: {kept.copy_share:.1%} of the samples "
            f"of the best one, above train.copy_limit = {params.copy_limit:g}; raise train.checks "
            "to look earlier, or start from a base (pretrain.base)"
        )
    weaker, guide = None, None
    if params.guide != "none" and team.leads:
        weaker, guide = _weaker(params, outcome, objective, rows, held, chances, out, tracker)
        tracker.note(f"train: guide: {guide}")
    network_out = outcome.model
    merge_adapters(network_out)
    forget_augmentation(network_out)
    write_ids(out / "training_ids.txt", training.ids)
    if base is not None and base.training_ids is not None:
        # What the base has seen, this generator has: a later run that starts from it is told.
        write_ids(out / "base_ids.txt", base.training_ids)
    write_json(out / "class_sources.json", dict(fit.classes_mapped) if fit else {})
    digest = save_generator(out / "generator", spec, network_out, weaker)
    student = make_student(
        params,
        spec,
        network_out,
        digest,
        rows,
        chances,
        training,
        heldout,
        steps,
        precision,
        out,
        team,
        tracker,
    )
    # Last, so that whatever is interrupted before goes on from there.
    drop_state(out)
    drop_guide_state(out)
    return TrainSummary(
        steps=outcome.steps,
        most_steps=steps,
        kept_step=kept.step,
        ema_length=kept.ema_length,
        parameters=count,
        trained_parameters=trained,
        network=network,
        dropout=dropout,
        precision=precision,
        base=f"{base.kind}: {base.source}" if base else None,
        base_digest=base.digest if base else None,
        reinitialised=list(fit.reinitialised) if fit else [],
        generator_digest=digest,
        training_images=len(training),
        final_loss=_or_nought(outcome.final_loss),
        validation_loss=_known(kept.heldout_loss),
        loss_gap=_known(kept.heldout_loss - kept.training_loss),
        copy_share=_known(kept.copy_share),
        kernel_distance=_known(kept.quality),
        copies_from_step=copying_starts(outcome.checks, params.copy_limit),
        endurance=endurance,
        guide=guide,
        student=student,
    )


def auto_steps(images: int, from_base: bool) -> int:
    """Return the most optimiser steps for a number of training images: 2.5 each, 400 to 4,000.

    From a base a third of that, 200 at least. Longer training copies: see docs/log.md.
    """
    steps = min(max(round(2.5 * images), 400), 4000)
    return max(steps // 3, 200) if from_base else steps


def _start(
    params: TrainParams, info: StoreInfo, base: Base | None, images: int, dropout: float
) -> tuple[UNet2DModel, str, Fit | None]:
    if base is not None:
        model, fit = start_from(
            base,
            image_size_px=info.image_size_px,
            image_mode=info.image_mode,
            classes=info.classes,
            class_map=params.class_map,
            dropout=dropout,
            seed=params.seed,
        )
        return model, "the base's network", fit
    for name, value in (("trainable", params.trainable), ("class_map", params.class_map)):
        if value not in ("all", {}):
            raise InputError(
                f"train.{name} = {value} is for fine-tuning, and there is no base; set "
                "pretrain.base, or leave it as it was"
            )
    preset, network = pick_preset(params, info.image_size_px, images)
    model = build_unet(
        info.image_size_px, info.image_mode, len(info.classes), preset, params.seed, dropout
    )
    return model, network, None


def _weaker(
    params: TrainParams,
    outcome: Outcome,
    objective: Objective,
    training: Rows,
    heldout: Rows,
    chances: torch.Tensor,
    out: Path,
    tracker: Tracker,
) -> tuple[UNet2DModel | None, str]:
    """Return the weaker network that `train.guide` asks for, and what it is, in words."""
    kept = outcome.kept.step
    if params.guide == "smaller":
        model, steps = smaller_network(
            outcome.model, objective, training, heldout, chances, params, kept, out, tracker
        )
        widths = ", ".join(str(width) for width in model.config["block_out_channels"])
        return model, f"a network of widths {widths}, trained for {steps:,} steps"
    step = earlier_step(outcome.checks, kept)
    if step is None:
        return None, (
            f"none: no check lies before the kept step {kept:,}; raise train.checks, or set "
            "train.guide to smaller"
        )
    model = earlier_network(outcome.model, out, step)
    return model, f"this network after {step:,} of the {kept:,} steps that were kept"


def _examiner(
    params: TrainParams,
    spec: GeneratorSpec,
    training: Samples,
    heldout: Samples,
    precision: Precision,
    device: torch.device,
    team: Team,
    tracker: Tracker,
) -> Examine:
    """Return what looks at copies and quality; only the leader of a team looks."""
    if not params.check_images or not len(heldout) or not team.leads:
        return lambda _: (math.nan, math.nan)
    encoder = fit_judge(
        training,
        len(spec.classes),
        _ENCODER_STEPS,
        params.seed,
        device,
        lambda step: tracker.progress("encoder", step, _ENCODER_STEPS, "steps"),
    )

    def features(images: Images) -> npt.NDArray[np.floating]:
        return embed(encoder, images)

    steps, guidance = _CHECK_SETTINGS
    settings = SamplerSettings("dpmsolver++", steps, Guidance(guidance), precision)
    return Probe(
        spec, training, heldout, features, settings, params.check_images, params.seed, device
    )


def _require_images(training: Samples, classes: tuple[str, ...]) -> None:
    counts = np.bincount(training.labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < MINIMUM_CLASS_IMAGES:
            raise InputError(
                f"train: class {name} has {count} training images and needs at least "
                f"{MINIMUM_CLASS_IMAGES}; add images of it, or remove the class"
            )
    if len(training) < MINIMUM_IMAGES:
        raise InputError(
            f"train: {len(training)} training images in all; at least {MINIMUM_IMAGES} are needed"
        )


def _refuse_test_rows(training: Samples, test_ids: tuple[str, ...]) -> None:
    leaked = sorted(set(training.ids) & set(test_ids))
    if leaked:
        raise StageError(
            f"train: {len(leaked)} test rows stand in the training split ({leaked[0][:12]}...); "
            "run `replenish prepare --force`"
        )
    if "synthetic" in training.origins:
        raise StageError("train: synthetic rows in the prepared data; run `replenish prepare`")


def _refuse_base_of_held_out(base: Base, held: set[str]) -> None:
    leaked = sorted(held & set(base.training_ids or ()))
    if leaked:
        raise InputError(
            f"train: the base ({base.kind}: {base.source}) was trained on {len(leaked)} images "
            f"that are test or validation images here ({leaked[0][:12]}...): its images would "
            "spoil the verdict; use another base, or the same prepare params and seed as it had"
        )


def _tell_base(base: Base, fit: Fit, params: TrainParams, tracker: Tracker) -> None:
    tracker.note(
        f"train: starts from {base.source} ({base.kind}): {len(fit.loaded)} tensors loaded, "
        f"{len(fit.reinitialised)} started afresh{_some(fit.reinitialised)}, "
        f"{len(fit.unused)} of the base unused{_some(fit.unused)}"
    )
    if fit.classes_mapped:
        new = f"; new: {', '.join(fit.classes_new)}" if fit.classes_new else ""
        tracker.note(f"train: classes known to the base: {', '.join(fit.classes_mapped)}{new}")
    for key, ours, theirs in (
        ("schedule", params.schedule, base.schedule),
        ("prediction", params.prediction, base.prediction),
    ):
        if theirs is not None and ours != theirs:
            tracker.note(
                f"train: the base was trained with {key} {theirs}, and train.{key} is {ours}; "
                "equal ones learn faster"
            )
    if base.training_ids is None:
        tracker.note(
            "train: which images the base has seen is not known; if your test images may be among "
            "them, the verdict cannot be trusted"
        )


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN_TENSORS])
    return f" ({shown}{', ...' if len(names) > _SHOWN_TENSORS else ''})"


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nought(value: float) -> float:
    return value if math.isfinite(value) else 0.0
