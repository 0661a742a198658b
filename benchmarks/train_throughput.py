"""Speed of training beside the machine's peak, a bare network, and two libraries' loops.

`python benchmarks/train_throughput.py --quick --json FILE` measures in one process, in rounds that
take turns, and reports medians: the matrix-product peak; a bare forward and backward of our
network; our loop; the loop of diffusers' `train_unconditional.py`; the loop of
denoising-diffusion-pytorch's `Trainer`. The libraries' networks are sized to the FLOPs of ours and
compared at equal FLOPs. They run as their users run them: float32, denormal numbers kept, images
fed by a `DataLoader`, though from memory and without worker processes. Nobody's sample sheets,
held-out losses or checkpoints are timed.
"""

import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import psutil
import torch
import typer
from diffusers.models.unets.unet_2d import UNet2DModel
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from pipeline.device import (
    Precision,
    autocast,
    pick_device,
    pick_precision,
    torch_threads,
    usable_cores,
)
from pipeline.diffusion.fitting import make_objective, pick_dropout, pick_preset
from pipeline.diffusion.loop import Course, Rows, class_chances, train_generator
from pipeline.diffusion.unet import build_unet, level_sizes
from pipeline.machine import has_bfloat16_instructions
from pipeline.params import TrainParams
from pipeline.team import Team
from pipeline.tracking.tracker import NullTracker

PEERS = ("accelerate", "denoising_diffusion_pytorch", "ema_pytorch")
CLASSES = 10
LONG_STEPS = 10_000  # length of the run whose first steps are timed; sets the schedules alone
BARE, OURS = "bare network", "ours"
DIFFUSERS, DENOISING = "diffusers fp32", "denoising-diffusion-pytorch"

_CALM = 0.1  # cores that other processes may keep busy beside a timing

T = TypeVar("T")
Run = Callable[[int], float]  # the seconds of so many steps, after one that is not counted


@dataclass(frozen=True)
class Setting:
    """What all contenders share; images (N, 1, H, W) lie in [-1, 1]."""

    image_size_px: int
    batch_images: int
    device: torch.device
    precision: Precision
    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Contender:
    """A loop that can be timed; `flops` are those of one image, forward and backward."""

    name: str
    network: str
    precision: Precision
    flops: int
    run: Run


@dataclass(frozen=True)
class Measured:
    """What was timed.

    Attributes:
        rates: images a second of each contender, round by round.
        peaks: FLOPs a second of the fastest matrix product, by precision.
        busy_elsewhere: cores that other processes kept busy in the worst timing that counts.
    """

    rates: dict[str, list[float]]
    peaks: dict[Precision, float]
    busy_elsewhere: float


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    image_size_px: Annotated[int, typer.Option(min=8, max=128, help="Side of the images.")] = 28,
    batch_images: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure the speed of training; needs the `bench` extra."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        typer.echo(
            f"train_throughput: {', '.join(missing)} is not installed; "
            "run pip install -c constraints.txt '.[bench]'",
            err=True,
        )
        raise typer.Exit(2)
    if image_size_px % 4 or device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("--image-size-px is a multiple of 4, --device auto, cpu or cuda")
    began = time.monotonic()
    # The main thread computes nothing in parallel: see `_alone`.
    torch.set_num_threads(1)
    setting = make_setting(image_size_px, batch_images, device)  # type: ignore[arg-type]
    contenders = make_contenders(setting)
    rounds, steps, limit_seconds = (3, 2, 60.0) if quick else (7, 6, 1200.0)
    measured = measure(setting, contenders, rounds, steps, limit_seconds)
    figures = summarise(contenders, measured, has_bfloat16_instructions(setting.device))
    figures["details"].update(describe(setting), seconds=round(time.monotonic() - began, 1))
    Console().print(table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def make_setting(
    image_size_px: int, batch_images: int, device: Literal["auto", "cpu", "cuda"]
) -> Setting:
    """Return the setting, with scikit-learn's digits enlarged to the wanted side."""
    place = pick_device(device)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    images = functional.interpolate(images, (image_size_px,) * 2, mode="bilinear")

    def pick() -> Precision:
        with torch_threads(usable_cores()):  # the choice may be timed, and kept
            return pick_precision("auto", place)

    return Setting(
        image_size_px,
        batch_images,
        place,
        _alone(pick),
        images.to(place),
        torch.from_numpy(labels).to(place),
    )


def make_contenders(setting: Setting) -> list[Contender]:
    """Return the four loops, the libraries' networks sized to the FLOPs of ours."""
    side, levels = setting.image_size_px, len(level_sizes(setting.image_size_px))
    network = _network(setting, torch.device("meta"))
    wanted = count_flops(network, side, labelled=True)
    name = f"UNet2DModel {tuple(network.config.block_out_channels)}"
    widths, flops = match_diffusers(side, levels, wanted)
    dim, denoising_flops = match_denoising(side, levels, wanted)
    precision = setting.precision
    return [
        Contender(BARE, name, precision, wanted, bare(setting)),
        Contender(OURS, name, precision, wanted, ours(setting)),
        Contender(
            DIFFUSERS,
            f"UNet2DModel {widths}, 2 layers a block",
            "float32",
            flops,
            diffusers_example(setting, diffusers_network(side, widths)),
        ),
        Contender(
            DENOISING,
            f"Unet dim {dim}, mults {denoising_mults(levels)}",
            "float32",
            denoising_flops,
            denoising_trainer(setting, denoising_network(dim, levels)),
        ),
    ]


# ---- FLOPs ----


def count_flops(network: nn.Module, image_size_px: int, *, labelled: bool) -> int:
    """Return the FLOPs of one image, forward and backward; a multiply-add is two.

    Counts convolutions and matrix products, attention's too, hence the backend that spells them
    out. Works on the meta device, where nothing is computed.
    """
    device = next(network.parameters()).device
    image = torch.zeros(1, 1, image_size_px, image_size_px, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    labels = {"class_labels": zero} if labelled else {}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = network(image, zero, **labels)
        prediction = output if isinstance(output, torch.Tensor) else output.sample
        torch.autograd.backward(prediction.sum())
    return int(counter.get_total_flops())


def closest(candidates: Sequence[T], flops: Callable[[T], int], wanted: int) -> tuple[T, int]:
    """Return the candidate whose FLOPs are nearest in ratio, and those FLOPs.

    Candidates stand in ascending order of FLOPs; about log2 of them are counted.
    """
    counted: dict[int, int] = {}

    def count(index: int) -> int:
        if index not in counted:
            counted[index] = flops(candidates[index])
        return counted[index]

    above = bisect_left(range(len(candidates) - 1), wanted, key=count)
    best = min({max(above - 1, 0), above}, key=lambda i: abs(math.log(count(i) / wanted)))
    return candidates[best], count(best)


def match_diffusers(side: int, levels: int, wanted: int) -> tuple[tuple[int, ...], int]:
    """Return the widths of the example's network, and its FLOPs an image.

    The example doubles its width at every second level. Where no multiple of 8 brings that shape
    within 2 % of the wanted FLOPs, the coarsest level is widened.
    """

    def flops(widths: tuple[int, ...]) -> int:
        with torch.device("meta"):
            return count_flops(diffusers_network(side, widths), side, labelled=False)

    shapes = [tuple(a * 2 ** (i // 2) for i in range(levels)) for a in range(8, 513, 8)]
    widths, count = closest(shapes, flops, wanted)
    if abs(count / wanted - 1) <= 0.02:
        return widths, count
    if count > wanted:
        widths = shapes[max(shapes.index(widths) - 1, 0)]
    wider = [(*widths[:-1], c) for c in range(widths[-1], 4 * widths[-1] + 1, 8)]
    return closest(wider, flops, wanted)


def match_denoising(side: int, levels: int, wanted: int) -> tuple[int, int]:
    """Return the `dim` of denoising-diffusion-pytorch's network, and its FLOPs an image.

    A multiple of 8, as a user would choose, or of less where that misses by more than 5 %.
    """

    def flops(dim: int) -> int:
        with torch.device("meta"):
            return count_flops(denoising_network(dim, levels), side, labelled=False)

    for multiple in (8, 4, 2):
        dim, count = closest(range(8, 257, multiple), flops, wanted)
        if abs(count / wanted - 1) <= 0.05:
            break
    return dim, count


# ---- the contenders ----


def bare(setting: Setting) -> Run:
    """Return forward and backward of our network on one fixed batch, and nothing else."""
    network = _network(setting, setting.device)
    images = setting.images[: setting.batch_images]
    labels = setting.labels[: setting.batch_images]
    times = torch.arange(len(images), device=setting.device) * 1000 // len(images)

    def step() -> None:
        with autocast(setting.device, setting.precision):
            output = network(images, times, class_labels=labels).sample
        torch.autograd.backward(output.float().square().mean())
        network.zero_grad(set_to_none=True)

    return _clocked(setting, step)


def ours(setting: Setting) -> Run:
    """Return our training loop: with `_network`, the one place that knows its interface."""
    network, params = _network(setting, setting.device), _params(setting)
    objective = make_objective(params, setting.precision, CLASSES, params.label_dropout)
    rows = Rows(setting.images, setting.labels)
    chances = class_chances(setting.labels.cpu(), params.class_balance_power)
    course = Course("train", LONG_STEPS, 1, params.copy_limit, 0, None)

    def run(steps: int) -> float:
        clock = _StepClock(setting.device, 1, 1 + steps)
        with (
            tempfile.TemporaryDirectory() as folder,
            torch_threads(usable_cores()),
            suppress(_EnoughError),
        ):
            train_generator(
                network,
                objective,
                rows,
                rows,
                chances,
                params,
                course,
                Path(folder),
                clock,
                lambda average: (math.nan, math.nan),
                lambda average, step: None,
                Team(),
            )
        return clock.seconds

    return run


def diffusers_network(side: int, widths: Sequence[int]) -> UNet2DModel:
    """Return the network of the example: attention at the second-coarsest level alone."""
    attention = [i == len(widths) - 2 for i in range(len(widths))]
    return UNet2DModel(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        norm_num_groups=math.gcd(32, *widths),  # the example's 32, where the widths allow it
    )


def diffusers_example(setting: Setting, network: UNet2DModel) -> Run:
    """Return the loop of examples/unconditional_image_generation/train_unconditional.py.

    With its defaults, `--use_ema`, and no tracker; it draws images alone, without labels.
    """
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(cpu=setting.device.type == "cpu")
    levels = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    loader = DataLoader(
        _Images(setting.images.cpu()), batch_size=setting.batch_images, shuffle=True
    )
    schedule = get_scheduler(
        "cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=LONG_STEPS
    )
    average = EMAModel(
        network.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=3 / 4,
        model_cls=UNet2DModel,
        model_config=network.config,
    )
    model, optimiser, loader, schedule = accelerator.prepare(network, optimiser, loader, schedule)
    average.to(accelerator.device)
    batches = _endless(loader)
    model.train()

    def step() -> None:
        clean = next(batches)
        noise = torch.randn(clean.shape, device=clean.device)
        times = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
        noisy = levels.add_noise(clean, noise, times)
        with accelerator.accumulate(model):
            predicted = model(noisy, times).sample
            loss = functional.mse_loss(predicted.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        if accelerator.sync_gradients:
            average.step(model.parameters())
        accelerator.log({"loss": loss.detach().item(), "lr": schedule.get_last_lr()[0]})

    return _clocked(setting, step, peer=True)


def denoising_mults(levels: int) -> tuple[int, ...]:
    """Return the library's default multipliers (1, 2, 4, 8), as many as the side can be halved."""
    return (1, 2, 4, 8)[:levels]


def denoising_network(dim: int, levels: int) -> nn.Module:
    """Return denoising-diffusion-pytorch's network, class-unconditional."""
    from denoising_diffusion_pytorch import Unet

    network: nn.Module = Unet(dim, dim_mults=denoising_mults(levels), channels=1)
    return network


def denoising_trainer(setting: Setting, network: nn.Module) -> Run:
    """Return what `Trainer.train` of denoising-diffusion-pytorch 2.3 does a step, at its defaults.

    Not the class itself: it reads image files and starts a worker process a core.
    """
    from accelerate import Accelerator, DataLoaderConfiguration
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    accelerator = Accelerator(
        cpu=setting.device.type == "cpu",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        mixed_precision="no",
    )
    diffusion = GaussianDiffusion(network, image_size=setting.image_size_px)
    images = _Images((setting.images.cpu() + 1) / 2)  # the library wants [0, 1]
    loader = accelerator.prepare(
        DataLoader(
            images,
            batch_size=setting.batch_images,
            shuffle=True,
            pin_memory=setting.device.type == "cuda",
        )
    )
    optimiser = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    average.to(accelerator.device)
    model, optimiser = accelerator.prepare(diffusion, optimiser)
    batches = _endless(loader)

    def step() -> None:
        model.train()
        data = next(batches).to(accelerator.device)
        with accelerator.autocast():
            loss = model(data)
            loss.item()
        accelerator.backward(loss)
        accelerator.wait_for_everyone()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        accelerator.wait_for_everyone()
        average.update()

    return _clocked(setting, step, peer=True)


# ---- measuring ----


def measure(
    setting: Setting,
    contenders: Sequence[Contender],
    rounds: int,
    steps: int,
    limit_seconds: float,
) -> Measured:
    """Time the contenders and the matrix products, in rounds that take turns.

    The order turns from round to round, so that none always follows the same one. What was timed
    beside other work is timed again, as long as `limit_seconds` allow: with a core short, loops
    slow down tenfold and products twofold. No round begins that would end after the limit, were
    it as long as those before.
    """
    began = time.monotonic()
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    products: dict[tuple[Precision, int], list[float]] = {}
    shares: list[float] = []

    def calm(work: Callable[[], T]) -> T:
        while True:
            busy, start = _others_busy_seconds(), time.monotonic()
            result = _alone(work)
            share = (_others_busy_seconds() - busy) / (time.monotonic() - start)
            if share <= _CALM or time.monotonic() - began > limit_seconds:
                shares.append(max(share, 0.0))
                return result

    for turn in range(rounds):
        if turn and (time.monotonic() - began) * (turn + 1) / turn > limit_seconds:
            break
        for key, rate in calm(lambda: matrix_products(setting.device)).items():
            products.setdefault(key, []).append(rate)
        for i in range(len(contenders)):
            contender = contenders[(turn + i) % len(contenders)]
            seconds = calm(lambda run=contender.run: run(steps))  # type: ignore[misc]
            rates[contender.name].append(steps * setting.batch_images / seconds)
    peaks: dict[Precision, float] = {}
    for (precision, _), values in products.items():
        peaks[precision] = max(peaks.get(precision, 0.0), statistics.median(values))
    return Measured(rates, peaks, max(shares))


def matrix_products(device: torch.device) -> dict[tuple[Precision, int], float]:
    """Return the FLOPs a second of square matrix products, by precision and side."""
    sizes: tuple[int, ...] = (4096, 8192) if device.type == "cuda" else (1024, 2048, 3072)
    emulated = not has_bfloat16_instructions(device)
    jobs: list[tuple[Precision, int]] = [("float32", size) for size in sizes]
    # Emulated bfloat16 does about 1 GFLOP a second on two cores.
    jobs += [("bfloat16", size) for size in ((128, 256, 512) if emulated else sizes)]
    rates: dict[tuple[Precision, int], float] = {}
    with torch_threads(usable_cores()):
        for precision, size in jobs:
            one, other = torch.randn(2, size, size, device=device).to(getattr(torch, precision))
            torch.mm(one, other)
            done, began = 0, _now(device)
            while done == 0 or _now(device) - began < 0.15:
                torch.mm(one, other)
                done += 1
            rates[precision, size] = done * 2 * size**3 / (_now(device) - began)
    return rates


def summarise(
    contenders: Sequence[Contender], measured: Measured, native_bfloat16: bool
) -> dict[str, Any]:
    """Return the figures: shares and ratios are medians of what each round gives.

    The ratios to the libraries compare images a second times FLOPs an image.
    """
    rates, peaks = measured.rates, measured.peaks
    by_name = {contender.name: contender for contender in contenders}
    done = {name: [rate * by_name[name].flops for rate in rates[name]] for name in rates}

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(done[OURS], done[other], strict=True))

    own = by_name[OURS].precision
    speed = statistics.median(done[OURS])
    details: dict[str, Any] = {
        "peak_precision": own,
        "matmul_peak_flops_per_second": {name: round(peak) for name, peak in peaks.items()},
        "native_bfloat16": native_bfloat16,
        "cores_busy_elsewhere": round(measured.busy_elsewhere, 2),
        "share_of_bfloat16_matmul_peak": speed / peaks["bfloat16"] if native_bfloat16 else None,
        "loops": {
            contender.name: {
                "images_per_second": statistics.median(rates[contender.name]),
                "images_per_second_by_round": rates[contender.name],
                "flops_per_image": contender.flops,
                "flops_per_image_over_ours": contender.flops / by_name[OURS].flops,
                "flops_per_second": statistics.median(done[contender.name]),
                "precision": contender.precision,
                "network": contender.network,
            }
            for contender in contenders
        },
    }
    return {
        "share_of_matmul_peak": speed / peaks[own],
        "share_of_bare_loop": ratio(BARE),
        "ratio_vs_diffusers_fp32": ratio(DIFFUSERS),
        "ratio_vs_denoising_diffusion_pytorch": ratio(DENOISING),
        "details": details,
    }


def describe(setting: Setting) -> dict[str, Any]:
    """Return what the figures were measured on and with."""
    packages = ("torch", "diffusers", "accelerate", "denoising-diffusion-pytorch", "ema-pytorch")
    return {
        "image_size_px": setting.image_size_px,
        "batch_images": setting.batch_images,
        "device": _device_name(setting.device),
        "cores": usable_cores(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "not_timed": "sample sheets, held-out losses, checkpoints",
    }


def table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table to print."""
    details = figures["details"]
    crowded = details["cores_busy_elsewhere"] > _CALM
    rows = Table(
        title="Training speed, medians",
        caption="\n".join(
            [
                f"cores that other work kept busy: {details['cores_busy_elsewhere']:.2f}"
                + (" (too many: trust nothing here)" if crowded else ""),
                f"of the {details['peak_precision']} matrix-product peak: "
                f"{figures['share_of_matmul_peak']:.2f}",
                f"of the bare loop: {figures['share_of_bare_loop']:.3f}",
                f"times diffusers' example, at equal FLOPs: "
                f"{figures['ratio_vs_diffusers_fp32']:.2f}",
                f"times denoising-diffusion-pytorch, at equal FLOPs: "
                f"{figures['ratio_vs_denoising_diffusion_pytorch']:.2f}",
            ]
        ),
        caption_justify="left",
    )
    for name in ("", "network", "precision", "images/s", "MFLOP/image", "GFLOP/s"):
        rows.add_column(name, justify="right" if "/" in name else "left")
    for precision, peak in details["matmul_peak_flops_per_second"].items():
        rows.add_row("torch.mm", "", precision, "", "", f"{peak / 1e9:.1f}")
    for name, loop in details["loops"].items():
        rows.add_row(
            name,
            loop["network"],
            loop["precision"],
            f"{loop['images_per_second']:.1f}",
            f"{loop['flops_per_image'] / 1e6:,.0f}",
            f"{loop['flops_per_second'] / 1e9:.1f}",
        )
    return rows


class _EnoughError(Exception):
    """Ends our loop, which has no other end than its last step."""


class _StepClock(NullTracker):
    """Times our loop from the end of step `first` to the end of step `last`, and stops it."""

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self._device, self._first, self._last = device, first, last
        self._began = self.seconds = math.nan

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        if done == self._first:
            self._began = _now(self._device)
        if done == self._last:
            self.seconds = _now(self._device) - self._began
            raise _EnoughError


class _Images(Dataset[torch.Tensor]):
    """Images alone, without labels, one at a time."""

    def __init__(self, images: torch.Tensor) -> None:
        self._rows = TensorDataset(images)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        image: torch.Tensor = self._rows[index][0]
        return image


def _params(setting: Setting) -> TrainParams:
    return TrainParams(batch_images=setting.batch_images, checkpoint_every_steps=LONG_STEPS)


def _network(setting: Setting, device: torch.device) -> UNet2DModel:
    params, images = _params(setting), len(setting.images)
    preset, _ = pick_preset(params, setting.image_size_px, images)
    dropout = pick_dropout(params, images)
    network = build_unet(setting.image_size_px, "L", CLASSES, preset, 0, dropout)
    return network.to(device).train()


def _endless(loader: DataLoader[torch.Tensor]) -> Iterator[torch.Tensor]:
    while True:
        yield from loader


def _clocked(setting: Setting, step: Callable[[], None], *, peer: bool = False) -> Run:
    def run(steps: int) -> float:
        with torch_threads(usable_cores()), _as_a_user() if peer else _as_we_do():
            step()
            began = _now(setting.device)
            for _ in range(steps):
                step()
            return _now(setting.device) - began

    return run


@contextmanager
def _as_a_user() -> Iterator[None]:
    """Undo, for a library's loop, what `torch_threads` sets beside the number of threads."""
    torch.set_flush_denormal(False)
    with torch.backends.cudnn.flags(enabled=True):
        yield


@contextmanager
def _as_we_do() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield


def _alone(work: Callable[[], T]) -> T:
    """Do `work` in a fresh thread.

    Flushing of denormals belongs to a thread and is inherited by the compute threads that it
    starts, once: switched in the same thread, it would hold for one core and not for the others.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _others_busy_seconds() -> float:
    """Return the processor seconds that other processes have had, on all cores together."""
    whole, own = psutil.cpu_times(), psutil.Process().cpu_times()
    resting = whole.idle + getattr(whole, "iowait", 0.0)
    guest = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)  # counted twice
    return float(sum(whole) - resting - guest - own.user - own.system)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(main)
