"""Images a second at equal or better quality, against diffusers and denoising-diffusion-pytorch.

`python benchmarks/sampling.py --json FILE [--artifacts DIR]`. DIR holds the finished stages prepare
and train of a run with `train.distill`; without one, the embedded digits are prepared, trained on
and distilled first. All draw from the same weights, in one run, on all cores, in float32:

ours      teacher (DPM-Solver++, 20 steps, guidance 1.5) and student (distilled), as the stage
          synthesize draws them: workers, shards, files and all
diffusers the loop of its guide "Understanding pipelines, models and schedulers": DDPM with 1,000
          steps, DDIM with 50, labels given, without guidance, which would double their cost
ddp       denoising-diffusion-pytorch's GaussianDiffusion.sample, 1,000 steps, and 50 of DDIM

Quality is the class kernel distance to real test images (lower is better), in features of a
classifier that was trained on all labelled images of the set; every sampler draws the same number.
`--quick` does it on digits with few images and short trainings, in about two minutes.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from sampler_steps import open_measures, train_digits

from pipeline.data.images import Images, from_model
from pipeline.data.store import read_info
from pipeline.device import torch_threads, usable_cores
from pipeline.diffusion.checkpoints import GeneratorSpec, load_generator, read_student
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.synthesis.executors import ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.measures import Labels, Measures
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.settings import student_settings
from pipeline.synthesis.shards import Shard

CPU = torch.device("cpu")
BATCH_IMAGES = 64  # of the peers; their guides use 1 to 16, which is slower
REPEATS = 3
TEACHER = SamplerSettings("dpmsolver++", 20, Guidance(1.5))
DIFFUSERS_PREDICTIONS = {"velocity": "v_prediction", "noise": "epsilon", "sample": "sample"}
DDP_OBJECTIVES = {"velocity": "pred_v", "noise": "pred_noise", "sample": "pred_x0"}


@dataclass
class Found:
    """What a sampler did: images a second, one figure a run, and its images."""

    rates: list[float]
    images: Images
    kernel_distance: float = float("nan")

    @property
    def rate(self) -> float:
        """Return the median of images a second."""
        return statistics.median(self.rates)


def main(
    artifacts: Annotated[Path | None, typer.Option(help="Folder of a run's stages.")] = None,
    per_class: Annotated[int, typer.Option(min=2, help="Images of each class, a sampler.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Digits alone, short.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Draw with everybody's samplers, and compare speed and quality."""
    with torch_threads(usable_cores()), tempfile.TemporaryDirectory() as scratch:
        folder = artifacts or train_digits(
            Path(scratch) / "run",
            200 if quick else None,
            distill="progressive",
            distill_phase_steps=100 if quick else None,
            distill_seeds=2,
        )
        results = compare(folder, Path(scratch), 8 if quick else per_class)
    show(results)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def compare(folder: Path, scratch: Path, per_class: int) -> dict[str, Any]:
    """Return speeds, kernel distances and ratios of all samplers."""
    info = read_info(folder / "prepare" / "dataset")
    generator = load_generator(folder / "train" / "generator", CPU)
    spec, model = generator.spec, generator.model
    labels = np.arange(len(info.classes)).repeat(per_class)
    student_folder = folder / "train" / "student"
    student = student_settings(read_student(student_folder), "float32")
    measures, _ = open_measures(folder)

    def ours(name: str, generator: Path, settings: SamplerSettings) -> Found:
        digest = load_generator(generator, CPU).digest
        recipe = Recipe(name, generator, digest, settings)
        job = ShardJob((recipe,), 0, "cpu", workers=usable_cores(), shard_images=per_class)
        return run_ours(job, scratch / name, len(info.classes), per_class)

    found: dict[str, Found] = {"student": ours("student", student_folder, student)}
    found["ddim50"] = repeat(lambda: diffusers_loop(model, spec, "ddim", 50, labels))
    found["teacher"] = ours("teacher", folder / "train" / "generator", TEACHER)
    found["ddp_ddim50"] = repeat(lambda: ddp_loop(model, spec, 50, labels))
    found["ddpm1000"] = repeat(lambda: diffusers_loop(model, spec, "ddpm", 1000, labels), 1)
    found["ddp1000"] = repeat(lambda: ddp_loop(model, spec, 1000, labels), 1)
    # Once more at the end: the machine may have changed its mind in between.
    found["student"].rates += ours("student, again", student_folder, student).rates
    for one in found.values():
        one.kernel_distance = distance(measures, one.images, labels)
    student_rate = found["student"].rate
    return {
        "images": len(labels),
        "student_steps": student.steps,
        "images_per_second": {name: one.rate for name, one in found.items()},
        "kernel_distance": {name: one.kernel_distance for name, one in found.items()},
        "ratio_vs_ddpm1000": student_rate / found["ddpm1000"].rate,
        "ratio_vs_ddim50": student_rate / found["ddim50"].rate,
        "ratio_vs_ddp1000": student_rate / found["ddp1000"].rate,
        "ratio_vs_ddp_ddim50": student_rate / found["ddp_ddim50"].rate,
        "student_vs_teacher": student_rate / found["teacher"].rate,
        "teacher_vs_ddim50": found["teacher"].rate / found["ddim50"].rate,
        "student_as_good_as": [
            name
            for name, one in found.items()
            if name != "student" and found["student"].kernel_distance <= one.kernel_distance
        ],
    }


def repeat(draw: Callable[[], Images], times: int = REPEATS) -> Found:
    """Time a sampler; long ones once, which evens the noise out by itself."""
    rates = []
    for _ in range(times):
        began = time.perf_counter()
        images = draw()
        rates.append(len(images) / (time.perf_counter() - began))
    return Found(rates, images)


def run_ours(job: ShardJob, folder: Path, classes: int, per_class: int) -> Found:
    """Draw shards as the stage does, warm workers included, and read them back."""
    images: list[Images] = []
    rates = []
    with torch_threads(1), ThreadExecutor(job.start, folder, usable_cores()) as executor:
        for turn in range(REPEATS + 1):  # the first warms the workers up, as training did the peers
            shards = [Shard(label, turn, per_class) for label in range(classes)]
            began = time.perf_counter()
            drawn = [part for _, part in in_order(executor, shards, folder, lambda _shard: None)]
            if turn:
                rates.append(classes * per_class / (time.perf_counter() - began))
            images = drawn
    return Found(rates, np.concatenate(images))


def distance(measures: Measures, images: Images, labels: Labels) -> float:
    """Return the class kernel distance to the real test images."""
    return measures.kernel(measures.features(images), labels).value


@torch.no_grad()
def diffusers_loop(
    model: UNet2DModel, spec: GeneratorSpec, name: str, steps: int, labels: Labels
) -> Images:
    """Draw as diffusers' guide does, on the noise levels that the network was trained on."""
    kind = DDPMScheduler if name == "ddpm" else DDIMScheduler
    scheduler = kind(
        num_train_timesteps=1000,
        trained_betas=spec.process.betas.numpy(),
        prediction_type=_known(DIFFUSERS_PREDICTIONS, spec),
    )
    scheduler.set_timesteps(steps)
    noise = torch.Generator().manual_seed(0)
    shape = (int(model.config["in_channels"]), spec.image_size_px, spec.image_size_px)
    parts = []
    for start in range(0, len(labels), BATCH_IMAGES):
        part = torch.from_numpy(labels[start : start + BATCH_IMAGES])
        images = torch.randn((len(part), *shape), generator=noise)
        for step in scheduler.timesteps:
            predicted = model(images, step, class_labels=part).sample
            images = scheduler.step(predicted, step, images, generator=noise).prev_sample
        parts.append(from_model(images))
    return np.concatenate(parts)


class Labelled(torch.nn.Module):
    """Our network as denoising-diffusion-pytorch calls one, with the labels of a batch."""

    self_condition = False

    def __init__(self, model: UNet2DModel) -> None:
        super().__init__()
        self.model = model
        self.channels = self.out_dim = int(model.config["in_channels"])
        self.labels = torch.zeros(0)

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, _: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the prediction for the labels that were set."""
        predicted: torch.Tensor = self.model(x, time, class_labels=self.labels).sample
        return predicted


def ddp_loop(model: UNet2DModel, spec: GeneratorSpec, steps: int, labels: Labels) -> Images:
    """Draw with denoising-diffusion-pytorch's sampler on the same weights."""
    from denoising_diffusion_pytorch import GaussianDiffusion
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

    module.tqdm = lambda iterable, **_: iterable  # its progress bars
    if spec.schedule != "cosine" or spec.zero_terminal_snr:
        raise SystemExit("error: the comparison needs a generator of schedule cosine")
    network = Labelled(model)
    diffusion = GaussianDiffusion(
        network,
        image_size=spec.image_size_px,
        timesteps=1000,
        sampling_timesteps=steps,
        objective=_known(DDP_OBJECTIVES, spec),
        beta_schedule="cosine",
    )
    torch.manual_seed(0)
    parts = []
    for start in range(0, len(labels), BATCH_IMAGES):
        network.labels = torch.from_numpy(labels[start : start + BATCH_IMAGES])
        parts.append(from_model(diffusion.sample(batch_size=len(network.labels)) * 2 - 1))
    return np.concatenate(parts)


def show(results: dict[str, Any]) -> None:
    """Print a table and the ratios."""
    table = Table("sampler", "images/s", "kernel distance", title="Sampling on the same weights")
    for name, rate in results["images_per_second"].items():
        table.add_row(name, f"{rate:,.2f}", f"{results['kernel_distance'][name]:.3f}")
    console = Console()
    console.print(table)
    for name in results:
        if name.startswith("ratio") or "_vs_" in name:
            console.print(f"{name}: {results[name]:.1f}")
    console.print(f"student ({results['student_steps']} steps) is as good as: ", end="")
    console.print(", ".join(results["student_as_good_as"]) or "none")


def _known(names: dict[str, str], spec: GeneratorSpec) -> str:
    if spec.prediction not in names:
        raise SystemExit(f"error: the peers know no prediction {spec.prediction}; use velocity")
    return names[spec.prediction]


if __name__ == "__main__":
    typer.run(main)
