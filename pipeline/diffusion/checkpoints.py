"""Generators and training states on disk: safetensors and JSON, nothing pickled.

A generator is a folder that `UNet2DModel.from_pretrained` opens, with generator.json beside it.
Where it has a weaker network for autoguidance, that is another such folder inside, `guide`.
A distilled student is a generator too, with student.json beside it.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.data.images import ImageMode
from pipeline.diffusion.noise import TIMESTEPS, NoiseProcess, Prediction, ScheduleName
from pipeline.diffusion.solvers import SamplerName
from pipeline.errors import InputError, StageError
from pipeline.folders import write_bytes, write_json
from pipeline.hashing import digest_folder, digest_json

DistillMethod = Literal["progressive", "consistency"]

_LOADING = Lock()
_SPEC = "generator.json"
_STUDENT = "student.json"
_GUIDE = "guide"
_STATE = "state.safetensors"
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class GeneratorSpec:
    """What a sampler must know beside the weights.

    Attributes:
        classes: class names, by label; label len(classes) is the null class.
        image_size_px: side of the images.
        image_mode: L or RGB.
        schedule: noise schedule of the training.
        prediction: what the network predicts.
        zero_terminal_snr: is the last noise level pure noise?
        training_rows_digest: digest of the ids of the training rows.
        base_digest: digest of the base that it was fine-tuned from; None where it began at random.
        null_class_trained: was the null class trained? Without it there is no classifier-free
            guidance.
    """

    classes: tuple[str, ...]
    image_size_px: int
    image_mode: ImageMode
    schedule: ScheduleName
    prediction: Prediction
    zero_terminal_snr: bool
    training_rows_digest: str
    base_digest: str | None
    null_class_trained: bool = True

    @property
    def process(self) -> NoiseProcess:
        """Return the noise process that samplers step back through."""
        return NoiseProcess(self.schedule, self.prediction, self.zero_terminal_snr)


@dataclass(frozen=True)
class Generator:
    """A trained network, ready to be sampled.

    Attributes:
        spec: what a sampler must know of it.
        model: the network.
        digest: identifies all of it in every lineage.
        weaker: network that autoguidance compares with, where there is one.
    """

    spec: GeneratorSpec
    model: UNet2DModel
    digest: str
    weaker: UNet2DModel | None = None


def save_generator(
    folder: Path, spec: GeneratorSpec, model: UNet2DModel, weaker: UNet2DModel | None = None
) -> str:
    """Write a generator and return its digest, which covers the weaker network."""
    model.save_pretrained(folder, safe_serialization=True)
    # What a run that was killed here has left.
    shutil.rmtree(folder / _GUIDE, ignore_errors=True)
    if weaker is not None:
        weaker.save_pretrained(folder / _GUIDE, safe_serialization=True)
    write_json(folder / _SPEC, asdict(spec))
    return _folder_digest(folder)


def load_generator(folder: Path, device: torch.device) -> Generator:
    """Read a generator for sampling.

    Raises:
        InputError: the folder is missing or damaged, or its weights are no safetensors.
    """
    try:
        data = json.loads((folder / _SPEC).read_text(encoding="utf-8"))
        spec = GeneratorSpec(**{**data, "classes": tuple(data["classes"])})
        model = _load_network(folder, device)
        weaker = _load_network(folder / _GUIDE, device) if (folder / _GUIDE).is_dir() else None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{folder}: not a readable generator ({error}); run `replenish train --force`"
        ) from None
    return Generator(spec, model, _folder_digest(folder), weaker)


@dataclass(frozen=True)
class StudentSpec:
    """How a distilled network is sampled, and how it was taught.

    Attributes:
        method: of distillation.
        sampler: its solver.
        times: the time steps that it knows, falling: one network evaluation each.
        guidance: weight of the guidance that it has within.
        phase_rungs: rungs of the teacher's ladder in each phase.
        phase_steps: optimiser steps of each phase.
        teacher_digest: digest of the generator that it was distilled from.
    """

    method: DistillMethod
    sampler: SamplerName
    times: tuple[int, ...]
    guidance: float
    phase_rungs: tuple[int, ...]
    phase_steps: int
    teacher_digest: str


@dataclass(frozen=True)
class Student:
    """A distilled network, and how it is sampled."""

    generator: Generator
    spec: StudentSpec


def save_student(
    folder: Path, generator: GeneratorSpec, student: StudentSpec, model: UNet2DModel
) -> str:
    """Write a student and return its digest, which covers how it is sampled."""
    write_json(folder / _STUDENT, {**asdict(student), "steps": len(student.times)})
    return save_generator(folder, generator, model)


def load_student(folder: Path, device: torch.device) -> Student:
    """Read a student for sampling.

    Raises:
        InputError: see `load_generator` and `read_student`.
    """
    return Student(load_generator(folder, device), read_student(folder))


def read_student(folder: Path) -> StudentSpec:
    """Read how a student is sampled.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        data = json.loads((folder / _STUDENT).read_text(encoding="utf-8"))
        steps = data.pop("steps")
        lists = {key: tuple(int(one) for one in data[key]) for key in ("times", "phase_rungs")}
        spec = StudentSpec(**{**data, **lists})
        times = list(spec.times)
        if not times or len(times) != steps:
            raise ValueError(f"{len(times)} time steps for {steps} steps")
        if times != sorted(set(times) & set(range(TIMESTEPS)), reverse=True):
            raise ValueError(f"{spec.times} are not falling time steps")
        if spec.sampler not in ("ddim", "consistency"):
            raise ValueError(f"sampler {spec.sampler!r} is no student's")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{folder}: not a readable student ({error}); run `replenish train --force`"
        ) from None
    return spec


@dataclass
class TrainingState:
    """What an interrupted training needs to go on: tensors by name, and plain numbers."""

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, Any]


def save_state(folder: Path, state: TrainingState) -> None:
    """Write the state in one atomic file, so that a kill leaves the old state or the new one."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    write_bytes(folder / _STATE, save(tensors, metadata={"numbers": json.dumps(state.numbers)}))


def load_state(folder: Path) -> TrainingState | None:
    """Return the saved state, or None where there is none or it cannot be read."""
    path = folder / _STATE
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        numbers = json.loads(header["__metadata__"]["numbers"])
    except (SafetensorError, ValueError, KeyError):
        return None
    return TrainingState(tensors, numbers)


def drop_state(folder: Path) -> None:
    """Remove the saved state and the snapshots of a training that has ended."""
    (folder / _STATE).unlink(missing_ok=True)
    shutil.rmtree(folder / _SNAPSHOTS, ignore_errors=True)


def save_snapshot(folder: Path, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep the averaged weights of a step, to rebuild averages of other lengths from."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(_snapshot(folder, step), save(plain))


def load_snapshot(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return what `save_snapshot` kept.

    Raises:
        StageError: it is missing or damaged.
    """
    path = _snapshot(folder, step)
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise StageError(f"{path}: not readable ({error}); run the stage with --force") from None


def _snapshot(folder: Path, step: int) -> Path:
    return folder / _SNAPSHOTS / f"step-{step:08d}.safetensors"


def _load_network(folder: Path, device: torch.device) -> UNet2DModel:
    # diffusers replaces torch's functions while it loads: two threads at once leave them replaced.
    with _LOADING:
        model = UNet2DModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return cast("UNet2DModel", model.to(device).eval().requires_grad_(False))


def _folder_digest(folder: Path) -> str:
    return digest_json(digest_folder(folder))
