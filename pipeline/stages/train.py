"""Stage train: fit the class-conditional diffusion model to the real training rows."""

from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import contact_sheet, encode_png, from_model, to_model
from pipeline.data.store import Samples, read_ids, read_info, read_samples
from pipeline.device import pick_device, pick_precision
from pipeline.diffusion.checkpoints import GeneratorSpec, drop_state, save_generator
from pipeline.diffusion.loop import Rows, train_generator
from pipeline.diffusion.noise import NoiseLevels
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.unet import build_unet
from pipeline.errors import StageError
from pipeline.folders import write_bytes
from pipeline.hashing import digest_lines
from pipeline.params import TrainParams
from pipeline.seeds import torch_generator
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

_SHEET_CLASSES = 20  # classes at most on a sheet
_SHEET_STEPS = 12


class TrainSummary(Summary):
    """What came of the training."""

    steps: int
    parameters: int
    precision: str
    generator_digest: str
    training_images: int
    final_loss: float
    validation_loss: float


@stage("train", TrainSummary)
def run(params: TrainParams, inputs: Inputs, out: Path, tracker: Tracker) -> TrainSummary:
    """Train on the real `train` rows; the `validation` rows are only looked at for their loss."""
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    device = pick_device(params.execution.device)
    precision = pick_precision(params.precision, device)
    training = read_samples(store, ("train",))
    steps = params.steps or auto_steps(len(training))
    heldout = read_samples(store, ("validation",))
    _refuse_test_rows(training, read_ids(store, ("test",)))
    spec = GeneratorSpec(
        classes=info.classes,
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        schedule=params.schedule,
        prediction=params.prediction,
        training_rows_digest=digest_lines(training.ids),
    )
    model = build_unet(
        info.image_size_px, info.image_mode, len(info.classes), params.base_channels, params.seed
    ).to(device)
    objective = Objective(
        levels=NoiseLevels(params.schedule, device),
        prediction=params.prediction,
        min_snr_gamma=params.min_snr_gamma if params.weighting == "min_snr" else None,
        label_dropout=params.label_dropout,
        null_class=len(info.classes),
        precision=precision,
    )
    count = sum(weight.numel() for weight in model.parameters())
    tracker.note(
        f"train: {len(training):,} images of {info.image_size_px} px in {len(info.classes)} "
        f"classes, {count / 1e6:.2f} M parameters, {precision} on {device.type}"
    )

    def draw_sheet(average: UNet2DModel, step: int) -> None:
        path = out / "samples" / f"step-{step:06d}.png"
        settings = SamplerSettings("dpmsolver++", _SHEET_STEPS, 1.5, precision)
        write_bytes(path, _sheet(average, spec, settings, params, device))
        tracker.artifact(path, f"samples/{path.name}")

    outcome = train_generator(
        model,
        objective,
        _rows(training, device),
        _rows(heldout, device),
        params,
        steps,
        out,
        tracker,
        draw_sheet,
    )
    write_bytes(out / "training_ids.txt", "".join(f"{i}\n" for i in sorted(training.ids)).encode())
    digest = save_generator(out / "generator", spec, outcome.model)
    drop_state(out)
    return TrainSummary(
        steps=steps,
        parameters=count,
        precision=precision,
        generator_digest=digest,
        training_images=len(training),
        final_loss=outcome.final_loss,
        validation_loss=outcome.validation_loss,
    )


def auto_steps(images: int) -> int:
    """Return the optimiser steps for a number of training images: 2.5 each, 400 to 4,000.

    Longer training copies: see docs/log.md.
    """
    return min(max(round(2.5 * images), 400), 4000)


def _rows(samples: Samples, device: torch.device) -> Rows:
    return Rows(to_model(samples.images).to(device), torch.from_numpy(samples.labels).to(device))


def _refuse_test_rows(training: Samples, test_ids: tuple[str, ...]) -> None:
    leaked = sorted(set(training.ids) & set(test_ids))
    if leaked:
        raise StageError(
            f"train: {len(leaked)} test rows stand in the training split ({leaked[0][:12]}...); "
            "run `replenish prepare --force`"
        )
    if "synthetic" in training.origins:
        raise StageError("train: synthetic rows in the prepared data; run `replenish prepare`")


def _sheet(
    model: UNet2DModel,
    spec: GeneratorSpec,
    settings: SamplerSettings,
    params: TrainParams,
    device: torch.device,
) -> bytes:
    classes = min(len(spec.classes), _SHEET_CLASSES)
    each = params.sheet_images_per_class
    labels = torch.arange(classes).repeat_interleave(each)
    generators = [torch_generator(params.seed, "sheet", i) for i in range(len(labels))]
    images = from_model(sample(model, spec, labels, generators, settings, device))
    return encode_png(contact_sheet(list(np.split(images, classes)), scale=2))
