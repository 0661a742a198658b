"""The training loop. Every random number of a step is addressed by (seed, step).

A run that resumes at step s therefore draws what an unbroken run draws there, and, on the same
machine, reaches the very same weights.
"""

import csv
import io
import math
import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.diffusion.checkpoints import TrainingState, load_state, save_state
from pipeline.diffusion.ema import ExponentialAverage
from pipeline.diffusion.noise import TIMESTEPS
from pipeline.diffusion.objective import Objective
from pipeline.errors import StageError
from pipeline.folders import write_bytes
from pipeline.params import TrainParams
from pipeline.seeds import torch_generator
from pipeline.tracking.tracker import Tracker

_CURVE_ROWS = 200  # rows of the curve of a whole run
_HELDOUT_ROWS = 256  # rows at most that the held-out loss is measured on
_HELDOUT_LEVELS = 4  # noise levels a row


@dataclass(frozen=True)
class Rows:
    """Images (N, C, H, W) in [-1, 1] and labels (N,), on the training device."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """The averaged network, and the last point of its curves."""

    model: UNet2DModel
    final_loss: float
    validation_loss: float


def train_generator(
    model: UNet2DModel,
    objective: Objective,
    training: Rows,
    heldout: Rows,
    params: TrainParams,
    steps: int,
    work: Path,
    tracker: Tracker,
    draw_sheet: Callable[[UNet2DModel, int], None],
) -> Outcome:
    """Train `model`, resuming from what an interrupted run left in `work`.

    Writes curve.csv and heldout.csv into `work`, and calls `draw_sheet(average, step)` every
    `sheet_every_steps` and at the end.

    Raises:
        StageError: the loss is no longer finite; the last checkpoint stays in `work`.
    """
    average = ExponentialAverage(model, params.ema_decay)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    curves = _Curves()
    step = _restore(model, average, optimiser, curves, work, tracker)
    if step == 0:
        _initialise(optimiser)
    chances = class_chances(training.labels.cpu(), params.class_balance_power)
    curve_every = max(1, steps // _CURVE_ROWS)
    total = torch.zeros((), dtype=torch.float64, device=training.images.device) + curves.pending
    model.train()
    began, began_step = clock.monotonic(), step
    while step < steps:
        generator = torch_generator(params.seed, "train", step)
        chosen = torch.multinomial(
            chances, params.batch_images, replacement=True, generator=generator
        ).to(training.images.device)
        rate = learning_rate(step, steps, params)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = objective(model, training.images[chosen], training.labels[chosen], generator)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), params.gradient_clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(step)
        total += loss.detach()
        step += 1
        last = step == steps
        if step % curve_every == 0 or last:
            mean = _finite(total, step, params) / (step - curves.last_step)
            total.zero_()
            speed = (step - began_step) * params.batch_images / (clock.monotonic() - began)
            curves.add(step, mean, float(norm), rate, speed, tracker)
        if step % params.sheet_every_steps == 0 or last:
            curves.add_heldout(
                step,
                heldout_loss(average.model, objective, training, params.seed),
                heldout_loss(average.model, objective, heldout, params.seed),
                tracker,
            )
            draw_sheet(average.model, step)
        if step % params.checkpoint_every_steps == 0 and not last:
            curves.pending = _finite(total, step, params)
            _keep(model, average, optimiser, curves, step, work)
        tracker.progress("train", step, steps, "steps")
    curves.write(work)
    return Outcome(average.model, curves.rows[-1][1], curves.heldout[-1][2])


def class_chances(labels: torch.Tensor, power: float) -> torch.Tensor:
    """Return each row's chance of being drawn, (N,) float64, summing to 1.

    A class of n rows is drawn in proportion to n ** power: 1 leaves the data as they are, 0 draws
    all classes alike, 0.5 is square-root balancing (Mikolov et al. 2013; Mahajan et al. 2018).
    """
    counts = torch.bincount(labels).double()
    chances = counts[labels] ** (power - 1)
    return chances / chances.sum()


def learning_rate(step: int, steps: int, params: TrainParams) -> float:
    """Return the rate at a step: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    left = max(1, steps - params.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - params.warmup_steps) / left))
    return params.learning_rate * (0.1 + 0.9 * cosine)


def _finite(total: torch.Tensor, step: int, params: TrainParams) -> float:
    value = total.item()
    if not math.isfinite(value):
        raise StageError(
            f"train: the loss is not finite at step {step:,}; lower train.learning_rate "
            f"(now {params.learning_rate:g}) or set train.precision = float32"
        )
    return value


@torch.no_grad()
def heldout_loss(model: UNet2DModel, objective: Objective, rows: Rows, seed: int) -> float:
    """Return the mean loss of some rows at fixed times and noise, the same at every call."""
    if not len(rows.labels):
        return math.nan
    generator = torch_generator(seed, "heldout")
    count = min(len(rows.labels), _HELDOUT_ROWS)
    chosen = torch.randperm(len(rows.labels), generator=generator)[:count]
    chosen = chosen.repeat(_HELDOUT_LEVELS)
    # Evenly spread levels: a stratified mean over t has less noise than drawn ones.
    time = (torch.arange(len(chosen)) + 0.5) * TIMESTEPS / len(chosen)
    noise = torch.randn((len(chosen), *rows.images.shape[1:]), generator=generator)
    device = rows.images.device
    losses = [
        objective.error(
            model,
            rows.images[rows_part],
            rows.labels[rows_part],
            time_part.long().to(device),
            noise_part.to(device),
        )
        * len(rows_part)
        for rows_part, time_part, noise_part in zip(
            *(torch.split(part, 128) for part in (chosen.to(device), time, noise)), strict=True
        )
    ]
    return float(torch.stack(losses).sum()) / len(chosen)


class _Curves:
    """The numbers of a run so far; part of its checkpoint, so that a resumed curve is whole."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float]] = []
        self.heldout: list[tuple[int, float, float]] = []
        self.pending = 0.0  # sum of the losses since the last row

    @property
    def last_step(self) -> int:
        return self.rows[-1][0] if self.rows else 0

    def add(
        self, step: int, loss: float, norm: float, rate: float, speed: float, tracker: Tracker
    ) -> None:
        self.rows.append((step, loss, norm, rate))
        self.pending = 0.0
        tracker.metrics(
            {
                "train/loss": loss,
                "train/gradient_norm": norm,
                "train/learning_rate": rate,
                "train/images_per_second": speed,
            },
            step,
        )

    def add_heldout(self, step: int, training: float, heldout: float, tracker: Tracker) -> None:
        self.heldout.append((step, training, heldout))
        tracker.metrics(
            {"train/heldout_train_loss": training, "train/validation_loss": heldout}, step
        )

    def write(self, work: Path) -> None:
        _write_csv(
            work / "curve.csv", ("step", "loss", "gradient_norm", "learning_rate"), self.rows
        )
        _write_csv(work / "heldout.csv", ("step", "train_loss", "validation_loss"), self.heldout)


def _write_csv(path: Path, names: tuple[str, ...], rows: list[Any]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([f"{value:.6g}" for value in row] for row in rows)
    write_bytes(path, buffer.getvalue().encode())


def _initialise(optimiser: torch.optim.Optimizer) -> None:
    # Moments exist from the start, so that a checkpoint has the same tensors at any step.
    for group in optimiser.param_groups:
        for weight in group["params"]:
            optimiser.state[weight] = {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }


def _keep(
    model: UNet2DModel,
    average: ExponentialAverage,
    optimiser: torch.optim.Optimizer,
    curves: _Curves,
    step: int,
    work: Path,
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        tensors[f"model.{name}"] = weight
        for key, value in optimiser.state[weight].items():
            tensors[f"{key}.{name}"] = value
    for name, weight in average.model.named_parameters():
        tensors[f"average.{name}"] = weight
    numbers = {
        "step": step,
        "rows": curves.rows,
        "heldout": curves.heldout,
        "pending": curves.pending,
    }
    save_state(work, TrainingState(tensors, numbers))


@torch.no_grad()
def _restore(
    model: UNet2DModel,
    average: ExponentialAverage,
    optimiser: torch.optim.Optimizer,
    curves: _Curves,
    work: Path,
    tracker: Tracker,
) -> int:
    state = load_state(work)
    if state is None:
        return 0
    for name, weight in model.named_parameters():
        weight.copy_(state.tensors[f"model.{name}"])
        optimiser.state[weight] = {
            key: state.tensors[f"{key}.{name}"].to(weight.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    for name, weight in average.model.named_parameters():
        weight.copy_(state.tensors[f"average.{name}"])
    curves.rows = [tuple(row) for row in state.numbers["rows"]]
    curves.heldout = [tuple(row) for row in state.numbers["heldout"]]
    curves.pending = state.numbers["pending"]
    step = int(state.numbers["step"])
    tracker.note(f"train: goes on from step {step:,}")
    return step
