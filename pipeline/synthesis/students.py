"""The part of training that makes a student: distil it, keep it, ask whether it is good enough."""

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.store import Samples
from pipeline.device import Precision
from pipeline.diffusion.checkpoints import GeneratorSpec, save_student
from pipeline.diffusion.distillation import make_plan
from pipeline.diffusion.loop import Rows
from pipeline.diffusion.teaching import teach
from pipeline.params import TrainParams
from pipeline.synthesis.acceptance import StudentAccount, examine_student
from pipeline.team import Team
from pipeline.tracking.tracker import Tracker

_FOLDER, _WORK = "student", "distilling"


def make_student(
    params: TrainParams,
    spec: GeneratorSpec,
    teacher: UNet2DModel,
    digest: str,
    rows: Rows,
    chances: torch.Tensor,
    training: Samples,
    validation: Samples,
    train_steps: int,
    precision: Precision,
    out: Path,
    team: Team,
    tracker: Tracker,
) -> StudentAccount | None:
    """Distil a student into `out`/student; None where none is asked for, or for followers.

    The leader of a team does it alone; the others wait, and hear from it at every checkpoint, for
    no exchange of a team may take as long as a distillation.

    Args:
        params: of the stage train.
        spec: of the generator.
        teacher: its network, on the device of the rows.
        digest: of its folder.
        rows: the real training rows, on the device.
        chances: (N,) chance of each to be drawn.
        training: the same rows as images.
        validation: real rows to judge the student by.
        train_steps: most optimiser steps of the teacher's training.
        precision: of the networks' arithmetic.
        out: folder of the stage; what an interrupted distillation left is taken up there.
        team: of the training.
        tracker: told of progress and of the decision.

    Raises:
        StageError: the loss is no longer finite.
    """
    if params.distill == "none":
        return None
    if not team.leads:
        while team.agree(None):
            pass
        return None

    def beat() -> None:
        team.agree(True)

    plan = make_plan(
        params.distill,
        spec.process,
        params.distill_steps,
        params.distill_guidance,
        params.distill_phase_steps,
        train_steps,
    )
    phases = f"{len(plan.phases)} phase{'' if len(plan.phases) == 1 else 's'}"
    tracker.note(
        f"train: distils a student of {params.distill_steps} sampling steps ({plan.method}, "
        f"guidance {plan.guidance:g} within) in {phases} of {plan.phase_steps:,} steps"
    )
    student = teach(
        teacher,
        digest,
        spec,
        rows,
        chances,
        plan,
        params,
        precision,
        out / _WORK,
        tracker,
        beat,
    )
    taught = plan.describe(digest)
    account = examine_student(
        teacher,
        student,
        spec,
        taught,
        save_student(out / _FOLDER, spec, taught, student),
        training,
        validation,
        params,
        precision,
        rows.images.device,
        tracker,
        beat,
    )
    team.agree(False)
    tracker.note(
        f"train: the student is {'accepted' if account.accepted else 'refused'}: {account.reason}"
    )
    return account
