"""What the section `synthesize` says of the generator and the sampler."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.device import Precision
from pipeline.diffusion.checkpoints import StudentSpec, read_student
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.errors import InputError
from pipeline.params import SynthesizeParams

_TEACHER, _STUDENT = "generator", "student"  # folders in train's


@dataclass(frozen=True)
class Choice:
    """Whose images are drawn.

    Attributes:
        folder: of the generator.
        settings: how a student is sampled; None: it is the teacher, sampled as the params say.
        note: to be told; None: nothing is.
    """

    folder: Path
    settings: SamplerSettings | None
    note: str | None


def choose_generator(params: SynthesizeParams, train: Path, precision: Precision) -> Choice:
    """Choose between the generator and the student that was distilled from it.

    `auto` takes the student where train accepted it and images are drawn from noise alone; other
    modes begin at noise levels that it does not know.

    Args:
        params: the section.
        train: folder of the stage train.
        precision: of the network's arithmetic.

    Raises:
        InputError: a student is asked for and there is none, or what is there is damaged.
    """
    teacher = Choice(train / _TEACHER, None, None)
    if params.generator == "teacher":
        return teacher
    account = _read_account(train)
    if account is None:
        if params.generator == "student":
            raise InputError(
                "synthesize.generator = student: train has made none; set train.distill to "
                "progressive or consistency, or generator to auto"
            )
        return teacher
    accepted, reason = account["accepted"] is True, str(account["reason"])
    if params.generator == "auto":
        if not accepted:
            note = f"synthesize: the teacher draws the images, its student was refused: {reason}"
            return Choice(teacher.folder, None, note)
        if params.mode != "generate":
            note = f"synthesize: mode {params.mode} is the teacher's; its student draws from noise"
            return Choice(teacher.folder, None, note)
    spec = read_student(train / _STUDENT)
    steps = f"{len(spec.times)} step{'' if len(spec.times) == 1 else 's'}"
    note = (
        f"synthesize: the student draws the images in {steps}, with guidance {spec.guidance:g} "
        "within; sampler and guidance of the params are its teacher's"
    )
    if not accepted:
        note += f". It was refused: {reason}"
    return Choice(train / _STUDENT, student_settings(spec, precision), note)


def student_settings(student: StudentSpec, precision: Precision) -> SamplerSettings:
    """Return how a student is sampled: on its own time steps, without further guidance."""
    return SamplerSettings(
        student.sampler, len(student.times), precision=precision, times=student.times
    )


def settings_of(
    params: SynthesizeParams, precision: Precision, guidance: Guidance | None = None
) -> SamplerSettings:
    """Return the sampler settings.

    Args:
        params: the section; its guidance must be a number, unless `guidance` is given.
        precision: of the network's arithmetic.
        guidance: what a search found.
    """
    if guidance is None:
        if params.guidance == "auto":
            raise ValueError("guidance = auto is to be searched for first")
        high = math.inf if params.guidance_high is None else params.guidance_high
        guidance = Guidance(params.guidance, params.guidance_low, high, params.guide)
    return SamplerSettings(
        params.sampler,
        params.sampler_steps,
        guidance,
        precision,
        None if params.sampler_spacing == "auto" else params.sampler_spacing,
        params.sampler_eta,
    )


def _read_account(train: Path) -> dict[str, Any] | None:
    """Return what train says of its student; None where it made none."""
    path = train / "summary.json"
    try:
        account = json.loads(path.read_text(encoding="utf-8")).get("student")
        if account is None:
            return None
        return {key: account[key] for key in ("accepted", "reason")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable ({error!r}); run `replenish train`") from None
