"""How many classifiers a minute `evaluate` trains, against a plain loop of the same trainings.

`python benchmarks/evaluate_speed.py --json FILE`. The plain loop is what one writes first: for each
seed and arm, draw a batch, augment it image by image with albumentations, take a step, and predict
the test rows at the end, with as many threads as torch takes by itself. Both sides train the same
arms at the same settings, on thinned digits (8 px) and, with `--fashion DIR` (IDX files), on
thinned Fashion-MNIST (28 px). They take turns, and the ratio is the median over the turns.
`--quick` takes 100 steps each, in two minutes.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import typer

from pipeline.data.augment import build_augmentation
from pipeline.data.images import to_model
from pipeline.data.store import make_samples, read_samples
from pipeline.data.store_writer import write_store
from pipeline.device import usable_cores
from pipeline.downstream.arms import OF_BASE, OF_POOL, draw_rows, plan_arms
from pipeline.downstream.bench import Bench
from pipeline.downstream.fitting import Pair, classifier_steps, loss_of
from pipeline.downstream.mixing import mix_rows
from pipeline.downstream.scores import score
from pipeline.downstream.training import Sources, Trainers
from pipeline.features.classifier import (
    Batch,
    FitSettings,
    build_classifier,
    fit_classifier,
    predict,
)
from pipeline.params import DEFAULT_ARMS, ON_TOP_OF, EvaluateParams, PrepareParams
from pipeline.seeds import derive_seed, numpy_generator
from pipeline.stages.prepare import run as prepare
from pipeline.tracking.tracker import NullTracker

# The default arms, but for those that add other rows than synthetic ones.
_ADDS = ("smote", OF_BASE, *OF_POOL, *ON_TOP_OF)
ARMS = tuple(name for name in DEFAULT_ARMS if name not in _ADDS)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    fashion: Annotated[Path | None, typer.Option(help="Folder with Fashion-MNIST's files.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Times that both sides are timed.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each arm.")] = 4,
    quick: Annotated[bool, typer.Option(help="A small part, in two minutes.")] = False,
) -> None:
    """Time both sides and print how they compare."""
    sets = {"digits": PrepareParams()}
    if fashion is not None:
        sets["fashion_mnist"] = PrepareParams.model_validate(
            {"source": "idx", "path": str(fashion), "imbalance": {"max": 100, "min": 10}}
        )
    found = {
        name: _compare(name, settings, *((1, 2, 100) if quick else (turns, seeds, None)))
        for name, settings in sets.items()
    }
    result = {"cores": usable_cores(), **found["digits"], "sets": found}
    typer.echo(json.dumps(result, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _compare(
    name: str, settings: PrepareParams, turns: int, seeds: int, steps: int | None
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(settings, {}, root / "prepare", NullTracker())
        dataset, accepted = root / "prepare" / "dataset", root / "accepted"
        _plant(dataset, accepted)
        params = EvaluateParams(arms=ARMS, steps=steps)
        arms = [one.arm for one in plan_arms(ARMS, (0.5,), params.learning_rates)]
        pairs = [(arm, seed) for seed in range(seeds) for arm in arms]
        bench = Sources(dataset, accepted, root / "runs").bench(0)
        rows = read_samples(dataset, ("test",))
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        accuracy: dict[str, list[float]] = {"plain": [], "ours": []}
        for turn in range(turns):
            began = perf_counter()
            plain = [_plain(bench, params, pair) for pair in pairs]
            seconds["plain"].append(perf_counter() - began)
            sources = Sources(dataset, accepted, root / f"runs-{turn}")
            began = perf_counter()
            with Trainers(params, sources) as trainers:
                done = trainers.train(pairs, lambda done, of: None)
            seconds["ours"].append(perf_counter() - began)
            ours = [done[pair].test for pair in pairs]
            for side, predicted in (("plain", plain), ("ours", ours)):
                accuracy[side] += _accuracies(predicted, rows.labels, bench.classes)
            typer.echo(f"{name}: {seconds}", err=True)
        ratios = [a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
        return {
            "ratio_vs_plain_loop": statistics.median(ratios),
            "classifiers": len(pairs),
            "ours_per_minute": 60 * len(pairs) / statistics.median(seconds["ours"]),
            "plain_per_minute": 60 * len(pairs) / statistics.median(seconds["plain"]),
            "ours_balanced_accuracy": float(np.mean(accuracy["ours"])),
            "plain_balanced_accuracy": float(np.mean(accuracy["plain"])),
            "standard_error": float(np.std(accuracy["ours"]) / np.sqrt(len(accuracy["ours"]))),
        }


def _plant(dataset: Path, accepted: Path) -> None:
    """Put noisy copies of the training rows in the place of synthetic ones."""
    rows = read_samples(dataset, ("train",))
    random = np.random.default_rng(0)
    each = int(np.bincount(rows.labels).max()) * 2
    chosen = np.concatenate(
        [random.choice(np.flatnonzero(rows.labels == k), each) for k in np.unique(rows.labels)]
    )
    noisy = rows.images[chosen] + random.normal(0, 12, rows.images[chosen].shape)
    planted = make_samples(
        noisy.clip(0, 255).astype(np.uint8), rows.labels[chosen], "train", "synthetic"
    )
    mode = "L" if rows.images.shape[3] == 1 else "RGB"
    names = [str(k) for k in range(int(rows.labels.max()) + 1)]
    write_store(accepted, planted, names, rows.images.shape[1], mode)


def _plain(bench: Bench, params: EvaluateParams, pair: Pair) -> np.ndarray:
    """Train one classifier as one does without a thought for the others."""
    arm, seed = pair
    weights = derive_seed(params.seed, "evaluate", "weights", seed)
    model = build_classifier(
        bench.images.shape[3], bench.classes, params.base_channels, bench.images.shape[1], weights
    )
    steps = classifier_steps(params.steps, bench.real_images)
    augment = build_augmentation(arm.augmentation, params.horizontal_flip)

    def next_batch(step: int) -> Batch:
        random = numpy_generator(params.seed, "evaluate", "rows", seed, step)
        draw = draw_rows(arm.at_step(step, steps), bench.pools, params.batch_images, random)
        rows = draw.rows()
        images = augment(bench.images[rows], derive_seed(0, seed, step))
        weights = None
        if arm.added_weight != 1.0:
            weights = torch.from_numpy(np.where(draw.use_added, arm.added_weight, 1.0)).float()
        batch = Batch(to_model(images), torch.from_numpy(bench.labels[rows]), weights=weights)
        return batch if arm.mix == "none" else mix_rows(batch, arm.mix, arm.strength, random)

    settings = FitSettings(steps, arm.learning_rate, params.weight_decay, weights)
    loss = loss_of(arm, [len(rows) for rows in bench.pools.real])
    fit_classifier(model, next_batch, settings, loss=loss)
    predict(model, bench.validation)
    for corrupted in bench.corrupted if bench.corrupted is not None else ():
        predict(model, corrupted)
    return predict(model, bench.test).argmax(axis=1)


def _accuracies(predicted: Sequence[np.ndarray], labels: np.ndarray, classes: int) -> list[float]:
    return [score(labels, one, classes).balanced_accuracy for one in predicted]


if __name__ == "__main__":
    typer.run(main)
