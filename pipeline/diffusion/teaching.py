"""The loop that distils: a student learns from its teacher, phase by phase.

Every random number of a step is addressed by (seed, phase, step), as in training, and what a kill
interrupts goes on from the last checkpoint to the very same weights.
"""

import copy
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.device import Precision, autocast
from pipeline.diffusion.checkpoints import GeneratorSpec, TrainingState, load_state, save_state
from pipeline.diffusion.distillation import (
    Phase,
    Plan,
    See,
    consistency_loss,
    consistency_target,
    noisy_at,
    progressive_loss,
    progressive_target,
)
from pipeline.diffusion.ema import PowerAverages, Weights
from pipeline.diffusion.guidance import classifier_free
from pipeline.diffusion.ladders import Ladder
from pipeline.diffusion.loop import Rows, learning_rate
from pipeline.diffusion.network import Network
from pipeline.diffusion.noise import NoiseProcess
from pipeline.errors import StageError
from pipeline.params import GeneratorParams
from pipeline.seeds import torch_generator
from pipeline.tracking.tracker import Tracker

TASK = "distil"

_RATE_SHARE = 0.5  # peak learning rate over that of training
_WARMUP_SHARE = 0.1  # of a phase, at most
_CURVE_ROWS = 50  # points of the loss curve of a phase


def teach(
    teacher: UNet2DModel,
    digest: str,
    spec: GeneratorSpec,
    training: Rows,
    chances: torch.Tensor,
    plan: Plan,
    params: GeneratorParams,
    precision: Precision,
    work: Path,
    tracker: Tracker,
    beat: Callable[[], None],
) -> UNet2DModel:
    """Distil a student, resuming from what an interrupted run left in `work`.

    Args:
        teacher: the generator's network, on the device of the rows; it is left as it is.
        digest: of the generator: a checkpoint of another one's student is not taken up.
        spec: of the generator.
        training: real training rows, which are noised for the teacher to see.
        chances: (N,) chance of each row to be drawn.
        plan: phases and their lengths.
        params: batch, rate, precision and the like.
        precision: of both networks' arithmetic.
        work: folder of the checkpoint; removed at the end.
        tracker: told of progress.
        beat: called at every checkpoint and after every phase.

    Returns:
        The student, in eval mode and without gradients.

    Raises:
        StageError: the loss is no longer finite; the last checkpoint stays in `work`.
    """
    run = _Run(teacher, digest, spec, training, chances, plan, params, precision, work, tracker)
    run.restore()
    try:
        while run.phase < len(plan.phases):
            run.at_rest = True
            run.step()
            if run.within == plan.phase_steps:
                run.graduate()
                beat()
            elif run.within % params.checkpoint_every_steps == 0:
                run.keep()
                beat()
            tracker.progress(TASK, run.done, plan.steps, "steps")
    except Exception:
        raise
    except BaseException:  # Ctrl-C, a cancelled flow
        if run.at_rest:
            with suppress(OSError):
                run.keep()
        raise
    shutil.rmtree(work, ignore_errors=True)
    return run.teacher


class _Run:
    """The state of one distillation: who teaches, who learns, the optimiser, the average."""

    def __init__(
        self,
        teacher: UNet2DModel,
        digest: str,
        spec: GeneratorSpec,
        training: Rows,
        chances: torch.Tensor,
        plan: Plan,
        params: GeneratorParams,
        precision: Precision,
        work: Path,
        tracker: Tracker,
    ) -> None:
        self.digest, self.process, self.null_class = digest, spec.process, len(spec.classes)
        self.training, self.chances, self.plan = training, chances, plan
        self.precision, self.work, self.tracker = precision, work, tracker
        self.device = training.images.device
        warmup = min(params.warmup_steps, int(plan.phase_steps * _WARMUP_SHARE))
        rate = params.learning_rate * _RATE_SHARE
        self.params = params.model_copy(update={"learning_rate": rate, "warmup_steps": warmup})
        self.phase = self.within = 0
        self.at_rest = False  # is all the state of `done` steps?
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.counted = 0
        # Never in training mode: a student that drops out would chase noise of its own.
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._begin_phase()

    @property
    def done(self) -> int:
        """Return the optimiser steps so far."""
        return self.phase * self.plan.phase_steps + self.within

    def _begin_phase(self) -> None:
        """Have a student start as a copy of its teacher."""
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        self.weights = dict(self.student.named_parameters())
        self.averages = PowerAverages(self.weights)
        self.optimiser = torch.optim.AdamW(
            list(self.weights.values()),
            lr=self.params.learning_rate,
            weight_decay=self.params.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        # Moments exist from the start, so that a checkpoint has the same tensors at any step.
        for weight in self.weights.values():
            self.optimiser.state[weight] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self.teaching = Network(self.teacher, self.device, self.precision)
        self.learning = Network(self.student, self.device, self.precision)  # without gradients

    def step(self) -> None:
        """Do one optimiser step."""
        params, lesson = self.params, self.plan.phases[self.phase]
        generator = torch_generator(params.seed, "distill", self.phase, self.within)
        count = params.batch_images
        chosen = torch.multinomial(self.chances, count, replacement=True, generator=generator)
        rungs = torch.randint(len(lesson.ladder) // lesson.stride, (count,), generator=generator)
        rungs = rungs * lesson.stride
        noise = torch.randn((count, *self.training.images.shape[1:]), generator=generator)
        rate = learning_rate(self.within, self.plan.phase_steps, params)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        size = min(params.micro_batch_images or count, count)
        losses = torch.zeros((), device=self.device)
        for start in range(0, count, size):
            part = slice(start, start + size)
            rows = chosen[part].to(self.device)
            images, labels = self.training.images[rows], self.training.labels[rows]
            x = noisy_at(lesson.ladder, images, noise[part].to(self.device), rungs[part])
            loss = self._loss(lesson, x, labels, rungs[part]) * (len(rows) / count)
            torch.autograd.backward(loss)
            losses += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), params.gradient_clip_norm)
        self.at_rest = False
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.within += 1
        self.averages.update(self.within)
        # A gradient that is not finite spoils the weights one step before the loss shows it.
        self.total += losses + 0 * norm
        self.counted += 1
        if self.counted >= max(1, self.plan.phase_steps // _CURVE_ROWS):
            self._tell()

    def _loss(
        self, lesson: Phase, x: torch.Tensor, labels: torch.Tensor, rungs: torch.Tensor
    ) -> torch.Tensor:
        ladder = lesson.ladder
        see = _teacher_sees(
            self.teaching, self.process, ladder, labels, self.null_class, lesson.guidance
        )
        clean = self._student_sees(ladder, labels)(x, rungs)
        if self.plan.method == "progressive":
            target = progressive_target(ladder, see, x, rungs)
            return progressive_loss(ladder, clean, target, rungs)
        now = _teacher_sees(self.learning, self.process, ladder, labels, self.null_class, 1.0)
        target = consistency_target(ladder, see, now, x, rungs)
        return consistency_loss(clean, target)

    def _student_sees(self, ladder: Ladder, labels: torch.Tensor) -> See:
        """Return what the student sees, not clipped, so that it can learn from any error."""

        def see(x: torch.Tensor, rungs: torch.Tensor) -> torch.Tensor:
            levels = self.process.at(torch.tensor(ladder.times)[rungs]).to(self.device)
            seen = self.process.network_input(x, levels)
            with autocast(self.device, self.precision):
                (predicted,) = self.student(
                    seen, levels.time, class_labels=labels, return_dict=False
                )
            return self.process.clean(x, predicted.float(), levels)

        return see

    def _tell(self) -> float:
        """Return the summed loss since the last row of the curve, and tell the tracker its mean.

        Raises:
            StageError: it is not finite.
        """
        value = self.total.item()
        if not math.isfinite(value):
            kept = load_state(self.work)
            good = int(kept.numbers["done"]) if kept else 0
            raise StageError(
                f"{TASK}: the loss is not finite at step {self.done:,}; lower train.learning_rate "
                f"or set train.precision = float32; the checkpoint of step {good:,} is kept in "
                f"{self.work}"
            )
        self.tracker.metrics({"distill/loss": value / self.counted}, self.done)
        self.total.zero_()
        self.counted = 0
        return value

    @torch.no_grad()
    def graduate(self) -> None:
        """End the phase: the averaged student is the teacher of the next one."""
        if self.counted:
            self._tell()
        self._teach_with(self.averages.weights(-1))
        self.phase, self.within = self.phase + 1, 0
        if self.phase < len(self.plan.phases):
            self._begin_phase()
            self.keep()

    def _teach_with(self, weights: Weights) -> None:
        targets = dict(self.teacher.named_parameters())
        for name, weight in weights.items():
            targets[name].copy_(weight)

    def keep(self) -> None:
        """Write a checkpoint."""
        if self.counted:
            self._tell()
        tensors = {f"teacher.{k}": w for k, w in self.teacher.named_parameters()}
        for name, weight in self.weights.items():
            tensors[f"model.{name}"] = weight
            for key, value in self.optimiser.state[weight].items():
                tensors[f"{key}.{name}"] = value
        tensors |= {f"average.{k}": w for k, w in self.averages.tensors().items()}
        numbers = {
            "phase": self.phase,
            "within": self.within,
            "done": self.done,
            "generator": self.digest,
        }
        save_state(self.work, TrainingState(tensors, numbers))

    @torch.no_grad()
    def restore(self) -> None:
        """Take over the last checkpoint, if there is one of this teacher."""
        state = load_state(self.work)
        if state is None or state.numbers["generator"] != self.digest:
            return
        self.phase, self.within = int(state.numbers["phase"]), int(state.numbers["within"])
        self._teach_with(_with_prefix(state.tensors, "teacher."))
        self._begin_phase()
        for name, weight in self.weights.items():
            weight.copy_(state.tensors[f"model.{name}"])
            for key, value in self.optimiser.state[weight].items():
                value.copy_(state.tensors[f"{key}.{name}"])
        self.averages.load(_with_prefix(state.tensors, "average."))
        self.tracker.note(f"{TASK}: goes on from step {self.done:,}")


def _teacher_sees(
    network: Network,
    process: NoiseProcess,
    ladder: Ladder,
    labels: torch.Tensor,
    null_class: int,
    guidance: float,
) -> See:
    """Return what a network sees without gradient, guided and clipped as a sampler does it."""

    def see(x: torch.Tensor, rungs: torch.Tensor) -> torch.Tensor:
        levels = process.at(torch.tensor(ladder.times)[rungs]).to(x.device)
        seen = process.network_input(x, levels)
        if guidance == 1.0:
            predicted = network(seen, levels.time, labels)
        else:
            null = torch.full_like(labels, null_class)
            predicted = classifier_free(network, seen, levels.time, labels, null, guidance)
        return process.clean(x, predicted, levels).clamp(-1.0, 1.0)

    return see


def _with_prefix(tensors: Weights, prefix: str) -> Weights:
    return {k.removeprefix(prefix): w for k, w in tensors.items() if k.startswith(prefix)}
