"""What each filter, each way to choose and the planner bring a classifier: an ablation.

`python benchmarks/filters.py --artifacts DIR --json FILE --markdown FILE`. DIR holds the finished
stages prepare and train of a run (there may be several), and the candidates are those of its stage
synthesize where that is finished as well; without one, the embedded digits are prepared and trained
on first. One pool of candidates is drawn, the same for all; each way of choosing takes the same
number of images a class from it, and classifiers of the same seeds learn from real images and
these, half and half. The differences to taking the candidates as they come are paired by seed.
`fill` and `planned` have the same number of images in all, and are compared with each other. Test
images are seen here to compare the ways, so no way is tuned on its result for the set that a user
brings. Ways that stand in FILE already, of as many images and seeds, are not trained again.
`--quick` does a small part on digits, in two minutes.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from sampler_steps import train_digits

from pipeline.curation.curator import Curator
from pipeline.curation.diversity import choose
from pipeline.data.images import Images
from pipeline.data.store import Samples, concatenate, read_ids, read_info, read_samples
from pipeline.device import torch_threads, usable_cores
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.downstream.arms import Arm, make_pools
from pipeline.downstream.bench import Bench
from pipeline.downstream.fitting import train_pair
from pipeline.downstream.scores import score
from pipeline.downstream.tail import tail_classes
from pipeline.features.judge import Ensemble, fit_ensemble
from pipeline.hashing import digest_pixels
from pipeline.params import EvaluateParams, FilterName
from pipeline.synthesis.executors import ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.plan import wanted_images
from pipeline.synthesis.planner import plan_images
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.rounds import short_id
from pipeline.synthesis.shards import Shard

CPU = torch.device("cpu")
SHARD_IMAGES = 32
# Those that reject most come first: a long run that is stopped has them.
RULES: tuple[FilterName, ...] = (
    "labels", "realism", "off_class", "typical", "near_copies", "repeats", "artefacts", "copies"
)  # fmt: skip
ALL = tuple(rule for rule in RULES if rule != "typical")
COST = 0.03  # share of real rows that the rules may reject, as by default
STRICTER = (0.1, 0.25)
MIXED = Arm("mixed", "synthetic", 0.5, "light", True, "synthetic")
BASELINE = Arm("real_augmented", "baseline", None, "light", True)
POINTS = 100.0
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """What came of one way to choose.

    Attributes:
        name: of the way.
        images: synthetic images in all.
        good: share of candidates that it calls good; None where it judges none.
        accuracy: balanced accuracy on test rows by seed, in [0, 1].
        tail: mean recall of the tail classes by seed.
    """

    name: str
    images: int
    good: float | None
    accuracy: list[float]
    tail: list[float]


@dataclass(frozen=True)
class Pool:
    """Candidates of one generator, in the order of their indices, class by class."""

    images: Images
    labels: Rows


def main(
    artifacts: Annotated[
        list[Path] | None, typer.Option(help="Folder of a run's stages; may repeat.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=32, help="Drawn for each class.")] = 512,
    kept: Annotated[int, typer.Option(min=4, help="Images a class that each way takes.")] = 200,
    seeds: Annotated[int, typer.Option(min=2, help="Classifiers of each way.")] = 8,
    quick: Annotated[bool, typer.Option("--quick", help="A small part, in two minutes.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
) -> None:
    """Choose in every way, and say what the images were worth."""
    results: dict[str, Any] = {}
    if quick:
        candidates, kept, seeds = 96, 40, 2
    with tempfile.TemporaryDirectory() as scratch:
        folders = artifacts or []
        if not folders:
            with torch_threads(usable_cores()):
                folders = [train_digits(Path(scratch), 120 if quick else None)]
        for folder in folders:
            name = folder.name if artifacts else "digits"

            def keep(found: dict[str, Any], name: str = name) -> None:
                results[name] = found
                if json_file is not None:  # a long run that is stopped keeps what it has
                    json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

            made = folder / "synthesize"
            if (made / "manifest.json").exists():
                pool = read_pool(made)
            else:
                pool = draw_pool(folder, Path(scratch) / name, candidates)
            compare(folder, pool, kept, seeds, quick, keep, read_ways(json_file, name))
    text = "\n\n".join(table(name, found) for name, found in results.items())
    typer.echo(text)
    if markdown is not None:
        markdown.write_text(text + "\n", encoding="utf-8")


def draw_pool(folder: Path, scratch: Path, candidates: int) -> Pool:
    """Draw so many candidates of each class, as the stage synthesize does by default."""
    generator = load_generator(folder / "train" / "generator", CPU)
    settings = SamplerSettings("dpmsolver++", 20, Guidance(1.5))
    recipe = Recipe("as asked", folder / "train" / "generator", generator.digest, settings)
    workers = usable_cores()
    job = ShardJob((recipe,), 0, "cpu", workers=workers, shard_images=SHARD_IMAGES)
    shards = [
        Shard(label, number, SHARD_IMAGES)
        for label in range(len(generator.spec.classes))
        for number in range(math.ceil(candidates / SHARD_IMAGES))
    ]
    with ThreadExecutor(job.start, scratch, workers) as executor:
        parts = [images for _, images in in_order(executor, shards, scratch, lambda shard: None)]
    return Pool(np.concatenate(parts), np.repeat([shard.label for shard in shards], SHARD_IMAGES))


def read_pool(folder: Path) -> Pool:
    """Return the candidates of a finished stage synthesize, accepted or not."""
    rows = [read_samples(folder / name) for name in ("accepted", "rejected")]
    every = concatenate([part for part in rows if len(part)])
    order = np.lexsort((every.extra["index"], every.labels))
    return Pool(every.images[order], every.labels[order])


def compare(
    folder: Path,
    pool: Pool,
    kept: int,
    seeds: int,
    quick: bool,
    keep: Callable[[dict[str, Any]], None],
    known: Mapping[str, Found],
) -> None:
    """Hand on the figures of one set, after each way anew; `known` ways are not trained again."""
    dataset = folder / "prepare" / "dataset"
    info = read_info(dataset)
    training, validation, test = (
        read_samples(dataset, (split,)) for split in ("train", "validation", "test")
    )
    with torch_threads(usable_cores()):
        ensemble = fit_ensemble(training, len(info.classes), 250, 3, 0, CPU, lambda step: None)
    real_ids = read_ids(dataset)
    params = EvaluateParams(seeds=seeds)
    trial = Trial(training, test, pool, len(info.classes), params)

    def judge(
        rules: Sequence[FilterName], cost: float = COST
    ) -> tuple[Rows, npt.NDArray[np.float32]]:
        return good_rows(training, validation, ensemble, rules, cost, real_ids, pool)

    every = np.arange(len(pool.labels))
    found: list[Found] = []

    def add(name: str, rows: Rows | None, share: float | None) -> None:
        one = known.get(name)
        if one is None or (one.images, len(one.accuracy)) != (
            0 if rows is None else len(rows),
            seeds,
        ):
            one = trial.run(name, rows, share)
        found.append(one)
        keep(
            {
                "kept": kept,
                "candidates": len(pool.labels),
                "training": len(training),
                "test": len(test),
                "ways": [{**asdict(one), **differences(one, found)} for one in found],
            }
        )

    def first(rows: Rows, count: int = kept) -> Rows:
        return np.concatenate(
            [rows[pool.labels[rows] == k][:count] for k in range(len(info.classes))]
        )

    add("real images alone", None, None)
    add("as they come", first(every), None)
    for cost in () if quick else STRICTER:
        for name, rules in (("labels alone", ("labels",)), ("all", ALL)):
            good, _ = judge(rules, cost)
            add(f"{name}, at a cost of {cost:.0%}", first(good), len(good) / len(every))
    good, features = judge(ALL)
    share = len(good) / len(every)
    add("all", first(good), share)
    for how in ("diverse", "k_centre"):
        chosen = [
            good[own][choose(features[own], kept, how)]
            for own in (np.flatnonzero(pool.labels[good] == k) for k in range(len(info.classes)))
        ]
        add(f"all, {how}", np.concatenate(chosen), share)
    largest = dict(zip(info.classes, np.bincount(training.labels).tolist(), strict=True))
    fill = wanted_images(largest, "fill")
    filled = np.concatenate(
        [good[pool.labels[good] == k][: fill[name]] for k, name in enumerate(info.classes)]
    )
    add("fill", filled, share)
    pilot = first(good)
    plan = plan_images(
        info.classes,
        training,
        validation,
        pool.images[pilot],
        pool.labels[pilot],
        len(filled),
        2.0,
        EvaluateParams(seeds=2 if quick else 4, seed=1),
        CPU,
        usable_cores(),
        lambda done, total: None,
    )
    planned = np.concatenate(
        [pilot[pool.labels[pilot] == k][:count] for k, count in enumerate(plan.images)]
    )
    add("planned", planned, share)
    for rule in ("labels", "near_copies") if quick else RULES:
        rows, _ = judge((rule,))
        add(f"{rule} alone", first(rows), len(rows) / len(every))


def read_ways(json_file: Path | None, name: str) -> dict[str, Found]:
    """Return the ways of one set in a file of an earlier run, by name; none where there is none."""
    if json_file is None or not json_file.exists():
        return {}
    ways = json.loads(json_file.read_text(encoding="utf-8")).get(name, {}).get("ways", [])
    fields = Found.__dataclass_fields__
    return {way["name"]: Found(**{key: way[key] for key in fields}) for way in ways}


def good_rows(
    training: Samples,
    validation: Samples,
    ensemble: Ensemble,
    rules: Sequence[FilterName],
    cost: float,
    real_ids: Sequence[str],
    pool: Pool,
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return which candidates pass the rules, and their features."""
    curator = Curator(training, validation, ensemble, rules=rules, quantile=cost, real_ids=real_ids)
    good: list[int] = []
    features: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(pool.labels), SHARD_IMAGES):
        rows = slice(start, start + SHARD_IMAGES)
        ids = [short_id(digest_pixels(image)) for image in pool.images[rows]]
        judged = curator.judge(pool.images[rows], pool.labels[rows], ids, None)
        mask = np.asarray([reason == "accepted" for reason in judged.reasons])
        good += (start + np.flatnonzero(mask)).tolist()
        features.append(judged.features[mask])
    return np.asarray(good, np.int64), np.concatenate(features)


class Trial:
    """Trains the classifiers of one way to choose, as many at a time as there are cores."""

    def __init__(
        self, training: Samples, test: Samples, pool: Pool, classes: int, params: EvaluateParams
    ) -> None:
        self._training, self._test, self._pool = training, test, pool
        self._classes, self._params = classes, params
        self._tail = list(tail_classes(np.bincount(training.labels, minlength=classes).tolist()))

    def run(self, name: str, rows: Rows | None, good: float | None) -> Found:
        """Train with the candidates `rows`; None: with real images alone."""
        bench, arm = self._bench(rows), BASELINE if rows is None else MIXED

        def train(seed: int) -> npt.NDArray[np.int64]:
            with torch_threads(1):
                return train_pair(bench, self._params, (arm, seed), CPU).test

        with ThreadPoolExecutor(usable_cores()) as threads:
            predicted = list(threads.map(train, range(self._params.seeds)))
        scores = [score(self._test.labels, one, self._classes) for one in predicted]
        found = Found(
            name,
            0 if rows is None else len(rows),
            good,
            [one.balanced_accuracy for one in scores],
            [float(one.recall[self._tail].mean()) for one in scores],
        )
        typer.echo(f"{name}: {POINTS * np.mean(found.accuracy):.2f}", err=True)
        return found

    def _bench(self, rows: Rows | None) -> Bench:
        chosen = np.zeros(0, np.int64) if rows is None else rows
        labels = np.concatenate([self._training.labels, self._pool.labels[chosen]])
        return Bench(
            images=np.concatenate([self._training.images, self._pool.images[chosen]]),
            labels=labels,
            pools=make_pools(labels, np.arange(len(labels)) >= len(self._training), self._classes),
            validation=self._test.images[:0],
            test=self._test.images,
            classes=self._classes,
            real_images=len(self._training),
        )


def differences(one: Found, found: Sequence[Found]) -> dict[str, float | None]:
    """Return the gains in points over what a way is to be compared with, and standard errors."""
    base = {"planned": "fill"}.get(one.name, "as they come")
    other = next((way for way in found if way.name == base), None)
    if other is None or other is one:
        return {"gain_points": None, "error_points": None, "tail_gain_points": None}
    gap = POINTS * (np.asarray(one.accuracy) - np.asarray(other.accuracy))
    tail = POINTS * (np.asarray(one.tail) - np.asarray(other.tail))
    return {
        "gain_points": float(gap.mean()),
        "error_points": float(gap.std(ddof=1)) / math.sqrt(len(gap)),
        "tail_gain_points": float(tail.mean()),
    }


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return a Markdown table of one set."""
    lines = [
        f"### {name}: {found['training']:,} training images, {found['test']:,} test images",
        "",
        "| way | images | good | balanced accuracy | gain | s.e. | tail gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in found["ways"]:
        cells = [
            way["name"],
            f"{way['images']:,}",
            "" if way["good"] is None else f"{way['good']:.0%}",
            f"{POINTS * np.mean(way['accuracy']):.2f}",
            *(
                "" if way[key] is None else f"{way[key]:{form}}"
                for key, form in (
                    ("gain_points", "+.2f"),
                    ("error_points", ".2f"),
                    ("tail_gain_points", "+.2f"),
                )
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
