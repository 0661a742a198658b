"""What Replenish gains over the best honest baseline, regime by regime, with the shipped defaults.

`python benchmarks/gain.py --json FILE [--quick] [--work DIR] [--only NAME,...]`. A regime is a set
of labelled images: how many, how uneven, with or without unlabelled ones. Each is run from images
to verdict with the defaults of params.yaml, on splits of its own, and the verdicts are pooled. What
it cost stands beside what it gained, and beside what more labels bring.

`--quick` does one regime on one split with four seeds, from a base of 1,500 steps: that of the
claim of docs/results.md where `--mnist DIR` is given, else Fashion-MNIST with five images a class
where `--fashion DIR` is, else the embedded digits, which claim nothing. Without it 10 seeds on 3
splits of every regime whose files are at hand: `--fashion DIR` and `--mnist DIR` (IDX files),
`--emoji DIR` (npm packages emoji-datasource-*). Where a generator starts from another set, its
weights alone are at hand; in regimes named `-images` that set's images are too, and a baseline sees
them. With `--work`, what is finished there is not done again.
`--regimes FILE` puts what was found into the list that `recipe: auto` says its expectation from
(pipeline/recipe/regimes.json), which is of the shipped defaults: not with `--quick` or `--set`.

The splits have numbers of their own, from 100 on: defaults were chosen while looking at the first
ones. The regime that stands on top is the one that looks best here, so its interval is a little
too narrow; name it beforehand with `--only` to claim it.
"""

import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import typer
from gain_results import SECONDS, add_regimes, result, summary
from gain_sets import (
    BASES,
    REGIMES,
    Base,
    Folders,
    Regime,
    files_needed,
    hasty,
    pool_folder,
    source_path,
)

from pipeline.errors import StageError
from pipeline.folders import read_manifest
from pipeline.params import Params, StageName
from pipeline.stages.running import run_stage
from pipeline.tracking.tracker import NullTracker

STAGES: tuple[StageName, ...] = ("prepare", "pretrain", "train", "synthesize", "evaluate")
SEEDS, SPLITS, FIRST_SPLIT = 10, 3, 100
QUICK = ("mnist-5-base", "fashion-5-base", "digits")  # the first one whose files are at hand
_NO_POOL = str(Path(os.devnull) / "none")


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
    emoji: Annotated[
        Path | None,
        typer.Option(help="Folder with emoji-datasource-*.", exists=True, file_okay=False),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Paired seeds of a verdict.")] = None,
    splits: Annotated[int | None, typer.Option(min=1, help="Splits of a regime.")] = None,
    regimes: Annotated[
        Path | None, typer.Option(help="List of the recipe's regimes, to put these in.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the runs, kept.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE beside the defaults.")
    ] = None,
) -> None:
    """Run the regimes and write what each one gained."""
    if regimes is not None and (quick or settings):
        raise typer.BadParameter("--regimes: of the shipped defaults; leave out --quick and --set")
    folders = {"fashion": fashion, "mnist": mnist, "emoji": emoji}
    wanted = [one.strip() for one in only.split(",") if one.strip()]
    if quick and not wanted:
        by_name = {one.name: one for one in REGIMES}
        at_hand = {name for name, folder in folders.items() if folder is not None}
        wanted = [next(one for one in QUICK if files_needed(by_name[one]) <= at_hand)]
    unknown = sorted(set(wanted) - {one.name for one in REGIMES})
    if unknown:
        names = ", ".join(one.name for one in REGIMES)
        raise typer.BadParameter(f"{unknown[0]}: unknown regime; there are {names}")
    chosen = [one for one in REGIMES if not wanted or one.name in wanted]
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        root = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for regime in chosen:
            missing = sorted(one for one in files_needed(regime) if folders[one] is None)
            if missing:
                if wanted:
                    raise typer.BadParameter(f"{regime.name}: give --{missing[0]} DIR")
                typer.echo(f"{regime.name}: left out; give --{missing[0]} DIR", err=True)
                continue
            base = pool = None
            if regime.base is not None and regime.pool:
                pool = pool_folder(BASES[regime.base], folders, root)
            elif regime.base is not None:
                wanted_base = BASES[regime.base]
                base = train_base(hasty(wanted_base) if quick else wanted_base, folders, root)
            found.append(
                run_regime(
                    regime,
                    source_path(regime, folders, root),
                    root / regime.name,
                    seeds or (4 if quick else SEEDS),
                    splits or (1 if quick else SPLITS),
                    settings or [],
                    base,
                    pool,
                )
            )
            _write(json_file, found)
            if regimes is not None:
                kept = add_regimes(regimes, found)
                typer.echo(f"{regimes}: stays as it is of {kept or 'none of them'}", err=True)
    typer.echo(json.dumps(summary(found), indent=1))


def train_base(base: Base, folders: Folders, root: Path) -> Path:
    """Train a generator on all images of a labelled set, and return its run's folder."""
    folder = root / f"base-{base.name}"
    prepare = {"imbalance": None, "pool_path": _NO_POOL, **base.prepare}
    path = source_path(base, folders, root)
    if path is not None:
        prepare["path"] = str(path)
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
    pool: Path | None = None,
) -> dict[str, Any]:
    """Run a regime on each split, and return what it gained and cost.

    Args:
        regime: which.
        files: its images, where they are not embedded.
        root: folder of its runs.
        seeds: paired seeds of a split.
        splits: how many.
        settings: SECTION.KEY=VALUE beside the defaults.
        base: run of the generator that its own starts from.
        pool: folder of unlabelled images from elsewhere.
    """
    if base is not None:
        start = base if regime.images else base / "train"
        settings = ['pretrain.base="run"', f"pretrain.path={json.dumps(str(start))}", *settings]
    if pool is not None:
        settings = [f"prepare.pool_path={json.dumps(str(pool))}", *settings]
    runs = []
    for split in range(FIRST_SPLIT, FIRST_SPLIT + splits):
        folder = root / f"split-{split}"
        params = _params(regime, files, seeds, split, settings)
        for name in STAGES:
            seconds = _timed(name, params, folder)
            typer.echo(f"{regime.name} {split}: {name} {seconds:,.0f} s", err=True)
        runs.append(folder)
    return result(regime, runs, base)


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
        "prepare": {"pool_path": _NO_POOL, **regime.prepare},
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
    """Run a stage and keep its seconds; one that is found finished keeps those that it took.

    One that goes on where it was killed has the seconds of its last part alone.
    """
    began = time.monotonic()
    run_stage(stage, params, folder, _Telling())
    seconds = time.monotonic() - began
    path = folder / SECONDS
    kept = json.loads(path.read_text()) if path.exists() else {}
    digest = _digest(folder / stage)
    if kept.get(stage, {}).get("digest") != digest:
        kept[stage] = {"digest": digest, "seconds": round(seconds, 1)}
        path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return seconds


def _digest(folder: Path) -> str:
    """Return that of a stage's results."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder}: no manifest; run the stage first")
    return manifest.digest


def _write(path: Path | None, found: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps(summary(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
