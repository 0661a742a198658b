"""Distillation: what a student that samples in few steps is taught, and how far it is from it.

Two ways, each with classifier-free guidance folded in (Meng et al. 2023), so that the student is
evaluated once a step. Progressive (Salimans and Ho 2022): one step of the student goes where two
of its teacher end; phase by phase the steps are halved. Consistency (Song et al. 2023): from all
points of one path of the teacher the student sees the same clean image. This module holds the
plan, targets and losses; `teaching` trains by them.

Noisy images of a batch stand on different rungs of a ladder: `rungs` is (N,) int64 on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.diffusion.checkpoints import DistillMethod, StudentSpec
from pipeline.diffusion.ladders import Ladder, Spacing, make_ladder
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.solvers import SamplerName

# Sees the clean image: x (N, C, H, W) and rungs -> x_0.
See = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_SPACING: Spacing = "quadratic"  # every second rung of it is the same spacing again
# Of the ladder that is begun with. More make a longer way for the student at the same cost.
_FIRST_RUNGS = {"progressive": 16, "consistency": 8}
_LEAST_STEPS = 50  # of a phase: the fewest that were tried (docs/log.md)
_HUBER = 0.00054  # c over the square root of the dimensions, Song and Dhariwal 2023, section 3.3


@dataclass(frozen=True)
class Phase:
    """What one teacher teaches.

    Attributes:
        ladder: noise levels that the teacher steps over.
        stride: rungs of it that one step of the student passes.
        guidance: weight of the teacher's guidance; 1 once it is folded in.
    """

    ladder: Ladder
    stride: int
    guidance: float

    @property
    def evaluations(self) -> int:
        """Return how many of the teacher's an image costs, guidance counted."""
        return self.stride * (1 if self.guidance == 1.0 else 2)


@dataclass(frozen=True)
class Plan:
    """How a student is taught, and how it is sampled afterwards.

    Attributes:
        method: of distillation.
        phases: one after the other; each student teaches the next.
        phase_steps: optimiser steps of each phase.
        guidance: weight that the student has within.
        sampler: solver of the student,
        times: and the time steps that it knows, falling.
    """

    method: DistillMethod
    phases: tuple[Phase, ...]
    phase_steps: int
    guidance: float
    sampler: SamplerName
    times: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Return the optimiser steps in all."""
        return len(self.phases) * self.phase_steps

    def describe(self, teacher_digest: str) -> StudentSpec:
        """Return what the student's folder says of it."""
        return StudentSpec(
            method=self.method,
            sampler=self.sampler,
            times=self.times,
            guidance=self.guidance,
            phase_rungs=tuple(len(phase.ladder) for phase in self.phases),
            phase_steps=self.phase_steps,
            teacher_digest=teacher_digest,
        )


def make_plan(
    method: DistillMethod,
    process: NoiseProcess,
    steps: int,
    guidance: float,
    phase_steps: int | None,
    train_steps: int,
) -> Plan:
    """Return the plan for a student of so many sampling steps.

    Args:
        method: of distillation.
        process: the teacher's noise process.
        steps: network evaluations an image of the student: a power of two, at most 8.
        guidance: weight that is folded in.
        phase_steps: optimiser steps of each phase; None: by `train_steps`.
        train_steps: most optimiser steps of the teacher's own training.
    """
    rungs = _FIRST_RUNGS[method]
    if method == "consistency":
        ladder = make_ladder(process, rungs, _SPACING)
        phases = [Phase(ladder, 1, guidance)]
        times = ladder.times[:: rungs // steps]
    else:
        phases = []
        while rungs > steps:
            folded = bool(phases)
            own = 1.0 if folded else guidance
            phases.append(Phase(make_ladder(process, rungs, _SPACING), 2, own))
            rungs //= 2
        times = phases[-1].ladder.times[::2]
    return Plan(
        method,
        tuple(phases),
        phase_steps or auto_phase_steps(phases, method, train_steps),
        guidance,
        "consistency" if method == "consistency" else "ddim",
        times,
    )


def auto_phase_steps(phases: list[Phase], method: DistillMethod, train_steps: int) -> int:
    """Return the optimiser steps of a phase for which distillation costs about a training."""
    # Forward passes an image: 3 of whoever learns (backward counts as 2), the teacher's, and one
    # more of the student for the target of consistency.
    own = 3 + (method == "consistency")
    cost = sum(own + phase.evaluations for phase in phases)
    return max(_LEAST_STEPS, round(3 * train_steps / cost))


def noisy_at(
    ladder: Ladder, images: torch.Tensor, noise: torch.Tensor, rungs: torch.Tensor
) -> torch.Tensor:
    """Return the images noised to their rungs."""
    return _at(ladder.signal, rungs, images) * images + _at(ladder.noise, rungs, images) * noise


def step_down(
    ladder: Ladder, x: torch.Tensor, clean: torch.Tensor, rungs: torch.Tensor
) -> torch.Tensor:
    """Return x one rung lower, by DDIM (Song et al. 2021, equation 12); the clean image at last."""
    epsilon = (x - _at(ladder.signal, rungs, x) * clean) / _at(ladder.noise, rungs, x)
    return _at(ladder.signal, rungs + 1, x) * clean + _at(ladder.noise, rungs + 1, x) * epsilon


def progressive_target(
    ladder: Ladder, see: See, x: torch.Tensor, rungs: torch.Tensor
) -> torch.Tensor:
    """Return the x_0 with which one DDIM step over two rungs ends where two steps do.

    Salimans and Ho 2022, algorithm 2. Solved for x_0, their quotient is a mean of the two clean
    images that the teacher sees: with r = signal / noise the first has the share
    (r' - r) / (r'' - r). So it loses no digits, lies in [-1, 1] where they do, and below the last
    rung, where r'' is infinite, it is the second one.

    Args:
        ladder: the teacher's.
        see: the teacher.
        x: (N, C, H, W).
        rungs: (N,), two or more above the end of the ladder.
    """
    first = see(x, rungs)
    second = see(step_down(ladder, x, first, rungs), rungs + 1)
    ratios = tuple(_ratio(ladder, rung) for rung in range(len(ladder) + 1))
    here, below, end = (_at(ratios, rungs + i, x) for i in range(3))
    return torch.lerp(second, first, (below - here) / (end - here))


def consistency_target(
    ladder: Ladder, see: See, student: See, x: torch.Tensor, rungs: torch.Tensor
) -> torch.Tensor:
    """Return what the student sees one rung lower, where a DDIM step of its teacher leads.

    Song et al. 2023, equation 7. Below the last rung lies a clean image, which the student sees as
    it is: the boundary condition.

    Args:
        ladder: the teacher's.
        see: the teacher.
        student: the student as it is now, without gradient.
        x: (N, C, H, W).
        rungs: (N,).
    """
    below = step_down(ladder, x, see(x, rungs), rungs)
    last = rungs + 1 == len(ladder)
    seen = student(below, (rungs + 1).clamp(max=len(ladder) - 1))
    return torch.where(last[:, None, None, None].to(x.device), below, seen)


def progressive_loss(
    ladder: Ladder, clean: torch.Tensor, target: torch.Tensor, rungs: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error of x_0, weighted by max(SNR, 1).

    Salimans and Ho 2022, section 4. For a velocity it is nearly the plain error.
    """
    ratios = tuple(_ratio(ladder, rung) ** 2 for rung in range(len(ladder)))
    weight = _at(ratios, rungs, clean).clamp(min=1.0)
    return (weight * (clean - target).square()).mean()


def consistency_loss(clean: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean pseudo-Huber distance, Song and Dhariwal 2023, equation 7."""
    size = clean[0].numel()
    c = _HUBER * math.sqrt(size)
    squares = (clean - target).square().sum(dim=(1, 2, 3))
    return ((squares + c**2).sqrt() - c).mean()


def _ratio(ladder: Ladder, rung: int) -> float:
    """Return signal / noise; infinite below the last rung."""
    noise = ladder.noise[rung]
    return ladder.signal[rung] / noise if noise else math.inf


def _at(values: tuple[float, ...], rungs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the values of the rungs, (N, 1, 1, 1), on the device and in the type of `like`."""
    chosen = torch.tensor(values, dtype=torch.float64)[rungs]
    return chosen[:, None, None, None].to(like.device, like.dtype)
