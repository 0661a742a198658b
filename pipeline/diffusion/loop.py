"""The training loop. Every random number of a step is addressed by (seed, step).

A run that resumes at step s therefore draws what an unbroken run draws there, and, on the same
machine, reaches the very same weights.
"""

import copy
import math
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from pipeline.diffusion.augmentation import feed_augmentation
from pipeline.diffusion.checkpoints import (
    TrainingState,
    load_snapshot,
    load_state,
    save_snapshot,
    save_state,
)
from pipeline.diffusion.compiling import compile_network
from pipeline.diffusion.curves import Curves
from pipeline.diffusion.ema import (
    LENGTHS,
    MISFIT,
    PowerAverages,
    Weights,
    find_recipe,
    reachable_lengths,
    rebuild,
)
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.stopping import Check, choose, should_stop
from pipeline.errors import InputError, StageError
from pipeline.params import GeneratorParams
from pipeline.seeds import seeded_globals, torch_generator
from pipeline.team import Team
from pipeline.tracking.tracker import Tracker

_CURVE_ROWS = 200  # rows of the curve of a whole run
_LOSS_ROWS = 256  # rows at most that the losses of a check are measured on
_LOSS_LEVELS = 4  # noise levels a row
_LOSS_BATCH = 128


@dataclass(frozen=True)
class Rows:
    """Images (N, C, H, W) in [-1, 1] and labels (N,), on the training device."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Course:
    """How long to train, how often to look, and what to keep.

    Attributes:
        task: name in messages, progress and metrics, such as `train`.
        steps: most optimiser steps.
        checks: times that the averaged network is looked at, evenly spread, the end included.
        copy_limit: largest share of copies in a network that is kept.
        patience_checks: stop after so many checks without improvement; 0 never stops.
        ema_length: sigma_rel of the average that is kept; None tries several.
    """

    task: str
    steps: int
    checks: int
    copy_limit: float
    patience_checks: int
    ema_length: float | None

    def is_check(self, step: int) -> bool:
        """Say whether the network is looked at after `step` steps."""
        return step == self.steps or step * self.checks // self.steps > (
            (step - 1) * self.checks // self.steps
        )


@dataclass(frozen=True)
class Outcome:
    """The averaged network that was kept, and how it was found.

    Attributes:
        model: the network, without what told it of augmentations.
        kept: the check that it passed best.
        checks: those on the way.
        lengths: those of the lengths of averaging tried at the kept step.
        steps: steps that were made.
        final_loss: mean training loss of the last steps.
    """

    model: UNet2DModel
    kept: Check
    checks: tuple[Check, ...]
    lengths: tuple[Check, ...]
    steps: int
    final_loss: float


# Looks at a network: (share of copies, quality), NaN where unknown.
Examine = Callable[[UNet2DModel], tuple[float, float]]
DrawSheet = Callable[[UNet2DModel, int], None]


def train_generator(
    model: UNet2DModel,
    objective: Objective,
    training: Rows,
    heldout: Rows,
    chances: torch.Tensor,
    params: GeneratorParams,
    course: Course,
    work: Path,
    tracker: Tracker,
    examine: Examine,
    draw_sheet: DrawSheet,
    team: Team,
) -> Outcome:
    """Train `model`, resuming from what an interrupted run left in `work`.

    Writes curve.csv, checks.csv and lengths.csv into `work`, and calls `draw_sheet(network, step)`
    at every check. The leader of a team does all that; the others do their share of each batch.

    Args:
        model: network with the weights to start from; those that require a gradient are trained.
        objective: loss.
        training: rows to train on.
        heldout: rows to look at alone; may be empty.
        chances: (N,) chance of each training row to be drawn.
        params: batch, rate, precision and the like.
        course: steps, checks and stopping.
        work: folder of checkpoints and curves.
        tracker: told of progress.
        examine: measures copies and quality of a network.
        draw_sheet: keeps a sample sheet.
        team: the processes that train together.

    Raises:
        InputError: the batch has fewer images than the team has processes.
        StageError: the loss is no longer finite; the last checkpoint stays in `work`.
    """
    if params.batch_images < team.size:
        raise InputError(
            f"{course.task}: train.batch_images = {params.batch_images}, fewer than the "
            f"{team.size} processes that share a batch; start fewer, or raise it"
        )
    run = _Run(model, objective, training, params, course, work, tracker, team)
    step = run.restore()
    began, began_step = clock.monotonic(), step
    curve_every = max(1, course.steps // _CURVE_ROWS)
    with run.kept_if_asked_to_stop():
        while step < course.steps and not run.stopped:
            run.at_rest = step
            norm, rate = run.step(step, chances)
            step += 1
            last = step == course.steps
            if step % curve_every == 0 or last:
                speed = (step - began_step) * params.batch_images / (clock.monotonic() - began)
                run.curves.add(step, run.mean_loss(step), float(norm), rate, speed, tracker)
                run.total.zero_()
            if course.is_check(step):
                if team.leads:
                    run.check(step, heldout, examine, draw_sheet)
                checks = run.curves.checks
                run.stopped = team.agree(
                    should_stop(checks, course.copy_limit, course.patience_checks)
                )
            if (
                (step % params.checkpoint_every_steps == 0 or run.stopped)
                and team.leads
                and not last
            ):
                run.keep(step)
            tracker.progress(course.task, step, step if run.stopped else course.steps, "steps")
    if not team.leads:
        nothing = Check(step, LENGTHS[-1], math.nan, math.nan, math.nan, math.nan)
        return Outcome(run.shadow, nothing, (), (), step, math.nan)
    kept, lengths = run.find_best(heldout, examine)
    run.curves.lengths = lengths
    run.curves.write(work)
    return Outcome(
        run.shadow, kept, tuple(run.curves.checks), tuple(lengths), step, run.curves.last_loss
    )


class _Run:
    """The state of one training: network, optimiser, averages, curves."""

    def __init__(
        self,
        model: UNet2DModel,
        objective: Objective,
        training: Rows,
        params: GeneratorParams,
        course: Course,
        work: Path,
        tracker: Tracker,
        team: Team,
    ) -> None:
        self.objective, self.training, self.params = objective, training, params
        self.course, self.work, self.tracker, self.team = course, work, tracker, team
        # The network that samples are drawn with; it takes the averaged weights at each check.
        self.shadow = copy.deepcopy(model).eval().requires_grad_(False)
        if objective.augmentation is not None:
            feed_augmentation(model)
        self.model = model.train()
        self.device = training.images.device
        if self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        self.weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
        known = dict(self.shadow.named_parameters())
        self.averages = PowerAverages({n: w for n, w in self.weights.items() if n in known})
        self.optimiser = torch.optim.AdamW(
            list(self.weights.values()),
            lr=params.learning_rate,
            weight_decay=params.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.network = compile_network(model, params.compile, course.steps, self.device)
        self.dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.curves = Curves(course.task)
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.stopped = False
        self.at_rest: int | None = None  # steps that all is the state of; None within a change

    def step(self, step: int, chances: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Do one optimiser step; return the gradient's norm and the rate."""
        params, device, team = self.params, self.device, self.team
        generator = torch_generator(params.seed, "train", step)
        chosen = torch.multinomial(
            chances, params.batch_images, replacement=True, generator=generator
        ).to(device)
        rate = learning_rate(step, self.course.steps, params)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # The whole batch is drawn by every process, so that the team's size changes no draw.
        batch = self.objective.draw(
            self.training.images[chosen], self.training.labels[chosen], generator
        )
        own = team.share_of(len(batch))
        size = min(params.micro_batch_images or len(own), len(own))
        losses = torch.zeros((), device=device)
        names = ("dropout", step, team.rank)
        with seeded_globals(params.seed, device, *names) if self.dropout else nullcontext():
            for start in range(own.start, own.stop, size):
                part = batch.part(start, min(start + size, own.stop))
                # The mean of the team is that of the batch, whatever the sizes of the shares.
                loss = self.objective(self.network, part) * (len(part) * team.size / len(batch))
                torch.autograd.backward(loss)
                losses += loss.detach()
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        team.average([*gradients, losses])
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), params.gradient_clip_norm)
        self.at_rest = None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.averages.update(step + 1)
        # A gradient that is not finite spoils the weights one step before the loss shows it.
        self.total += losses + 0 * norm
        return norm, rate

    def mean_loss(self, step: int) -> float:
        """Return the mean loss since the last row of the curve; refuse one that is not finite."""
        return self._finite(step) / (step - self.curves.last_step)

    def _finite(self, step: int) -> float:
        value = self.total.item()
        if not math.isfinite(value):
            kept = load_state(self.work) if self.team.leads else None
            good = int(kept.numbers["step"]) if kept else 0
            raise StageError(
                f"{self.course.task}: the loss is not finite at step {step:,}; lower "
                f"train.learning_rate (now {self.params.learning_rate:g}) or set "
                f"train.precision = float32; "
                f"the checkpoint of step {good:,} is kept in {self.work}"
            )
        return value

    def check(self, step: int, heldout: Rows, examine: Examine, draw_sheet: DrawSheet) -> None:
        """Look at the longer of the two averages, and keep a snapshot of both."""
        self._finite(step)
        save_snapshot(self.work, step, self.averages.tensors())
        self._wear(self.averages.weights(len(LENGTHS) - 1))
        found = self._look(step, LENGTHS[-1], heldout, examine)
        self.curves.add_check(found, self.tracker)
        draw_sheet(self.shadow, step)

    def find_best(self, heldout: Rows, examine: Examine) -> tuple[Check, list[Check]]:
        """Choose the step, then the length of averaging there, and put it into the shadow."""
        kept = choose(self.curves.checks, self.course.copy_limit)
        steps = [check.step for check in self.curves.checks if check.step <= kept.step]
        snapshots = [load_snapshot(self.work, step) for step in steps]

        def wear(length: float) -> None:
            recipe = find_recipe(steps, length)
            if recipe.misfit > MISFIT:
                self.tracker.note(
                    f"{self.course.task}: an average of length {length:g} is only roughly rebuilt "
                    f"from {len(steps)} snapshots; raise train.checks, or set train.ema_length "
                    "between 0.05 and 0.1"
                )
            self._wear(rebuild(snapshots, recipe))

        if self.course.ema_length is not None:
            wear(self.course.ema_length)
            return self._look(kept.step, self.course.ema_length, heldout, examine), []
        others: list[Check] = []
        tried = reachable_lengths(steps)
        for i, length in enumerate(tried):
            if length == kept.ema_length:
                others.append(kept)
            else:
                wear(length)
                others.append(self._look(kept.step, length, heldout, examine))
            self.tracker.progress("average", i + 1, len(tried), "lengths")
        best = choose(others, self.course.copy_limit)
        wear(best.ema_length)
        return best, others

    def _look(self, step: int, length: float, heldout: Rows, examine: Examine) -> Check:
        seed = self.params.seed
        training_loss = fixed_loss(self.shadow, self.objective, self.training, seed)
        heldout_loss = fixed_loss(self.shadow, self.objective, heldout, seed)
        copies, quality = examine(self.shadow)
        return Check(step, length, training_loss, heldout_loss, copies, quality)

    @torch.no_grad()
    def _wear(self, weights: Weights) -> None:
        targets = dict(self.shadow.named_parameters())
        for name, weight in weights.items():
            targets[name].copy_(weight)

    @contextmanager
    def kept_if_asked_to_stop(self) -> Iterator[None]:
        """Write a checkpoint where Ctrl-C or a cancelled flow ends the body, if all is at rest.

        Between the change of the weights and the end of the looks at them it is not; the last
        checkpoint counts then.
        """
        try:
            yield
        except Exception:
            raise
        except BaseException:
            if self.at_rest is not None and self.team.leads:
                with suppress(StageError, OSError):
                    self.keep(self.at_rest)
            raise

    def keep(self, step: int) -> None:
        """Write a checkpoint of this step."""
        pending = self._finite(step)
        tensors: dict[str, torch.Tensor] = {}
        for name, weight in self.weights.items():
            tensors[f"model.{name}"] = weight
            for key, value in self.optimiser.state[weight].items():
                tensors[f"{key}.{name}"] = value
        for name, weight in self.averages.tensors().items():
            tensors[f"average.{name}"] = weight
        numbers = {**self.curves.numbers(), "step": step, "pending": pending}
        save_state(self.work, TrainingState(tensors, {**numbers, "stopped": self.stopped}))

    @torch.no_grad()
    def restore(self) -> int:
        """Take over the last checkpoint, if there is one; return the steps made so far."""
        # Moments exist from the start, so that a checkpoint has the same tensors at any step.
        for weight in self.weights.values():
            self.optimiser.state[weight] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        state = load_state(self.work) if self.team.leads else None
        step = 0
        if state is not None:
            for name, weight in self.weights.items():
                weight.copy_(state.tensors[f"model.{name}"])
                for key, value in self.optimiser.state[weight].items():
                    value.copy_(state.tensors[f"{key}.{name}"])
            averages = {n: t for n, t in state.tensors.items() if n.startswith("average.")}
            self.averages.load({n.removeprefix("average."): t for n, t in averages.items()})
            self.curves.load(state.numbers)
            self.total += state.numbers["pending"]
            self.stopped = bool(state.numbers["stopped"])
            step = int(state.numbers["step"])
            self.tracker.note(f"{self.course.task}: goes on from step {step:,}")
        step = int(self.team.agree(step))
        self.stopped = bool(self.team.agree(self.stopped))
        # Followers read no file: they take everything from the leader.
        moments = [
            value
            for weight in self.weights.values()
            for value in self.optimiser.state[weight].values()
        ]
        self.team.follow([*self.weights.values(), *moments, *self.averages.tensors().values()])
        self.team.follow([self.total])
        self.curves.load(self.team.agree(self.curves.numbers()))
        return step


def class_chances(labels: torch.Tensor, power: float) -> torch.Tensor:
    """Return each row's chance of being drawn, (N,) float64, summing to 1.

    A class of n rows is drawn in proportion to n ** power: 1 leaves the data as they are, 0 draws
    all classes alike, 0.5 is square-root balancing (Mikolov et al. 2013; Mahajan et al. 2018).
    """
    counts = torch.bincount(labels).double()
    chances = counts[labels] ** (power - 1)
    return chances / chances.sum()


def learning_rate(step: int, steps: int, params: GeneratorParams) -> float:
    """Return the rate at a step: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    left = max(1, steps - params.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - params.warmup_steps) / left))
    return params.learning_rate * (0.1 + 0.9 * cosine)


@torch.no_grad()
def fixed_loss(model: UNet2DModel, objective: Objective, rows: Rows, seed: int) -> float:
    """Return the mean loss of some rows at fixed levels and noise, the same at every call."""
    if not len(rows.labels):
        return math.nan
    generator = torch_generator(seed, "heldout")
    count = min(len(rows.labels), _LOSS_ROWS)
    chosen = torch.randperm(len(rows.labels), generator=generator)[:count].repeat(_LOSS_LEVELS)
    noise = torch.randn((len(chosen), *rows.images.shape[1:]), generator=generator)
    levels = objective.process.spread(len(chosen))
    device = rows.images.device
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(chosen), _LOSS_BATCH):
        part = slice(start, start + _LOSS_BATCH)
        own = chosen[part].to(device)
        loss = objective.error(
            model,
            rows.images[own],
            rows.labels[own],
            noise[part].to(device),
            levels.part(part).to(device),
        )
        total += loss.double().cpu() * len(own)
    return float(total) / len(chosen)
