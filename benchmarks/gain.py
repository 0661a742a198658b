"""What Replenish gains over the best honest baseline, regime by regime, with the shipped defaults.

`python benchmarks/gain.py --json FILE [--quick] [--work DIR] [--only NAME,...]`. A regime is a set
of labelled images: how many, how uneven, with or without unlabelled ones. Each is run from images
to verdict with the defaults of params.yaml, on splits of its own, and the verdicts are pooled. What
it cost stands beside what it gained, and beside what more labels bring.

`--quick` does one regime, the embedded digits, on one split, in under 30 minutes on two cores.
Without it 10 seeds on 3 splits of every regime whose files are at hand: `--fashion DIR` and
`--mnist DIR` (IDX files). With `--work`, what is finished there is not done again.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import typer

from pipeline.downstream.pooled import pooled_verdict, read_run
from pipeline.params import Params, StageName
from pipeline.readers.arrays import write_arrays
from pipeline.readers.idx_files import find_idx, read_idx
from pipeline.stages.running import run_stage
from pipeline.tracking.tracker import NullTracker

STAGES: tuple[StageName, ...] = ("prepare", "pretrain", "train", "synthesize", "evaluate")
SEEDS, SPLITS = 10, 3
QUICK = "digits"
SIDE_PX = 16  # of Fashion-MNIST and MNIST: a comparison of 28 px takes three times as long
_MARGIN_PX = 4  # of MNIST's images, around the box that its makers fitted each digit into
SECONDS = "seconds.json"  # of each stage, in a run's folder
_RESAMPLES, _CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Regime:
    """A set of images in a certain scarcity.

    Attributes:
        name: in the results.
        files: which folder it needs: fashion, mnist, or none.
        prepare: params of the stage beside the defaults.
        base: set of the generator that this one starts from, of `BASES`; no baseline sees it.
    """

    name: str
    files: str | None = None
    prepare: dict[str, Any] = field(default_factory=dict)
    base: str | None = None


@dataclass(frozen=True)
class Base:
    """A labelled set that a generator is trained on, for another set to start from.

    Attributes:
        name: of the folder of its run.
        files: which folder it needs, or none.
        prepare: params of the stage beside the defaults.
        train: likewise.
    """

    name: str
    files: str | None
    prepare: dict[str, Any]
    train: dict[str, Any]


_CUT = {"source": "npz", "image_size_px": 8, "validation_fraction": 0.02}
BASES = {
    "mnist": Base("mnist", "mnist", _CUT, {"steps": 1500, "checks": 3}),
    "digits": Base("digits", None, {"source": "digits", "test_fraction": 0.02}, {}),
}


def _of(files: str, most: int, least: int, pool: bool) -> Regime:
    name = f"{files}-{most}" + (f"-to-{least}" if least < most else "") + ("-pool" if pool else "")
    return Regime(
        name,
        files,
        {
            "source": "idx",
            "image_size_px": SIDE_PX,
            "validation_fraction": 0.05,
            "imbalance": {"max": most, "min": least},
            "keep_pool": pool,
        },
    )


def _digits(most: int, least: int, base: str | None) -> Regime:
    name = f"digits-{most}" + (f"-to-{least}" if least < most else "")
    thinned = {"imbalance": {"max": most, "min": least}, "keep_pool": base is None}
    return Regime(f"{name}-base" if base else f"{name}-pool", None, thinned, base)


def _mnist_on_digits(each: int) -> Regime:
    """MNIST in 8 px, whose generator starts from the embedded digits, of other writers."""
    prepare = {**_CUT, "imbalance": {"max": each, "min": each}, "keep_pool": False}
    return Regime(f"mnist-{each}-base", "mnist", prepare, "digits")


REGIMES = (
    Regime("digits"),
    Regime("digits-no-pool", None, {"keep_pool": False}),
    *(
        _digits(most, least, base)
        for base in ("mnist", None)
        for most, least in ((5, 5), (10, 10), (25, 25), (30, 3), (60, 6))
    ),
    *(_mnist_on_digits(each) for each in (5, 10, 25)),
    *(
        _of(files, most, least, pool)
        for files in ("fashion", "mnist")
        for most, least in ((10, 10), (25, 25), (100, 10), (100, 100))
        for pool in (True, False)
    ),
)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One regime, one split.")] = False,
    only: Annotated[str, typer.Option(help="Names of regimes, with commas; all of them.")] = "",
    fashion: Annotated[
        Path | None,
        typer.Option(help="Folder with Fashion-MNIST's files.", exists=True, file_okay=False),
    ] = None,
    mnist: Annotated[
        Path | None,
        typer.Option(help="Folder with MNIST's files.", exists=True, file_okay=False),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Paired seeds of a verdict.")] = None,
    splits: Annotated[int | None, typer.Option(min=1, help="Splits of a regime.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the runs, kept.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE beside the defaults.")
    ] = None,
) -> None:
    """Run the regimes and write what each one gained."""
    folders = {"fashion": fashion, "mnist": mnist}
    wanted = [one.strip() for one in only.split(",") if one.strip()] or ([QUICK] if quick else [])
    unknown = sorted(set(wanted) - {one.name for one in REGIMES})
    if unknown:
        names = ", ".join(one.name for one in REGIMES)
        raise typer.BadParameter(f"{unknown[0]}: unknown regime; there are {names}")
    chosen = [one for one in REGIMES if not wanted or one.name in wanted]
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        root = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for regime in chosen:
            needed = {regime.files, BASES[regime.base].files if regime.base else None} - {None}
            missing = sorted(str(one) for one in needed if folders[str(one)] is None)
            if missing:
                typer.echo(f"{regime.name}: left out; give --{missing[0]} DIR", err=True)
                continue
            base = None
            if regime.base is not None:
                base = train_base(BASES[regime.base], folders, root)
            files = folders.get(regime.files or "")
            if regime.prepare.get("source") == "npz":
                files = _cut(files, root)
            found.append(
                run_regime(
                    regime,
                    files,
                    root / regime.name,
                    seeds or (4 if quick else SEEDS),
                    splits or (1 if quick else SPLITS),
                    settings or [],
                    base,
                )
            )
            _write(json_file, found)
    typer.echo(json.dumps(summary(found), indent=1))


def train_base(base: Base, folders: Mapping[str, Path | None], root: Path) -> Path:
    """Train a generator on all images of a labelled set, and return its run's folder."""
    folder = root / f"base-{base.name}"
    prepare = {"imbalance": None, **base.prepare}
    if base.files is not None:
        prepare["path"] = str(_cut(folders[base.files], root))
    params = Params.model_validate(
        {"prepare": prepare, "pretrain": {"base": "none"}, "train": base.train}
    )
    for stage in STAGES[:3]:
        _timed(stage, params, folder)
    return folder


def run_regime(
    regime: Regime,
    files: Path | None,
    root: Path,
    seeds: int,
    splits: int,
    settings: list[str],
    base: Path | None = None,
) -> dict[str, Any]:
    """Run a regime on each split, and return what it gained and cost."""
    if base is not None:
        settings = ['pretrain.base="run"', f"pretrain.path={json.dumps(str(base))}", *settings]
    runs = []
    for split in range(splits):
        folder = root / f"split-{split}"
        params = _params(regime, files, seeds, split, settings)
        for name in STAGES:
            seconds = _timed(name, params, folder)
            typer.echo(f"{regime.name} {split}: {name} {seconds:,.0f} s", err=True)
        runs.append(folder)
    return result(regime.name, runs, base)


def _cut(files: Path | None, root: Path) -> Path:
    """Return MNIST as an .npz file below `root`, cut to the 20 x 20 px that hold the digit.

    scikit-learn's digits fill their images; a base whose digits have a wide margin knows them
    badly (28 % of its images were what they should be, by a classifier of all digits).
    """
    path = root / "mnist-cut.npz"
    if files is None or path.exists():
        return path
    images, labels = [], []
    splits: list[str | None] = []
    inner = slice(_MARGIN_PX, -_MARGIN_PX)
    for name, split in (("train", None), ("t10k", "test")):
        pixels, marks = find_idx(files, name, "images", 3), find_idx(files, name, "labels", 1)
        if pixels is None or marks is None:
            raise typer.BadParameter(f"{files}: no IDX files of {name}")
        images.append(read_idx(pixels, 3)[:, inner, inner])
        labels.append(read_idx(marks, 1).astype(np.int64))
        splits += [split] * len(labels[-1])
    root.mkdir(parents=True, exist_ok=True)
    names = [str(digit) for digit in range(10)]
    write_arrays(path, np.concatenate(images), np.concatenate(labels), names, splits)
    return path


def result(name: str, runs: list[Path], base: Path | None = None) -> dict[str, Any]:
    """Return what the finished runs of a regime gained, in points, and what they cost.

    Args:
        name: of the regime.
        runs: artifacts folders, one a split.
        base: that of the generator that they start from, whose time counts apart.
    """
    verdicts = [json.loads((run / "evaluate" / "verdict.json").read_text()) for run in runs]
    one = verdicts[0]
    if len(runs) > 1:
        pooled = pooled_verdict(
            [read_run(run, verdict) for run, verdict in zip(runs, verdicts, strict=True)],
            _RESAMPLES,
            _CONFIDENCE,
            0,
        )
    else:
        pooled = one
    minutes = sum(_seconds(run) for run in runs) / 60 / len(runs)
    gain = pooled["gain_points"]
    facts = json.loads((runs[0] / "prepare" / "recipe.json").read_text())["facts"]
    return {
        "name": name,
        "facts": facts,
        "decision": pooled["decision"],
        "way": pooled["best_synthetic"],
        "best_baseline": pooled["best_baseline"],
        "gain_points": gain,
        "gain_low": pooled["interval_points"][0],
        "gain_high": pooled["interval_points"][1],
        "tail_gain_points": pooled["tail_gain_points"],
        "tail_low": pooled["tail_interval_points"][0],
        "tail_high": pooled["tail_interval_points"][1],
        "arms": {
            arm["name"]: {
                "test": arm["test_balanced_accuracy"],
                "gain_points": arm["gain_points"],
            }
            for arm in pooled["arms"]
        },
        "minutes": minutes,
        "base_minutes": None if base is None else _seconds(base) / 60,
        "minutes_per_point": minutes / gain if gain > 0 else None,
        "labels": _labels(one),
        "seeds": one["n"]["seeds"],
        "splits": len(runs),
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the regime that gained most for sure, and those of all."""
    if not found:
        return {"regimes": []}
    best = max(found, key=lambda one: one["gain_low"])
    keys = ("gain_points", "gain_low", "tail_gain_points", "best_baseline")
    return {"regime": best["name"], **{key: best[key] for key in keys}, "regimes": found}


def _labels(verdict: dict[str, Any]) -> dict[str, float] | None:
    """Return what the last labelled images brought, by the learning curve of the first split."""
    curve = verdict.get("learning_curve")
    if curve is None or len(curve["points"]) < 2:
        return None
    before, last = curve["points"][-2:]
    images = last["real_images"] - before["real_images"]
    points = 100 * (last["balanced_accuracy"] - before["balanced_accuracy"])
    return {"images": images, "points": points}


class _Telling(NullTracker):
    def note(self, message: str) -> None:
        """Say one line."""
        typer.echo(message, err=True)


def _params(
    regime: Regime, files: Path | None, seeds: int, split: int, settings: list[str]
) -> Params:
    data: dict[str, Any] = {
        "seed": split,
        # No pool but that of the regime, whatever lies in the working folder.
        "prepare": {"pool_path": str(Path(os.devnull) / "none"), **regime.prepare},
        "evaluate": {"seeds": seeds},
    }
    if files is not None:
        data["prepare"]["path"] = str(files)
    for one in settings:
        key, _, text = one.partition("=")
        section, _, name = key.partition(".")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name:
            data.setdefault(section, {})[name] = value
        else:
            data[section] = value
    return Params.model_validate(data)


def _timed(stage: StageName, params: Params, folder: Path) -> float:
    """Run a stage and keep its seconds; one that is found finished keeps those that it took."""
    began = time.monotonic()
    run_stage(stage, params, folder, _Telling())
    seconds = time.monotonic() - began
    path = folder / SECONDS
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[stage] = max(kept.get(stage, 0.0), round(seconds, 1))
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return seconds


def _seconds(folder: Path) -> float:
    return float(sum(json.loads((folder / SECONDS).read_text()).values()))


def _write(path: Path | None, found: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(summary(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
