"""Does generation stream? Seconds and peak memory by number of images, and the straight lines.

`python benchmarks/linear.py --quick --json FILE` samples a tiny untrained network (8 px) as the
stage synthesize does: executor, shards on disk, judges, sample store. Each number of images has a
fresh process. The slope of memory is what an image costs that is long written; it is 0 where
nothing is kept. The store's Parquet files hold 500 rows here, not 10,000, since the rows that wait
for their file do fill memory at first.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pipeline.curation.curator import Curator
from pipeline.data.images import Images
from pipeline.data.store import make_samples
from pipeline.data.store_writer import StoreWriter
from pipeline.device import torch_threads, usable_cores
from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.features.classifier import build_classifier
from pipeline.features.judge import Ensemble
from pipeline.synthesis.executors import ProcessExecutor, ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.ledger import choose_kept, write_out
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.rounds import fill_plan
from pipeline.synthesis.shards import Shard, read_shard

FULL, QUICK = (1_000, 4_000, 16_000, 64_000), (1_000, 2_000, 4_000, 8_000)
SIDE_PX, SHARD_IMAGES, ROWS_PER_FILE = 8, 20, 500
_FIRST_RATE = 0.8  # of what it draws, fill_plan counts on so much being accepted
_MIB = 2**20


@dataclass(frozen=True)
class Run:
    """What one number of images took.

    Attributes:
        images: candidates that were drawn, judged and written.
        seconds: from the first shard to the closed store.
        peak_bytes: largest resident memory of the process; of worker processes, as many times the
            largest one's as there are.
    """

    images: int
    seconds: float
    peak_bytes: int


def main(
    quick: Annotated[bool, typer.Option("--quick", help="At most 8,000 images.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    backend: Annotated[str, typer.Option(help="inline or processes.")] = "inline",
    workers: Annotated[int, typer.Option(min=0, help="0 = one a core.")] = 0,
    alone: Annotated[
        int, typer.Option("--alone", hidden=True, help="Measure this many images here.")
    ] = 0,
) -> None:
    """Generate more and more images, and fit straight lines to time and memory."""
    if backend not in ("inline", "processes"):
        raise typer.BadParameter("--backend is inline or processes")
    workers = workers or usable_cores()
    if alone:
        with tempfile.TemporaryDirectory() as folder:
            typer.echo(json.dumps(asdict(generate(alone, Path(folder), backend, workers))))
        return
    runs = []
    for images in QUICK if quick else FULL:
        runs.append(_in_a_process(images, backend, workers))
        typer.echo(
            f"{runs[-1].images:>7,} images {runs[-1].seconds:>8.1f} s "
            f"{runs[-1].peak_bytes / _MIB:>8.1f} MiB"
        )
    figures = {**summarise(runs), "backend": backend, "workers": workers}
    typer.echo(
        f"{1e3 * figures['seconds_per_image']:.3f} ms an image and "
        f"{figures['time_intercept_seconds']:.2f} s besides, R^2 {figures['time_r2']:.4f}; "
        f"{figures['bytes_per_image']:.0f} bytes an image and "
        f"{figures['memory_intercept_mib']:.0f} MiB besides"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def generate(images: int, folder: Path, backend: str, workers: int) -> Run:
    """Draw, judge and write so many images below `folder`, as the stage synthesize does."""
    classes = ("a", "b")
    spec = GeneratorSpec(classes, SIDE_PX, "L", "cosine", "velocity", False, "", None)
    digest = save_generator(
        folder / "generator", spec, build_unet(SIDE_PX, "L", 2, Preset(8, 1), seed=0)
    )
    settings = SamplerSettings("dpmsolver++", 2, Guidance(1.0))
    recipe = Recipe("as asked", folder / "generator", digest, settings)
    job = ShardJob((recipe,), 0, "cpu", workers=workers, shard_images=SHARD_IMAGES)
    random = np.random.default_rng(0)
    real = make_samples(
        random.integers(0, 256, (64, SIDE_PX, SIDE_PX, 1), dtype=np.uint8),
        np.arange(64) % 2,
        "train",
        "real",
    )
    kind = ProcessExecutor if backend == "processes" else ThreadExecutor
    # Whole shards of both classes.
    each = max(1, round(images / len(classes) / SHARD_IMAGES)) * SHARD_IMAGES
    with ExitStack() as stack:
        stack.enter_context(torch_threads(1))
        # Judged like any other, and all accepted: what becomes of an image is not the point. No
        # search for near repeats: it grows with a class's square, slowly (docs/log.md).
        judge = build_classifier(1, len(classes), 8, SIDE_PX, 0).eval()
        folds, chances = np.zeros(len(real), np.int64), np.full((len(real), 2), 0.5)
        curator = Curator(real, real.take([]), Ensemble((judge,), folds, chances), rules=())
        executor = stack.enter_context(kind(job.start, folder / "shards", workers))
        store = stack.enter_context(
            StoreWriter(folder / "store", classes, SIDE_PX, "L", ROWS_PER_FILE)
        )
        began = time.perf_counter()
        targets = [int(_FIRST_RATE * each)] * len(classes)
        ledger = fill_plan(
            classes,
            targets,
            targets,
            SHARD_IMAGES,
            1,
            lambda wave: in_order(executor, wave, folder / "shards", lambda shard: None),
            curator,
            (recipe,),
            seed=0,
            adapt_below=0.0,
            keep_features=False,
        )

        def read(shard: Shard) -> Images:
            images = read_shard(folder / "shards", shard)
            assert images is not None
            return images

        write_out(
            ledger,
            choose_kept(ledger, "first"),
            (recipe,),
            0,
            read,
            store.add,
            store.add,
            lambda done: None,
        )
        store.close()
        seconds = time.perf_counter() - began
    drawn = sum(one.candidates.total() for one in ledger.classes)
    peak = _peak_bytes(resource.RUSAGE_SELF)
    if backend == "processes":
        peak += workers * _peak_bytes(resource.RUSAGE_CHILDREN)
    return Run(drawn, seconds, peak)


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the figures: least-squares lines of seconds and of peak memory over images."""
    images = [float(run.images) for run in runs]
    seconds, start, r2 = fit_line(images, [run.seconds for run in runs])
    growth, ground, memory_r2 = fit_line(images, [float(run.peak_bytes) for run in runs])
    return {
        "seconds_per_image": seconds,
        "time_intercept_seconds": start,
        "time_r2": r2,
        "bytes_per_image": growth,
        "memory_intercept_mib": ground / _MIB,
        "memory_r2": memory_r2,
        "peak_mib": max(run.peak_bytes for run in runs) / _MIB,
        "runs": [asdict(run) for run in runs],
    }


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Return slope, intercept and R^2 of the least-squares line; R^2 is 1 where y is constant."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = float(np.sum((np.asarray(y) - np.mean(y)) ** 2))
    return float(slope), float(intercept), 1 - float(rest @ rest) / spread if spread else 1.0


def _in_a_process(images: int, backend: str, workers: int) -> Run:
    command = [sys.executable, str(Path(__file__)), "--alone", str(images)]
    done = subprocess.run(
        [*command, "--backend", backend, "--workers", str(workers)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Run(**json.loads(done.stdout))


def _peak_bytes(whose: int) -> int:
    peak = resource.getrusage(whose).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


if __name__ == "__main__":
    typer.run(main)
