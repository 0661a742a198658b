"""Quality against network evaluations: every sampler on the same weights and the same noise.

`python benchmarks/sampler_steps.py --json FILE --markdown FILE --figure FILE --artifacts DIR`. Each
DIR (there may be several) holds the finished stages prepare and train of a run; without one, the
embedded digits are prepared and trained on first (a minute). Samples are drawn without guidance,
with labels as in the test split, and compared with real test images by class kernel distance (lower
is better) and coverage (higher), in features of a classifier that was trained on all images with a
label. The ceiling is what other real images reach. `--quick` does a part of it on digits.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import typer

from pipeline.data.images import Images
from pipeline.data.store import Samples, concatenate, read_info, read_samples
from pipeline.device import pick_device, torch_threads, usable_cores
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.features.classifier import embed
from pipeline.features.judge import fit_judge
from pipeline.params import PrepareParams, PretrainParams, TrainParams
from pipeline.stages import prepare, pretrain, train
from pipeline.synthesis.measures import Measures, draw_samples
from pipeline.tracking.tracker import NullTracker

EVALUATIONS = (4, 6, 8, 12, 20, 32, 50, 100)
SAMPLERS = ("ddpm", "ddim", "dpmsolver++", "dpmsolver++sde", "unipc", "heun")
QUICK_EVALUATIONS, QUICK_SAMPLERS = (4, 12), ("ddpm", "ddim", "dpmsolver++")
TEST_ROWS = 1000
NEIGHBOURS = 5


@dataclass(frozen=True)
class Row:
    """One sampler with one number of network evaluations."""

    sampler: str
    evaluations: int
    kernel_distance: float
    coverage: float
    images_per_second: float


def main(
    artifacts: Annotated[
        list[Path] | None, typer.Option(help="Folder of a run's stages; may repeat.")
    ] = None,
    samples: Annotated[int, typer.Option(min=32, help="Images of each sampler.")] = 512,
    quick: Annotated[bool, typer.Option("--quick", help="A small part, in two minutes.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the curves here.")] = None,
) -> None:
    """Draw with every sampler, and say what the images were worth."""
    results: dict[str, Any] = {}

    def keep(name: str, found: dict[str, Any]) -> None:
        results[name] = found
        if json_file is not None:  # a long run that is stopped keeps what it has
            json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    with torch_threads(usable_cores()), tempfile.TemporaryDirectory() as scratch:
        for folder in artifacts or [train_digits(Path(scratch), 120 if quick else None)]:
            name = folder.name if artifacts else "digits"
            evaluations = QUICK_EVALUATIONS if quick else EVALUATIONS
            samplers = QUICK_SAMPLERS if quick else SAMPLERS
            compare(name, folder, samplers, evaluations, 128 if quick else samples, keep)
    text = "\n\n".join(table(name, found) for name, found in results.items())
    typer.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n", encoding="utf-8")
    if figure is not None:
        draw(results, figure)


def train_digits(root: Path, steps: int | None, **params: Any) -> Path:
    """Prepare and train on the embedded digits; return the folder of the stages."""
    prepare.run(PrepareParams(pool_path=str(root / "none")), {}, root / "prepare", NullTracker())
    inputs = {"prepare": root / "prepare"}
    pretrain.run(PretrainParams(base="none"), inputs, root / "pretrain", NullTracker())
    inputs["pretrain"] = root / "pretrain"
    train.run(TrainParams(steps=steps, **params), inputs, root / "train", NullTracker())
    return root


def open_measures(folder: Path) -> tuple[Measures, Samples]:
    """Return what compares with the test rows of a run, and other real rows."""
    store = folder / "prepare" / "dataset"
    info = read_info(store)
    training = read_samples(store, ("train",))
    test, other = read_samples(store, ("test",)), read_samples(store, ("validation",))
    rows = np.random.default_rng(0).permutation(len(test))[:TEST_ROWS]
    seen = concatenate([training, test.take(rows), other])
    device = pick_device("auto")
    encoder = fit_judge(seen, len(info.classes), 600, 0, device, lambda _step: None)

    def features(images: Images) -> npt.NDArray[np.floating]:
        return embed(encoder, images)

    return Measures(training, test.take(rows), features), other


def compare(
    name: str,
    folder: Path,
    samplers: tuple[Any, ...],
    evaluations: tuple[int, ...],
    samples: int,
    keep: Any,
) -> None:
    """Draw with every sampler; `keep` hears what there is after each."""
    device = pick_device("auto")
    generator = load_generator(folder / "train" / "generator", device)
    measures, other = open_measures(folder)
    real = other.take(range(min(len(other), samples)))
    features = measures.features(real.images)
    found: dict[str, Any] = {
        "samples": samples,
        "ceiling": {
            "images": len(real),
            "kernel_distance": measures.kernel(features, real.labels).value,
            "coverage": float(np.nanmean(measures.covered(features, real.labels, NEIGHBOURS))),
        },
        "rows": [],
    }
    labels = measures.labels(samples, 0, "benchmark")
    for sampler in samplers:
        for count in evaluations:
            began = time.perf_counter()
            settings = SamplerSettings(sampler, count)
            images = draw_samples(
                generator.model, None, generator.spec, labels, settings, 0, "benchmark", device
            )
            speed = samples / (time.perf_counter() - began)
            features = measures.features(images)
            kernel = measures.kernel(features, labels).value
            coverage = float(np.nanmean(measures.covered(features, labels, NEIGHBOURS)))
            found["rows"].append(asdict(Row(sampler, count, kernel, coverage, speed)))
            typer.echo(f"{name}: {sampler} {count}: {kernel:.3f} {coverage:.2f}", err=True)
            keep(name, found)


def table(name: str, found: dict[str, Any]) -> str:
    """Return the kernel distances of a set as a Markdown table, coverage in brackets."""
    counts = sorted({row["evaluations"] for row in found["rows"]})
    cells = {(row["sampler"], row["evaluations"]): row for row in found["rows"]}
    ceiling = found["ceiling"]
    lines = [
        f"**{name}**, {found['samples']} samples; {ceiling['images']} other real images: "
        f"{ceiling['kernel_distance']:.3f} ({ceiling['coverage']:.2f})",
        "",
        "| sampler | " + " | ".join(str(count) for count in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    for sampler in dict.fromkeys(row["sampler"] for row in found["rows"]):
        shown = [
            f"{cell['kernel_distance']:.3f} ({cell['coverage']:.2f})" if cell else ""
            for cell in (cells.get((sampler, count)) for count in counts)
        ]
        lines.append(f"| {sampler} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw kernel distance against evaluations, one panel a set."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(5.2 * len(results), 4), squeeze=False, layout="constrained"
    )
    for axis, (name, found) in zip(axes[0], results.items(), strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["sampler"] == sampler]
            axis.plot(
                [row["evaluations"] for row in rows],
                [row["kernel_distance"] for row in rows],
                marker="o",
                markersize=3,
                label=sampler,
            )
        axis.axhline(found["ceiling"]["kernel_distance"], color="grey", linestyle=":")
        # Above 1, images have little to do with the data.
        axis.set(xscale="log", title=name, ylim=(-0.08, 1.05))
        ticks = sorted({row["evaluations"] for row in found["rows"]})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("network evaluations an image")
    axes[0][0].set_ylabel("class kernel distance to test images")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
