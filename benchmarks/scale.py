"""A thousand workers that fail, in simulation: what is lost, what is wasted, what breaks first.

`python benchmarks/scale.py --json FILE [--quick] [--seed N]`; needs the extra `bench` (simpy). The
world is in `scale_world.py`: the scheduling that it drives is the real one. Exit status 1 where a
shard was lost or passed on twice. `--model` prints the tables of docs/scale.md instead, from the
cost model in `scale_model.py`.
"""

import json
import math
import sys
import time
import tracemalloc
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parent))
from scale_model import Costs, tables
from scale_world import Outcome, World, simulate

from pipeline.errors import StageError
from pipeline.synthesis.dispatch import Dispatch, Rules
from pipeline.synthesis.shards import Shard

WORKERS = (1, 10, 100, 1000)
DEATHS_PER_HOUR = (0.0, 0.5, 2.0, 4.0)
# What the driver does beside scheduling, less and less of it.
DRIVERS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "judging elsewhere": {"judge_seconds": 0.0},
    "judging and reading elsewhere": {"judge_seconds": 0.0, "reads": False},
    "sending many at once, too": {"judge_seconds": 0.0, "reads": False, "submit_seconds": 0.0,
                                  "stat_seconds": 0.00005, "api_seconds": 0.0005,
                                  "api_per_second": 2000.0},
}  # fmt: skip
FAST = DRIVERS["sending many at once, too"]
LEASES_EACH = (1, 2, 4, 8)
BUSY = 0.85  # share of the time from which on something counts as the bottleneck


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shards, in half a minute.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    model: Annotated[bool, typer.Option("--model", help="Print the cost model alone.")] = False,
    images_per_second: Annotated[
        float, typer.Option(min=0.001, help="Of a worker, for the model.")
    ] = Costs.images_per_second,
    judge_seconds: Annotated[
        float, typer.Option(min=0.0, help="Of a candidate, for the model.")
    ] = Costs.judge_seconds,
    candidate_bytes: Annotated[
        int, typer.Option(min=1, help="Of a candidate, for the model.")
    ] = Costs.candidate_bytes,
) -> None:
    """Simulate, measure, and say what was found."""
    if model:
        costs = Costs(
            images_per_second=images_per_second,
            judge_seconds=judge_seconds,
            candidate_bytes=candidate_bytes,
        )
        typer.echo(tables(costs))
        return
    results = {
        "seed": seed,
        "growth": grow(WORKERS, 60 if quick else 128, seed),
        "failures": fail(200 if quick else 1000, 60 if quick else 128, DEATHS_PER_HOUR, seed),
        "leases": cut(200 if quick else 500, 60 if quick else 128, LEASES_EACH, seed),
        "dispatch": [
            measure_dispatch(200_000 if quick else 1_000_000, out) for out in (1, 10, 100, 1000)
        ],
    }
    typer.echo(show(results))
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not sound(results):
        typer.echo("shards were lost, came twice, or a run was given up", err=True)
        raise typer.Exit(1)


def grow(counts: tuple[int, ...], shards_each: int, seed: int) -> list[dict[str, Any]]:
    """Return what becomes of more and more faultless workers, for each kind of driver."""
    return [
        {"driver": name, **play(World(count, count * shards_each, seed, **changes))}
        for name, changes in DRIVERS.items()
        for count in counts
    ]


def fail(
    workers: int, shards_each: int, rates: tuple[float, ...], seed: int
) -> list[dict[str, Any]]:
    """Return what becomes of workers that fail more and more, with and without backup tasks."""
    rows = []
    for rate in rates:
        world = World(workers, workers * shards_each, seed, **FAST)
        if rate:
            world = replace(
                world, deaths_per_hour=rate, stalls_per_hour=rate, errors_share=1e-4, kills=1
            )
        rows += [play(replace(world, backups=backups)) for backups in (True, False)]
    return rows


def cut(workers: int, shards_each: int, leases: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """Return what it brings to cut a run into more leases, without failures and with them."""
    return [
        {
            "leases_each": each,
            **play(
                World(
                    workers,
                    workers * shards_each,
                    seed,
                    leases_each=each,
                    deaths_per_hour=rate,
                    stalls_per_hour=rate,
                    **FAST,
                )
            ),
        }
        for rate in (0.0, 2.0)
        for each in leases
    ]


def play(world: World) -> dict[str, Any]:
    """Return a simulation's world and outcome as plain data; `stopped` says why there is none."""
    row: dict[str, Any] = {
        "workers": world.workers,
        "shards": world.shards,
        "failures_per_hour": world.deaths_per_hour,
        "backups": world.backups,
        "stopped": None,
    }
    try:
        found = simulate(world)
    except (StageError, RuntimeError) as error:
        return {**row, "stopped": str(error)}
    images = world.shards * world.shard_images
    return {
        **row,
        "images_per_second": images / found.seconds,
        "efficiency": world.ideal_seconds / found.seconds,
        "calls_per_shard": found.api_calls / world.shards,
        "bottleneck": bottleneck(found),
        **asdict(found),
    }


def bottleneck(found: Outcome) -> str:
    """Return what was busy nearly all the time, until most shards were there."""
    busy = {"driver": found.driver_busy, "API": found.api_busy, "store": found.store_busy}
    name = max(busy, key=lambda one: busy[one])
    return name if busy[name] >= BUSY else "none"


def sound(results: dict[str, Any]) -> bool:
    """Say whether no simulation lost a shard, passed one on twice, or was given up."""
    rows = results["growth"] + results["failures"] + results["leases"]
    return all(not row["stopped"] and row["lost"] == row["doubled"] == 0 for row in rows)


def measure_dispatch(shards: int, out: int, group: int = 4) -> dict[str, Any]:
    """Return the processor time and memory of the real scheduling, with so many leases out.

    The driver hears of each shard by itself, and looks for overdue and needless leases after each
    lease: more often than it has to.
    """
    tracemalloc.start()
    few = [Shard(i % 10, i // 10, 32) for i in range(min(shards, 20_000))]
    dispatch = Dispatch(few, Rules(group, out))
    memory = tracemalloc.get_traced_memory()[0] / len(few)
    tracemalloc.stop()
    wanted = [Shard(i % 10, i // 10, 32) for i in range(shards)]
    began = time.process_time()
    dispatch = Dispatch(wanted, Rules(group, out))
    taken: deque[Any] = deque()
    now = 0.0
    while not dispatch.finished:
        while (lease := dispatch.hand_out(now)) is not None:
            taken.append(lease)
        lease = taken.popleft()
        now += 0.01
        for shard in lease.shards:
            dispatch.heard(lease.id, now)
            dispatch.done(shard)
        dispatch.overdue(now)
        dispatch.needless()
        dispatch.ended(lease.id, now)
    seconds = time.process_time() - began
    return {
        "shards": shards,
        "out": out,
        "microseconds_per_shard": seconds / shards * 1e6,
        "bytes_per_shard": memory,
    }


def show(results: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    lines = [
        "| driver | workers | images/s | efficiency | idle | driver, API, store busy | limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["growth"]:
        head = f"| {row['driver']} | {row['workers']:,} | "
        if row["stopped"]:
            lines.append(f"{head}{row['stopped']} | | | | |")
            continue
        lines.append(
            f"{head}{row['images_per_second']:,.0f} | {row['efficiency']:.2f} | {row['idle']:.0%} "
            f"| {row['driver_busy']:.0%}, {row['api_busy']:.0%}, {row['store_busy']:.0%} | "
            f"{row['bottleneck']} |"
        )
    lines += [
        "",
        "| failures an hour and worker | backups | wasted | starting | idle | shard p50, p99, s "
        "| last 1 %, s | all drawn, s | deaths | leases lost | lost, doubled | calls a shard |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["failures"]:
        head = f"| {row['failures_per_hour']:g} | {'yes' if row['backups'] else 'no'} | "
        if row["stopped"]:
            lines.append(head + row["stopped"] + " |" * 10)
            continue
        lines.append(
            f"{head}{row['wasted']:.1%} | {row['starting']:.1%} | {row['idle']:.1%} | "
            f"{row['shard_p50']:.0f}, {row['shard_p99']:.0f} | {row['last_percent']:.0f} | "
            f"{row['drawn_seconds']:.0f} | {row['deaths']} | {row['leases_lost']} | "
            f"{row['lost']}, {row['doubled']} | {row['calls_per_shard']:.2f} |"
        )
    lines += [
        "",
        "| leases for each worker | failures an hour and worker | all drawn, s | last 1 %, s "
        "| starting | wasted |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["leases"]:
        head = f"| {row['leases_each']} | {row['failures_per_hour']:g} | "
        if row["stopped"]:
            lines.append(head + row["stopped"] + " |" * 4)
            continue
        lines.append(
            f"{head}{row['drawn_seconds']:.0f} | {row['last_percent']:.0f} | "
            f"{row['starting']:.1%} | {row['wasted']:.1%} |"
        )
    lines += ["", "| leases out | shards | us a shard | bytes a shard |", "|---|---|---|---|"]
    for row in results["dispatch"]:
        lines.append(
            f"| {row['out']:,} | {row['shards']:,} | {row['microseconds_per_shard']:.1f} | "
            f"{math.ceil(row['bytes_per_shard'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
