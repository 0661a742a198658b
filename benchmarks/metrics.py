"""Seconds and memory of the metrics of features, against the packages people take for them.

`python benchmarks/metrics.py --json FILE`, or `--quick` for small sets only (under two minutes).
Every measurement has a fresh process, limits on time and on memory, and one data set: 512 float32
features in 50 loose clusters, their variances falling like those of an encoder. Compared are

prdc            ours; the package prdc
vendi           ours, with its interval; vendi-score's `score_X` (n x n similarities) and
                `score_dual` (D x D), which give no interval
frechet         ours, the value; ours with its interval; torch-fidelity's FID arithmetic
kernel          ours, with its standard error; torch-fidelity's KID arithmetic, all rows at once
nearest         ours; scikit-learn's brute-force NearestNeighbors (the 5 nearest other rows)

Memory is the highest resident one less what the process held with the data loaded. `--scale`
measures ours alone on 1,000,000 rows from a memory map (real: 5,000 rows), in all its memory.
"""

import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import psutil
import typer
from rich.console import Console
from rich.table import Table

Rows = npt.NDArray[np.float32]
Work = Callable[[Rows, Rows], object]

WIDTH, CLUSTERS, NEIGHBOURS = 512, 50, 5
FULL, QUICK = (1_000, 10_000, 50_000), (500, 2_000)
SCALE_ROWS, SCALE_REAL = 1_000_000, 5_000
REPEATS = {500: 5, 1_000: 5, 2_000: 3, 10_000: 3}  # of larger sets, one
ENOUGH_SECONDS = 60  # no further repeat then
_MIB = 2**20


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small sets alone.")] = False,
    scale: Annotated[bool, typer.Option("--scale", help="Ours on 1,000,000 rows.")] = False,
    limit_seconds: Annotated[int, typer.Option(help="Time of one measurement.")] = 600,
    limit_gib: Annotated[float, typer.Option(help="Memory of one measurement.")] = 10.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    alone: Annotated[
        str, typer.Option("--alone", hidden=True, help="Measure NAME:ROWS here.")
    ] = "",
    rows_file: Annotated[Path | None, typer.Option("--rows-file", hidden=True)] = None,
) -> None:
    """Measure everybody, and compare seconds and memory."""
    if alone:
        name, count = alone.split(":")
        typer.echo(json.dumps(measure(name, int(count), rows_file)))
        return
    limits = limit_seconds, limit_gib
    if scale:
        figures = at_scale(limits)
    else:
        runs = []
        for count in QUICK if quick else FULL:
            for name in WORKS:
                runs.append({"name": name, "rows": count, **in_a_process(name, count, limits)})
                typer.echo(line(runs[-1]), err=True)
        figures = summarise(runs)
        Console().print(table(runs))
        for key, value in figures.items():
            if key.startswith(("ratio", "peak")):
                typer.echo(f"{key}: {value:.1f}" if value is not None else f"{key}: not known")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def ours_prdc(real: Rows, fake: Rows) -> object:
    """Time our four values."""
    from pipeline.metrics.prdc import prdc

    return prdc(real, fake, NEIGHBOURS)


def peer_prdc(real: Rows, fake: Rows) -> object:
    """Time the package prdc, which works with 8 threads whatever the cores."""
    from prdc import compute_prdc

    return compute_prdc(real, fake, NEIGHBOURS)


def ours_vendi(_: Rows, fake: Rows) -> object:
    """Time our score with its interval."""
    from pipeline.metrics.vendi import vendi_score

    return vendi_score(fake)


def peer_vendi(_: Rows, fake: Rows) -> object:
    """Time vendi-score on n x n cosine similarities."""
    from vendi_score import vendi

    return vendi.score_X(fake)


def peer_vendi_dual(_: Rows, fake: Rows) -> object:
    """Time vendi-score on the D x D covariance."""
    from vendi_score import vendi

    return vendi.score_dual(fake)


def ours_frechet(real: Rows, fake: Rows) -> object:
    """Time our value alone."""
    from pipeline.metrics.frechet import Moments, gaussian_distance

    return gaussian_distance(Moments(WIDTH).add(real), Moments(WIDTH).add(fake))


def ours_frechet_interval(real: Rows, fake: Rows) -> object:
    """Time our value with its interval."""
    from pipeline.metrics.frechet import frechet_distance

    return frechet_distance(real, fake)


def peer_frechet(real: Rows, fake: Rows) -> object:
    """Time torch-fidelity's FID on features."""
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    moments = [fid_features_to_statistics(torch.from_numpy(rows)) for rows in (real, fake)]
    return fid_statistics_to_metric(*moments, verbose=False)


def ours_kernel(real: Rows, fake: Rows) -> object:
    """Time our distance with its standard error."""
    from pipeline.metrics.kernel import kernel_distance

    return kernel_distance(real, fake)


def peer_kernel(real: Rows, fake: Rows) -> object:
    """Time torch-fidelity's KID on features, one subset of all rows."""
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    tensors = [torch.from_numpy(rows) for rows in (real, fake)]
    return kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=len(real), verbose=False)


def ours_nearest(_: Rows, fake: Rows) -> object:
    """Time our search of the nearest other rows."""
    from pipeline.metrics.neighbours import nearest_others

    return nearest_others(fake, NEIGHBOURS)


def peer_nearest(_: Rows, fake: Rows) -> object:
    """Time scikit-learn's search of the nearest other rows."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(fake).kneighbors()


WORKS: dict[str, Work] = {
    "ours prdc": ours_prdc,
    "prdc": peer_prdc,
    "ours vendi": ours_vendi,
    "vendi-score": peer_vendi,
    "vendi-score dual": peer_vendi_dual,
    "ours frechet": ours_frechet,
    "ours frechet, interval": ours_frechet_interval,
    "torch-fidelity FID": peer_frechet,
    "ours kernel": ours_kernel,
    "torch-fidelity KID": peer_kernel,
    "ours nearest": ours_nearest,
    "scikit-learn nearest": peer_nearest,
}
RATIOS = {
    "prdc": ("ours prdc", "prdc"),
    "vendi": ("ours vendi", "vendi-score"),
    "vendi_dual": ("ours vendi", "vendi-score dual"),
    "frechet": ("ours frechet", "torch-fidelity FID"),
    "frechet_interval": ("ours frechet, interval", "torch-fidelity FID"),
    "kernel": ("ours kernel", "torch-fidelity KID"),
    "nearest": ("ours nearest", "scikit-learn nearest"),
}
AT_SCALE = ("ours frechet, interval", "ours vendi", "ours kernel", "ours prdc")


def make_blocks(count: int, seed: int, block_rows: int = 10_000) -> Iterator[Rows]:
    """Draw features, (B, WIDTH) a block: variances that fall off, and a few clusters."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, WIDTH))
    spread = 1 / np.sqrt(1 + np.arange(WIDTH) / 20)
    random = np.random.default_rng(seed)
    for start in range(0, count, block_rows):
        rows = min(block_rows, count - start)
        drawn = random.normal(size=(rows, WIDTH))
        drawn += 0.7 * centres[random.integers(0, CLUSTERS, rows)]
        yield (drawn * spread).astype(np.float32)


def make(count: int, seed: int) -> Rows:
    """Draw all features, (count, WIDTH)."""
    return np.concatenate(list(make_blocks(count, seed)))


def measure(name: str, count: int, rows_file: Path | None = None) -> dict[str, Any]:
    """Measure one of `WORKS` in this process, fake rows from a file if there is one."""
    if rows_file is None:
        real, fake = make(count, 1), make(count, 2)
    else:
        real = make(SCALE_REAL, 1)
        fake = np.memmap(rows_file, np.float32, "r", shape=(count, WIDTH))
    small = slice(0, 200)
    seconds = []
    with contextlib.redirect_stdout(io.StringIO()):
        WORKS[name](real[small], fake[small])  # imports, and what is set up once
        ground = psutil.Process().memory_info().rss
        for _ in range(REPEATS.get(count, 1)):
            began = time.perf_counter()
            WORKS[name](real, fake)
            seconds.append(time.perf_counter() - began)
            if sum(seconds) > ENOUGH_SECONDS:
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_mib": max(0, peak - ground) / _MIB,
        "resident_mib": peak / _MIB,
    }


def in_a_process(
    name: str, count: int, limits: tuple[int, float], rows_file: Path | None = None
) -> dict[str, Any]:
    """Measure in a fresh process; `failed` says what became of one that did not finish."""
    command = [sys.executable, str(Path(__file__)), "--alone", f"{name}:{count}"]
    if rows_file is not None:
        command += ["--rows-file", str(rows_file)]
    most = int(limits[1] * 2**30)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limits[0], preexec_fn=limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"over {limits[0]} s"}
    if done.returncode:
        told = ("memory", "unable to allocate")
        if done.returncode < 0 or any(text in done.stderr.lower() for text in told):
            return {"failed": f"out of {limits[1]:g} GiB"}
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ratios of seconds, peer over ours, and our largest memory; None: a side failed."""
    seconds = {(run["name"], run["rows"]): run.get("seconds") for run in runs}
    figures: dict[str, Any] = {}
    for count in sorted({run["rows"] for run in runs}):
        for key, (ours, peer) in RATIOS.items():
            mine, theirs = seconds.get((ours, count)), seconds.get((peer, count))
            figures[f"ratio_{key}_{count}"] = theirs / mine if mine and theirs else None
        peaks = [
            run["peak_mib"]
            for run in runs
            if run["rows"] == count and run["name"].startswith("ours") and "peak_mib" in run
        ]
        figures[f"peak_mib_{count}"] = max(peaks, default=None)
    return {**figures, "cores": psutil.cpu_count(), "runs": runs}


def at_scale(limits: tuple[int, float]) -> dict[str, Any]:
    """Measure ours on many rows from a memory map."""
    figures: dict[str, Any] = {"rows": SCALE_ROWS, "real_rows": SCALE_REAL}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.bin"
        with path.open("wb") as file:
            for block in make_blocks(SCALE_ROWS, 2):
                block.tofile(file)
        for name in AT_SCALE:
            run = in_a_process(name, SCALE_ROWS, limits, path)
            figures[name] = run
            typer.echo(line({"name": name, "rows": SCALE_ROWS, **run}))
    figures["resident_mib"] = max(
        (figures[name].get("resident_mib", 0.0) for name in AT_SCALE), default=None
    )
    return figures


def line(run: dict[str, Any]) -> str:
    """Return one run as text."""
    if "failed" in run:
        return f"{run['name']:<24}{run['rows']:>10,}  {run['failed']}"
    return (
        f"{run['name']:<24}{run['rows']:>10,} {run['seconds']:>9.2f} s "
        f"{run['peak_mib']:>8.0f} MiB more, {run['resident_mib']:>6.0f} MiB in all"
    )


def table(runs: list[dict[str, Any]]) -> Table:
    """Lay seconds and memory out, a row a contender and a column a number of rows."""
    counts = sorted({run["rows"] for run in runs})
    made = Table("", *(f"{count:,} rows" for count in counts), title="Seconds (MiB)")
    for name in dict.fromkeys(run["name"] for run in runs):
        cells = []
        for count in counts:
            run = next((r for r in runs if (r["name"], r["rows"]) == (name, count)), {})
            text = f"{run['seconds']:.2f} ({run['peak_mib']:.0f})" if "seconds" in run else ""
            cells.append(text or run.get("failed", ""))
        made.add_row(name, *cells)
    return made


if __name__ == "__main__":
    typer.run(main)
