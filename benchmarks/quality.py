"""Quality against training time: the recipe, each part of it switched off, and the naive one.

`python benchmarks/quality.py --json FILE --markdown FILE --figure FILE`. Sets: the embedded digits,
thinned to 246 images (60 to 6 a class) and to 140 (26 to 6), and Fashion-MNIST thinned to 409 (100
to 10; Debian's package dataset-fashion-mnist). Every network is looked at several times on the way,
by samples without guidance: kernel distance to real test images, coverage of them, and the share of
samples that are copies of training images. Features are those of a classifier trained on ALL
labelled images of the set, which no recipe saw. Time is processor time of the training steps alone,
so that other work on the machine does not count. `--quick` does a small part, in two minutes.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import Images, flat_pixels
from pipeline.data.store import Samples, read_info, read_samples
from pipeline.device import pick_device, torch_threads, usable_cores
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.features.classifier import embed
from pipeline.features.judge import fit_judge
from pipeline.metrics.kernel import class_kernel_distance
from pipeline.metrics.memorization import RealIndex, copy_share
from pipeline.metrics.prdc import prdc
from pipeline.params import Imbalance, PrepareParams, PretrainParams, TrainParams
from pipeline.stages import prepare, pretrain, train
from pipeline.synthesis.probe import Probe
from pipeline.tracking.tracker import NullTracker

FASHION = Path("/usr/share/datasets/fashion-mnist")
PLAIN: dict[str, Any] = {"dropout": 0.0, "augment": []}
# Our network and process, but rows as they come, the plain loss, and no look at copies.
NAIVE: dict[str, Any] = {
    **PLAIN,
    "weighting": "uniform",
    "class_balance_power": 1.0,
    "ema_length": 0.05,
    "copy_limit": 1.0,
    "patience_checks": 0,
}
AUGMENT = {"augment": ["translate", "scale"]}


@dataclass(frozen=True)
class Recipe:
    """Changes against the default params of train, and whether it starts from the pool base."""

    changes: dict[str, Any]
    base: bool = False


RECIPES: dict[str, Recipe] = {
    "full": Recipe({}, base=True),
    "scratch": Recipe({}),
    "full, no dropout": Recipe({"dropout": 0.0}, base=True),
    "full, no min-SNR": Recipe({"weighting": "uniform"}, base=True),
    "full, no balancing": Recipe({"class_balance_power": 1.0}, base=True),
    "full, no choice of average": Recipe({"ema_length": 0.05}, base=True),
    "full, with augmentation": Recipe(AUGMENT, base=True),
    "full, with CBDM": Recipe({"class_balance_weight": 1.0}, base=True),
    "full, LoRA": Recipe({"trainable": "lora"}, base=True),
    "scratch, no dropout": Recipe({"dropout": 0.0}),
    "scratch, EDM": Recipe({"schedule": "lognormal", "prediction": "edm", "weighting": "edm"}),
    "naive": Recipe(NAIVE),
    "naive, DDPM's process": Recipe({**NAIVE, "schedule": "linear", "prediction": "noise"}),
}


@dataclass(frozen=True)
class Task:
    """A set, and how long it is trained on."""

    source: str
    largest: int
    smallest: int
    steps: int
    pool_steps: int
    samples: int
    recipes: tuple[str, ...]
    seeds: int
    checks: int = 10


TASKS: dict[str, Task] = {
    "digits, 140 images": Task("digits", 26, 6, 1400, 400, 256, ("full", "scratch", "naive"), 1, 8),
    "digits, 246 images": Task("digits", 60, 6, 600, 400, 256, tuple(RECIPES), 1, 6),
    "Fashion-MNIST, 409 images": Task(
        "idx", 100, 10, 360, 200, 192, ("full", "scratch", "naive"), 1, 6
    ),
}
QUICK_TASKS: dict[str, Task] = {
    "digits, 140 images": Task("digits", 26, 6, 120, 80, 128, ("naive", "scratch", "full"), 1),
}


@dataclass(frozen=True)
class Point:
    """What a network was worth at one moment of its training."""

    step: int
    cpu_seconds: float
    kernel_distance: float
    coverage: float
    copy_share: float


class Measure:
    """Looks at networks with features that no recipe has seen."""

    def __init__(self, store: Path, whole: Path, samples: int, seed: int) -> None:
        """Train the features on all labelled images and lay out the test images."""
        self.device = pick_device("auto")
        info = read_info(store)
        everything = read_samples(whole, ("train",))
        encoder = fit_judge(
            everything, len(info.classes), 600, seed, self.device, lambda _step: None
        )
        self._encoder = encoder
        test = read_samples(store, ("test",))
        rows = np.random.default_rng(seed).permutation(len(test))[:1000]
        self.test, self.training = test.take(rows), read_samples(store, ("train",))
        self._pixels = RealIndex(flat_pixels(self.training.images))
        self._samples, self._seed, self._classes = samples, seed, info.classes
        self._real = self.features(self.test.images)

    def features(self, images: Images) -> npt.NDArray[np.float64]:
        """Return (N, D) features, of mean square length D."""
        found = embed(self._encoder, images).astype(np.float64)
        scale = getattr(self, "_scale", None)
        if scale is None:
            scale = self._scale = 1 / np.sqrt(np.mean(found**2))
        scaled: npt.NDArray[np.float64] = found * scale
        return scaled

    def __call__(self, model: UNet2DModel, spec: GeneratorSpec) -> tuple[float, float, float]:
        """Return kernel distance, coverage and copy share of samples, labels as in the test."""
        probe = Probe(
            spec,
            self.training,
            self.test,
            self.features,
            SamplerSettings("dpmsolver++", 12),
            self._samples,
            self._seed,
            self.device,
        )
        images = probe.draw(model)
        fake = self.features(images)
        return (
            class_kernel_distance(self._real, self.test.labels, fake, probe.labels),
            prdc(self._real, fake).coverage,
            copy_share(self._pixels.nearest(flat_pixels(images))),
        )

    def ceiling(self, rows: Samples) -> tuple[float, float]:
        """Return kernel distance and coverage of other real rows: what no generator can beat."""
        rows = rows.take(range(min(len(rows), self._samples)))
        fake = self.features(rows.images)
        distance = class_kernel_distance(self._real, self.test.labels, fake, rows.labels)
        return distance, prdc(self._real, fake).coverage


class Watcher:
    """Stands in for the trainer's own look: takes a point, then asks the trainer's probe."""

    def __init__(self, measure: Measure, steps: list[int]) -> None:
        """Begin the clock; `steps` gets the step before each look."""
        self.points: list[Point] = []
        self._measure, self._steps = measure, steps
        self._began = time.process_time()
        self._away = 0.0

    def wrap(
        self, examine: Callable[[UNet2DModel], tuple[float, float]], spec: GeneratorSpec
    ) -> Callable[[UNet2DModel], tuple[float, float]]:
        """Return the trainer's look, with a point taken before it."""

        def look(model: UNet2DModel) -> tuple[float, float]:
            entered = time.process_time()
            seconds = entered - self._began - self._away
            found = self._measure(model, spec)
            self.points.append(Point(len(self.points) + 1, seconds, *found))
            result = examine(model)
            self._away += time.process_time() - entered
            return result

        return look


class _Steps(NullTracker):
    """Remembers the step of each look."""

    def __init__(self) -> None:
        self.checks: list[int] = []

    def metrics(self, values: Any, step: int | None = None) -> None:
        """See Tracker."""
        if step is not None and any(name.endswith("heldout_train_loss") for name in values):
            self.checks.append(step)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A small part, in two minutes.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Sets whose name begins so; may repeat.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the tables here.")
    ] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw the curves here.")] = None,
) -> None:
    """Train every recipe on every set, and say what it was worth when."""
    tasks = QUICK_TASKS if quick else TASKS
    chosen = {
        name: task
        for name, task in tasks.items()
        if not only or any(name.lower().startswith(one.lower()) for one in only)
    }
    results: dict[str, Any] = {}
    with torch_threads(usable_cores()):
        for name, task in chosen.items():
            if task.source == "idx" and not FASHION.is_dir():
                typer.echo("error: apt-get install dataset-fashion-mnist", err=True)
                raise SystemExit(2)

            def keep(found: dict[str, Any], name: str = name) -> None:
                results[name] = found
                if json_file is not None:  # a long run that is stopped keeps what it has
                    json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

            keep(run_task(name, task, keep))
    text = "\n\n".join(table(name, result) for name, result in results.items())
    typer.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n", encoding="utf-8")
    if figure is not None:
        draw(results, figure)


def run_task(name: str, task: Task, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run all recipes of a set, all seeds; `keep` hears what there is after each."""
    rows: dict[str, list[dict[str, Any]]] = {}
    ceilings = []
    for seed in range(task.seeds):
        with tempfile.TemporaryDirectory(prefix="replenish-quality-") as folder:
            root = Path(folder)
            params = PrepareParams(
                seed=seed,
                source="digits" if task.source == "digits" else "idx",
                path=str(FASHION),
                pool_path=str(root / "none"),
                imbalance=Imbalance(max=task.largest, min=task.smallest),
                validation_fraction=0.15 if task.source == "digits" else 0.02,
            )
            prepare.run(params, {}, root / "prepare", NullTracker())
            whole = root / "whole"
            prepare.run(params.model_copy(update={"imbalance": None}), {}, whole, NullTracker())
            measure = Measure(root / "prepare" / "dataset", whole / "dataset", task.samples, seed)
            ceilings.append(measure.ceiling(read_samples(whole / "dataset", ("validation",))))
            cost = {
                base: make_base(root, base, task, seed)
                for base in sorted({RECIPES[one].base for one in task.recipes})
            }
            for recipe in task.recipes:
                typer.echo(f"{name}, seed {seed}: {recipe} ...", err=True)
                found = run_recipe(root, RECIPES[recipe], task, seed, measure)
                rows.setdefault(recipe, []).append(
                    {**found, "pretrain_cpu_seconds": cost[RECIPES[recipe].base]}
                )
                keep(_summary(ceilings, rows))
    return _summary(ceilings, rows)


def _summary(
    ceilings: list[tuple[float, float]], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    return {
        "ceiling": {
            "kernel_distance": statistics.mean(one[0] for one in ceilings),
            "coverage": statistics.mean(one[1] for one in ceilings),
        },
        "recipes": rows,
        "speedup_to_scratch_best": speedup(rows),
    }


def make_base(root: Path, pool: bool, task: Task, seed: int) -> float:
    """Run the stage pretrain with or without the pool; return its processor seconds."""
    began = time.process_time()
    params = PretrainParams(
        seed=seed, base="pool" if pool else "none", steps=task.pool_steps, preset="small"
    )
    out = root / ("pool" if pool else "none")
    pretrain.run(params, {"prepare": root / "prepare"}, out / "pretrain", NullTracker())
    return time.process_time() - began


def run_recipe(
    root: Path, recipe: Recipe, task: Task, seed: int, measure: Measure
) -> dict[str, Any]:
    """Train one recipe; return its points, and what was kept in the end."""
    tracker = _Steps()
    watcher = Watcher(measure, tracker.checks)
    original = train._examiner

    def examiner(params: TrainParams, spec: GeneratorSpec, *rest: Any) -> Any:
        examine = original(params, spec, *rest)
        watcher._began = time.process_time()  # the encoder's training is no training
        return watcher.wrap(examine, spec)

    train._examiner = examiner  # type: ignore[assignment]
    try:
        steps = task.steps // 2 if recipe.base else task.steps
        shared: dict[str, Any] = {"seed": seed, "steps": steps, "checks": task.checks}
        params = TrainParams(**shared, preset="small", **recipe.changes)
        inputs = {
            "prepare": root / "prepare",
            "pretrain": root / ("pool" if recipe.base else "none") / "pretrain",
        }
        out = Path(tempfile.mkdtemp(dir=root)) / "train"
        summary = train.run(params, inputs, out, tracker)  # type: ignore[arg-type]
    finally:
        train._examiner = original
    points = [
        {**asdict(point), "step": step}
        for point, step in zip(watcher.points, tracker.checks, strict=False)
    ]
    later = watcher.points[len(tracker.checks) :]  # the search of averaging lengths
    kept = next(p for p in points if p["step"] == summary.kept_step)
    if later:
        lengths = (out / "lengths.csv").read_text().splitlines()[1:]
        looked = [float(line.split(",")[1]) for line in lengths]
        if looked:
            looked = [one for one in looked if abs(one - 0.10) > 1e-6]
            at = looked.index(summary.ema_length) if summary.ema_length in looked else None
        else:
            at = 0
        if at is not None:
            found = asdict(later[at])
            kept = {**found, "step": kept["step"], "cpu_seconds": kept["cpu_seconds"]}
    return {
        "points": points,
        "kept": kept,
        "ema_length": summary.ema_length,
        "steps": summary.steps,
        "last": points[-1],
        "endurance": summary.endurance,
    }


def speedup(rows: dict[str, list[dict[str, Any]]]) -> float | None:
    """Return how much sooner the full recipe reaches the best kernel distance of the scratch one.

    Processor time of training alone, median over seeds; None where it does not reach it.
    """
    ratios = []
    for scratch, full in zip(rows.get("scratch", []), rows.get("full", []), strict=False):
        best = min(scratch["points"], key=lambda p: p["kernel_distance"])
        reached = [p for p in full["points"] if p["kernel_distance"] <= best["kernel_distance"]]
        if not reached:
            return None
        ratios.append(best["cpu_seconds"] / reached[0]["cpu_seconds"])
    return statistics.median(ratios) if ratios else None


def table(name: str, result: dict[str, Any]) -> str:
    """Return a Markdown table of what each recipe kept, and of its last network."""
    ceiling = result["ceiling"]
    lines = [
        f"**{name}**; other real images: kernel distance {ceiling['kernel_distance']:.4f}, "
        f"coverage {ceiling['coverage']:.2f}",
        "",
        "| recipe | kept at step | processor s | kernel distance | coverage | copies "
        "| last step | copies |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe, runs in result["recipes"].items():
        kept, last = [run["kept"] for run in runs], [run["last"] for run in runs]
        lines.append(
            f"| {recipe} | {_mean(kept, 'step'):.0f} | {_mean(kept, 'cpu_seconds'):.0f} "
            f"| {_mean(kept, 'kernel_distance'):.4f} | {_mean(kept, 'coverage'):.2f} "
            f"| {_mean(kept, 'copy_share'):.1%} | {_mean(last, 'step'):.0f} "
            f"| {_mean(last, 'copy_share'):.1%} |"
        )
    ratio = result["speedup_to_scratch_best"]
    said = "does not reach" if ratio is None else f"reaches {ratio:.1f} times sooner"
    lines += ["", f"The full recipe {said} the scratch recipe's best kernel distance."]
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw kernel distance, coverage and copy share against training time, a row a set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=(11, 3.2 * len(results)), layout="constrained")
    FigureCanvasAgg(page)
    panels = page.subplots(len(results), 3, squeeze=False)
    names = ("kernel_distance", "coverage", "copy_share")
    for row, (name, result) in zip(panels, results.items(), strict=True):
        for panel, measure in zip(row, names, strict=True):
            for recipe in ("naive", "scratch", "full"):
                for run in result["recipes"].get(recipe, [])[:1]:
                    x = [point["cpu_seconds"] for point in run["points"]]
                    y = [point[measure] for point in run["points"]]
                    panel.plot(x, y, marker="o", markersize=3, label=recipe)
            panel.set_title(f"{name}: {measure.replace('_', ' ')}", fontsize=9)
            panel.set_xlabel("processor time of training, s", fontsize=8)
            if measure == "kernel_distance":
                panel.set_yscale("symlog", linthresh=0.01)
        row[0].legend(fontsize=8)
    page.savefig(path, dpi=110)


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    typer.run(main)
