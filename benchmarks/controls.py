"""How often the gate is right about rows of a known worth.

`python benchmarks/controls.py --json FILE [--fashion DIR]`. In each repetition, with a split of its
own, rows of a known worth stand in the place of the synthetic ones: images with shuffled labels,
noise and exact copies of training rows, which the gate must refuse but for one case in 40 (a 95 %
interval has 2.5 % above), and held-out real rows, which it must accept. The sets are thinned digits
(8 px) and, with `--fashion DIR` (IDX files), Fashion-MNIST thinned to 100 to 10 a class, at 12 px
and with 2,000 other test images each time.
Repetitions that stand in FILE are not run again. `--quick` does two of digits, in two minutes.
"""

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import typer

from pipeline.data.augment import build_augmentation
from pipeline.data.store import make_samples, read_info, read_samples
from pipeline.data.store_writer import write_store
from pipeline.device import usable_cores
from pipeline.params import ArmName, EvaluateParams, Execution, PrepareParams
from pipeline.processes import begin_worker
from pipeline.stages.controls import CONTROLS, run_controls
from pipeline.stages.prepare import run as prepare
from pipeline.tracking.tracker import NullTracker

ARMS: tuple[ArmName, ...] = ("real_balanced", "real_augmented", "mixed")
STEPS, WIDTH = 150, 16  # of each classifier: half as wide as the default, for speed
MOST = {"train": 1_000_000, "validation": 500, "test": 2_000}  # rows


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    fashion: Annotated[Path | None, typer.Option(help="Folder with Fashion-MNIST's files.")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Of each set, with other splits.")] = 20,
    seeds: Annotated[int, typer.Option(min=2, help="Paired seeds of each verdict.")] = 4,
    quick: Annotated[bool, typer.Option(help="A small part, in two minutes.")] = False,
) -> None:
    """Run all repetitions and print how often the gate was right."""
    sets: dict[str, dict[str, Any]] = {"digits": {}}
    if fashion is not None:
        imbalance = {"max": 100, "min": 10}
        sets["fashion_mnist"] = {
            "source": "idx", "path": str(fashion), "imbalance": imbalance, "image_size_px": 12
        }  # fmt: skip
    found = _read(json_file)
    # One repetition a core: each is many small trainings on one thread.
    with ProcessPoolExecutor(usable_cores(), get_context("spawn"), begin_worker) as pool:
        waiting = {
            pool.submit(_repeat, {"seed": repetition, **settings}, seeds): f"{name}-{repetition}"
            for name, settings in sets.items()
            for repetition in range(2 if quick else repetitions)
            if f"{name}-{repetition}" not in found
        }
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            said = {row["name"]: row["decision"] for row in done.result()}
            typer.echo(f"{waiting[done]}: {said}", err=True)
            _write(json_file, found)
    typer.echo(json.dumps(_summary(found), indent=1))


def _repeat(settings_of_set: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    params = PrepareParams.model_validate(settings_of_set)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(params, {}, root / "prepare", NullTracker())
        dataset = root / "dataset"
        _thin(root / "prepare" / "dataset", dataset, params.seed)
        _plant(dataset, root / "accepted")
        settings = EvaluateParams(
            seed=params.seed,
            execution=Execution(device="cpu", workers=1),
            seeds=seeds,
            search_seeds=0,
            steps=STEPS,
            base_channels=WIDTH,
        )
        done = run_controls(
            settings, dataset, root / "accepted", root / "controls", NullTracker(), ARMS
        )
        return [vars(one) for one in done]


def _thin(dataset: Path, out: Path, seed: int) -> None:
    """Keep the train rows, and at most so many rows of each other split: other ones each time."""
    info, rows = read_info(dataset), read_samples(dataset, tuple(MOST))
    random = np.random.default_rng(seed)
    kept = []
    for split, most in MOST.items():
        members = np.flatnonzero(np.asarray(rows.splits) == split)
        kept.append(np.sort(random.permutation(members)[:most]))
    thinned = rows.take(np.concatenate(kept))
    write_store(out, thinned, info.classes, info.image_size_px, info.image_mode)


def _plant(dataset: Path, accepted: Path) -> None:
    """Put strongly augmented training rows where synthetic ones would be, their labels right."""
    info, rows = read_info(dataset), read_samples(dataset, ("train",))
    random = np.random.default_rng(0)
    each = int(np.bincount(rows.labels).max())
    chosen = np.concatenate(
        [random.choice(np.flatnonzero(rows.labels == k), each) for k in np.unique(rows.labels)]
    )
    images = build_augmentation("strong", horizontal_flip=False)(rows.images[chosen], 0)
    planted = make_samples(images, rows.labels[chosen], "train", "synthetic")
    write_store(accepted, planted, info.classes, info.image_size_px, info.image_mode)


def _summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in dict.fromkeys(key.rsplit("-", 1)[0] for key in found):
        runs = [rows for key, rows in found.items() if key.startswith(f"{name}-")]
        result[name] = {
            control: {
                "used": sum(
                    row["decision"] != "do_not_use"
                    for rows in runs
                    for row in rows
                    if row["name"] == control
                ),
                "of": len(runs),
                "mean_gain_points": float(
                    np.mean(
                        [r["gain_points"] for rows in runs for r in rows if r["name"] == control]
                    )
                ),
            }
            for control in CONTROLS
        }
    negatives = [name for name, (kind, _) in CONTROLS.items() if kind == "negative"]
    cells = [one[name] for one in result.values() for name in negatives]
    result["false_use"] = sum(one["used"] for one in cells) / max(1, sum(o["of"] for o in cells))
    return result


def _read(path: Path | None) -> dict[str, list[dict[str, Any]]]:
    if path is None or not path.exists():
        return {}
    repetitions: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["repetitions"]
    return repetitions


def _write(path: Path | None, found: dict[str, list[dict[str, Any]]]) -> None:
    if path is not None:
        text = json.dumps({**_summary(found), "repetitions": found}, indent=1)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
