"""What the stages pretrain and train share: network, objective, sample sheet, from their params."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import contact_sheet, encode_png, from_model, to_model
from pipeline.data.store import Samples
from pipeline.device import Precision
from pipeline.diffusion.augmentation import Augmentation
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.loop import Rows
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.unet import PRESETS, Preset, choose_dropout, choose_preset
from pipeline.folders import write_bytes
from pipeline.params import GeneratorParams
from pipeline.seeds import torch_generator
from pipeline.tracking.tracker import Tracker

_SHEET_CLASSES = 20  # classes at most on a sheet
SHEET_SETTINGS: tuple[int, float] = (12, 1.5)  # network evaluations, guidance


def pick_preset(params: GeneratorParams, image_size_px: int, images: int) -> tuple[Preset, str]:
    """Return the network's size and the reason for it, to be told."""
    if params.preset == "auto":
        name, reason = choose_preset(image_size_px, images)
    else:
        name, reason = params.preset, "as train.preset says"
    preset = PRESETS[name]
    if params.base_channels is None:
        return preset, f"{name} network ({reason})"
    width = params.base_channels
    return Preset(width, preset.layers), f"{name} network of width {width} (train.base_channels)"


def pick_dropout(params: GeneratorParams, images: int) -> float:
    """Return the dropout in the network."""
    return choose_dropout(images) if params.dropout is None else params.dropout


def make_process(params: GeneratorParams) -> NoiseProcess:
    """Return the noise process."""
    return NoiseProcess(params.schedule, params.prediction, params.zero_terminal_snr)


def make_objective(
    params: GeneratorParams,
    precision: Precision,
    null_class: int,
    label_dropout: float = 0.0,
    class_balance: float = 0.0,
) -> Objective:
    """Return the training loss; see `Objective` for the last three."""
    augmentation = None
    if params.augment and params.augment_probability > 0:
        augmentation = Augmentation(params.augment, params.augment_probability)
    return Objective(
        process=make_process(params),
        weighting=params.weighting,
        min_snr_gamma=params.min_snr_gamma,
        label_dropout=label_dropout,
        null_class=null_class,
        precision=precision,
        augmentation=augmentation,
        class_balance=class_balance,
    )


def to_rows(samples: Samples, device: torch.device, label: int | None = None) -> Rows:
    """Return the samples on a device, with their labels or with one label for all."""
    images = to_model(samples.images).to(device)
    labels = torch.from_numpy(samples.labels.copy())
    if label is not None:
        labels = torch.full_like(labels, label)
    return Rows(images, labels.to(device))


def sheet_drawer(
    spec: GeneratorSpec,
    labels: torch.Tensor,
    rows: int,
    seed: int,
    precision: Precision,
    device: torch.device,
    out: Path,
    tracker: Tracker,
) -> Callable[[UNet2DModel, int], None]:
    """Return what draws the sample sheet of a step: the same noise at every step.

    Args:
        spec: of the generator.
        labels: (N,) labels, row by row.
        rows: rows of the sheet; divides N.
        seed: root seed.
        precision: of the network's arithmetic.
        device: where the network is.
        out: the stage's folder; sheets go into samples/.
        tracker: keeps a copy.
    """
    steps, guidance = SHEET_SETTINGS
    weight = guidance if spec.classes else 1.0
    settings = SamplerSettings("dpmsolver++", steps, Guidance(weight), precision)

    def draw(model: UNet2DModel, step: int) -> None:
        generators = [torch_generator(seed, "sheet", i) for i in range(len(labels))]
        images = from_model(sample(model, spec, labels, generators, settings, device))
        path = out / "samples" / f"step-{step:06d}.png"
        write_bytes(path, encode_png(contact_sheet(list(np.split(images, rows)), scale=2)))
        tracker.artifact(path, f"samples/{path.name}")

    return draw


def class_labels(classes: int, each: int) -> torch.Tensor:
    """Return the labels of a sheet: `each` of a class, one class after the other, at most 20."""
    return torch.arange(min(classes, _SHEET_CLASSES)).repeat_interleave(each)
