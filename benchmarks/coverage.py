"""How often the intervals of the verdict are wrong, and how often they find a gain, by simulation.

`python benchmarks/coverage.py --json FILE`, or `--quick` for few repetitions. The tables in
docs/statistics.md come from here. A simulated classifier is right about an image where

    level + ease of the image + what its arm makes of the image + what its arm's seed does to all
    images + what the seed does to the class + noise of the seed at the image > 0

with normal terms, so that the true accuracy, and the shift that gives a wanted gain, are known.
Arms without a gain have equal accuracy in the population of images and seeds, and still differ on
the images at hand. Rates are those of one side: 2.5 % is meant for a 95 % interval.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import norm

from pipeline.downstream.compare import Interval, SplitOutcomes, paired_gains
from pipeline.downstream.power import discordance, minimum_detectable
from pipeline.downstream.sequential import decided, level_at, looks

RESAMPLES = 300
LOOK_RESAMPLES = 1000  # early looks need ends far out
CONFIDENCE = 0.95
TAIL = (0, 1)


@dataclass(frozen=True)
class World:
    """What is simulated; all deviations are those of the normal terms.

    Attributes:
        images: test images of each class.
        seeds: repetitions.
        arms: arms beside the baseline.
        splits: splits of the data, each with about half of the test images.
        accuracy: of every classifier without a gain.
        lasting_sd: what an arm makes of an image, whatever the seed.
        class_sd: what a seed does to a class.
        common_sd: what a seed does to all images.
        noise_sd: what a seed does to one image.
        split_sd: what an arm's generator of one split does to all images.
        groups: groups of images of each class; None is none.
        group_sd: what an arm makes of a group, whatever the seed.
        gain_points: true gain of the first arm in balanced accuracy.
        class_gain_points: true gain of the first arm in each class beside that; empty is none.
    """

    images: tuple[int, ...]
    seeds: int
    arms: int = 4
    splits: int = 1
    accuracy: float = 0.8
    lasting_sd: float = 0.4
    class_sd: float = 0.25
    common_sd: float = 0.1
    noise_sd: float = 0.5
    split_sd: float = 0.0
    groups: int | None = None
    group_sd: float = 0.0
    gain_points: float = 0.0
    class_gain_points: tuple[float, ...] = ()


def simulate(world: World, random: np.random.Generator) -> list[SplitOutcomes]:
    """Return the outcomes of a baseline "0" and arms "1" and on, over the splits."""
    labels = np.repeat(np.arange(len(world.images)), world.images)
    arms, total = world.arms + 1, len(labels)
    parts = (
        world.lasting_sd,
        world.class_sd,
        world.common_sd,
        world.noise_sd,
        world.split_sd,
        world.group_sd,
    )
    spread = float(np.sqrt(1.0 + sum(sd**2 for sd in parts)))
    points = np.asarray(world.class_gain_points or (0.0,) * len(world.images)) + world.gain_points
    shift = norm.ppf(world.accuracy + points / 100) - norm.ppf(world.accuracy)  # (K,)
    ease = random.normal(0, 1, total) + spread * norm.ppf(world.accuracy)
    ease = ease + random.normal(0, world.lasting_sd, (arms, 1, total))
    ease[1] += spread * shift[labels]
    groups: list[str] | None = None
    if world.groups is not None:
        group = labels * world.groups + np.arange(total) % world.groups
        groups = [f"group {number}" for number in group]
        of_group = random.normal(0, world.group_sd, (arms, len(world.images) * world.groups))
        ease += of_group[:, None, group]
    found = []
    for _ in range(world.splits):
        shape = (arms, world.seeds)
        value = ease + random.normal(0, world.noise_sd, (*shape, total))
        value += random.normal(0, world.common_sd, (*shape, 1))
        if world.split_sd:
            value += random.normal(0, world.split_sd, (arms, 1, 1))
        by_class = random.normal(0, world.class_sd, (*shape, len(world.images)))
        right = value + by_class[:, :, labels] > 0
        chosen = np.arange(total)
        if world.splits > 1:  # half of each class, five at least
            order = random.permutation(total)
            rank = np.empty(total, dtype=np.int64)
            for k, count in enumerate(world.images):
                mine = order[labels[order] == k]
                rank[mine] = np.arange(count)
            chosen = np.flatnonzero(rank < np.maximum(np.array(world.images) // 2, 5)[labels])
        found.append(
            SplitOutcomes(
                labels=labels[chosen],
                ids=np.array([f"{i:06d}" for i in chosen]),
                correct={str(arm): right[arm][:, chosen] for arm in range(arms)},
                groups=None if groups is None else [groups[i] for i in chosen],
            )
        )
    return found


def error_rates(world: World, trials: int, seed: int) -> dict[str, Any]:
    """Return one-sided error rates of all intervals where no arm gains anything, in percent.

    `width` is the median half-width over 1.96 true standard errors: 1 is the best there can be.
    """
    random = np.random.default_rng(seed)
    others = [str(arm) for arm in range(1, world.arms + 1)]
    wrong: dict[str, list[float]] = {
        name: [] for name in ("gain", "arms at once", "tail", "class", "classes at once")
    }
    values, halves = [], []
    for _ in range(trials):
        splits = simulate(world, random)
        gains = paired_gains(
            splits, "0", others, len(world.images), TAIL, RESAMPLES, CONFIDENCE, random
        )
        every = list(gains.values())
        wrong["arms at once"].append(any(decided(gain.simultaneous) for gain in every))
        for gain in every:
            overall = gain.balanced_accuracy
            wrong["gain"].append(decided(overall))
            wrong["tail"].append(decided(gain.tail))
            wrong["class"].append(float(np.mean([decided(one) for one in gain.classes])))
            wrong["classes at once"].append(any(decided(one) for one in gain.classes_simultaneous))
            values.append(overall.value)
            halves.append((overall.high - overall.low) / 2)
    # Both sides are counted, and are alike here.
    rates = {name: 50.0 * float(np.mean(each)) for name, each in wrong.items()}
    width = float(np.median(halves) / (norm.ppf(0.975) * np.std(values)))
    return {**_named(world), **rates, "width": width, "trials": trials}


def hidden_rates(world: World, trials: int, seed: int) -> dict[str, Any]:
    """Return how often large classes' gains hide a small one's loss of the same size, in percent.

    Balanced accuracy gains nothing; counted are intervals that lie wholly above 0.
    """
    random = np.random.default_rng(seed)
    world = replace(world, arms=1)
    said = [
        _gain(simulate(world, random), CONFIDENCE, RESAMPLES, random).low > 1e-12
        for _ in range(trials)
    ]
    gains = sorted(set(world.class_gain_points), reverse=True)
    return {
        **_named(world),
        "accuracy": world.accuracy,
        "class gains": " and ".join(f"{gain:+g}" for gain in gains),
        "said to gain": 100.0 * float(np.mean(said)),
        "trials": trials,
    }


def group_rates(world: World, trials: int, seed: int) -> dict[str, Any]:
    """Return how often groups that differ are called a gain, counted as groups and one by one."""
    random = np.random.default_rng(seed)
    world = replace(world, arms=1)
    found = []
    for _ in range(trials):
        (split,) = simulate(world, random)
        found.append(
            [
                decided(_gain([one], CONFIDENCE, RESAMPLES, random))
                for one in (split, replace(split, groups=None))
            ]
        )
    as_groups, alone = 50.0 * np.mean(found, axis=0)
    return {
        **_named(world),
        "groups a class": world.groups,
        "as groups": float(as_groups),
        "one by one": float(alone),
        "trials": trials,
    }


def power_rates(world: World, trials: int, seed: int) -> dict[str, Any]:
    """Return how often a gain that is said to be detectable is detected, in percent.

    The statement comes from two seeds of a baseline on as many validation images; the gain that is
    then simulated is the median statement over twenty such pilots.
    """
    random = np.random.default_rng(seed)
    stated = []
    for _ in range(20):
        pilot = simulate(replace(world, seeds=2, arms=1, gain_points=0.0), random)[0]
        # Right and wrong are all that counts: a wrong prediction is the next class.
        wrong = (pilot.labels + 1) % len(world.images)
        predicted = np.where(pilot.correct["0"], pilot.labels, wrong)
        share, seed_sd = discordance(predicted, pilot.labels)
        stated.append(minimum_detectable(world.images, world.seeds, share, seed_sd, CONFIDENCE))
    points = float(np.median(stated))
    gaining = replace(world, arms=1, gain_points=min(points, 18.0))
    found = [
        _gain(simulate(gaining, random), CONFIDENCE, RESAMPLES, random).low > 0
        for _ in range(trials)
    ]
    return {
        **_named(world),
        "stated points": points,
        "lowest pilot": min(stated),
        "highest pilot": max(stated),
        "detected": 100.0 * float(np.mean(found)),
        "trials": trials,
    }


def sequential_rates(world: World, first: int, trials: int, seed: int) -> dict[str, Any]:
    """Return how often any look is decided where nothing is gained, one side, in percent."""
    random = np.random.default_rng(seed)
    plan = looks(first, world.seeds)
    stopped, plain = [], []
    for _ in range(trials):
        whole = simulate(replace(world, arms=1), random)[0]
        results = []
        for index, seeds in enumerate(plan):
            part = replace(whole, correct={arm: c[:seeds] for arm, c in whole.correct.items()})
            results.append(
                [
                    decided(_gain([part], level, LOOK_RESAMPLES, random))
                    for level in (level_at(CONFIDENCE, plan, index), CONFIDENCE)
                ]
            )
        stopped.append(any(strict for strict, _ in results))
        plain.append(any(loose for _, loose in results))
    return {
        **_named(world),
        "looks": list(plan),
        "with levels": 50.0 * float(np.mean(stopped)),
        "without": 50.0 * float(np.mean(plain)),
        "trials": trials,
    }


def _gain(
    splits: list[SplitOutcomes], confidence: float, resamples: int, random: np.random.Generator
) -> Interval:
    """Return the gain of arm "1" over the baseline."""
    classes = int(splits[0].labels.max()) + 1
    found = paired_gains(splits, "0", ["1"], classes, TAIL, resamples, confidence, random)
    return found["1"].balanced_accuracy


def _named(world: World) -> dict[str, Any]:
    few, many = min(world.images), max(world.images)
    return {
        "classes": len(world.images),
        "images a class": str(few) if few == many else f"{few} to {many}",
        "seeds": world.seeds,
        "splits": world.splits,
    }


def tables(quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table."""
    trials = 20 if quick else 300
    ordinary = [World((n,) * 10, s) for s in (2, 3, 4, 8) for n in (5, 20, 60)]
    uneven = (60, 60, 30, 30, 10, 10, 5, 5)
    hard = [World((60,) * 10, s, class_sd=0.1, common_sd=0.3) for s in (2, 3, 4, 8)]
    hard += [World(uneven, s) for s in (2, 4)] + [World((20, 20), s) for s in (2, 4)]
    # As on easy data: few mistakes, so that most classes have no image that tells arms apart.
    hard += [World((36,) * 10, 4, accuracy=0.97)]
    several = [World((40,) * 5, 3, splits=p) for p in (2, 3, 5)]
    several += [World((100,) * 5, 4, splits=p, split_sd=0.3) for p in (2, 3, 4)]
    hiding = [
        World((400, 5), 4, accuracy=0.9, class_gain_points=(5, -5)),
        World((400, 5), 4, class_gain_points=(15, -15)),
        World((400, 20), 4, accuracy=0.92, class_gain_points=(5, -5)),
        World((200, 40), 4, accuracy=0.95, class_gain_points=(3, -3)),
        World((60,) * 9 + (5,), 4, accuracy=0.9, class_gain_points=(2,) * 9 + (-18,)),
        World((60,) * 5 + (6,) * 5, 4, accuracy=0.9, class_gain_points=(4,) * 5 + (-4,) * 5),
    ]
    powers = [World((n,) * 10, s) for s in (2, 4, 8) for n in (10, 40)]
    powers += [World((36,) * 10, 4, accuracy=0.95)]
    found: dict[str, list[dict[str, Any]]] = {"ordinary": [], "hard": [], "splits": []}
    for name, worlds in (("ordinary", ordinary), ("hard", hard), ("splits", several)):
        found[name] = [error_rates(world, trials, 7 + i) for i, world in enumerate(worlds)]
    found["hidden"] = [hidden_rates(world, 2 * trials, 30 + i) for i, world in enumerate(hiding)]
    grouped = [
        World((100,) * k, 4, groups=g, group_sd=0.6) for k in (2, 10) for g in (3, 5, 10, 20)
    ]
    found["groups"] = [group_rates(world, trials, 40 + i) for i, world in enumerate(grouped)]
    found["power"] = [power_rates(world, trials, 50 + i) for i, world in enumerate(powers)]
    found["sequential"] = [
        sequential_rates(World((20,) * 5, most), first, 3 * trials, 80 + most)
        for first, most in ((2, 8), (4, 16))
    ]
    # Next to no error from images: the looks are as little correlated as they can be.
    lone = World((150,) * 5, 16, lasting_sd=0.05, class_sd=0.35, noise_sd=0.1)
    found["sequential"].append(sequential_rates(lone, 4, trials, 99))
    return found


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Simulate, and print the tables."""
    console = Console()
    found = tables(quick)
    for name, rows in found.items():
        table = Table(title=name)
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
            table.add_row(*cells)
        console.print(table)
    if json_file is not None:
        world = {k: v for k, v in asdict(World((1,), 1)).items() if k.endswith("_sd")}
        json_file.write_text(
            json.dumps({"world": world, "resamples": RESAMPLES, "tables": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
