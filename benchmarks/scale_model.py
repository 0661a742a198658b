"""The cost model of `benchmarks/scale.py`: hours, bytes, calls, files and memory of a large run.

`docs/scale.md` says where each input comes from, and holds the tables.
"""

import math
from dataclasses import dataclass

IMAGES = tuple(10**power for power in range(5, 10))
WORKERS = (1, 10, 100, 1000)
GIB, TB = 2**30, 1e12


@dataclass(frozen=True)
class Costs:
    """Inputs of the model.

    Attributes:
        images_per_second: candidates that a worker draws.
        efficiency: share of a worker's time that is spent on first copies (from the simulation).
        accepted: share of the candidates that is kept.
        shard_images: candidates of a shard.
        most_shards: of a lease.
        leases_each: leases that a worker does in a small run.
        judge_seconds: of one core of the driver, for each candidate.
        file_seconds: for the driver to read a file.
        reads: times that the driver reads each shard.
        submit_seconds: of the driver, for each lease: orchestration.
        calls_per_lease: of the API: one of the driver, three of the worker.
        poll_seconds: between two looks of the driver.
        runs_a_look: states of one call.
        candidate_bytes: of a candidate in the shards.
        row_bytes: of a kept image in the store: PNG and lineage.
        rows_per_file: of the store.
        candidate_memory: bytes of the driver, for each candidate: ids and scores.
        shard_memory: bytes of the driver, for each shard: its place in the schedule.
        good_memory: bytes of the driver, for each good candidate: features, for `repeats`.
    """

    images_per_second: float = 67.0
    efficiency: float = 0.8
    accepted: float = 0.97
    shard_images: int = 32
    most_shards: int = 64
    leases_each: int = 2
    judge_seconds: float = 0.0011
    file_seconds: float = 0.002
    reads: int = 2
    submit_seconds: float = 0.04
    calls_per_lease: int = 4
    poll_seconds: float = 0.5
    runs_a_look: int = 200
    candidate_bytes: int = 64
    row_bytes: int = 422
    rows_per_file: int = 10_000
    candidate_memory: int = 268
    shard_memory: int = 200
    good_memory: int = 1536


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        draw_hours: of the workers.
        driver_hours: of the one driver, which judges; both go on at once.
        terabytes: of shards and store together, while both are there.
        files: shards with side-cars, and beats.
        calls: of the API.
        memory_gib: of the driver.
    """

    draw_hours: float
    driver_hours: float
    terabytes: float
    files: int
    calls: int
    memory_gib: float

    @property
    def hours(self) -> float:
        """Return how long the run takes: drawing and judging overlap."""
        return max(self.draw_hours, self.driver_hours)


def cost_of(images: int, workers: int, costs: Costs) -> Cost:
    """Return what a run that keeps so many images costs."""
    candidates = math.ceil(images / costs.accepted)
    shards = math.ceil(candidates / costs.shard_images)
    group = min(max(math.ceil(shards / (costs.leases_each * workers)), 1), costs.most_shards)
    leases = math.ceil(shards / group)
    draw = candidates / (workers * costs.images_per_second * costs.efficiency)
    driver = (
        candidates * costs.judge_seconds
        + shards * costs.reads * costs.file_seconds
        + leases * costs.submit_seconds
    )
    looks = max(draw, driver) / costs.poll_seconds * math.ceil(2 * workers / costs.runs_a_look)
    return Cost(
        draw_hours=draw / 3600,
        driver_hours=driver / 3600,
        terabytes=(candidates * costs.candidate_bytes + images * costs.row_bytes) / TB,
        files=2 * shards + leases + math.ceil(images / costs.rows_per_file),
        calls=leases * costs.calls_per_lease + math.ceil(looks),
        memory_gib=(
            candidates * costs.candidate_memory
            + shards * costs.shard_memory
            + images * costs.good_memory
        )
        / GIB,
    )


@dataclass(frozen=True)
class Limits:
    """What one machine or service bears; assumptions, but for what docs/scale.md says."""

    folder_files: int = 1_000_000
    driver_gib: float = 64.0
    api_calls_per_second: float = 100.0


def breaking_points(costs: Costs, limits: Limits) -> dict[str, float]:
    """Return at how many workers, or images, each limit is reached."""
    rate = costs.images_per_second * costs.efficiency  # candidates a second of a worker
    each_shard = costs.reads * costs.file_seconds
    lease_images = costs.shard_images * costs.most_shards
    per_image = cost_of(10**8, 1000, costs)
    return {
        "workers: one driver judges no more": 1 / costs.judge_seconds / rate,
        "workers: one driver reads no more shards": costs.shard_images / each_shard / rate,
        "workers: one driver sends no more leases": lease_images / costs.submit_seconds / rate,
        "workers: API": limits.api_calls_per_second * lease_images / costs.calls_per_lease / rate,
        "images: memory of the driver": limits.driver_gib / per_image.memory_gib * 10**8,
        "images: files of one folder": limits.folder_files / per_image.files * 10**8,
    }


def tables(costs: Costs) -> str:
    """Return the model's tables as Markdown."""
    lines = [
        "| images | " + " | ".join(f"{count:,} workers" for count in WORKERS) + " | the driver |",
        "|---|" + "---|" * (len(WORKERS) + 1),
    ]
    for images in IMAGES:
        found = [cost_of(images, count, costs) for count in WORKERS]
        cells = [f"{one.draw_hours:,.2f}" for one in found]
        lines.append(
            f"| {_power(images)} | " + " | ".join(cells) + f" | {found[-1].driver_hours:,.2f} |"
        )
    lines += [
        "",
        "| images | terabytes | files | API calls | driver memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for images in IMAGES:
        one = cost_of(images, 1000, costs)
        lines.append(
            f"| {_power(images)} | {one.terabytes:.5f} | {one.files:,} | {one.calls:,} | "
            f"{one.memory_gib:,.2f} |"
        )
    lines += ["", "| limit | reached at |", "|---|---|"]
    for name, value in breaking_points(costs, Limits()).items():
        lines.append(f"| {name} | {value:,.0f} |")
    return "\n".join(lines)


def _power(images: int) -> str:
    return f"10^{round(math.log10(images))}"
