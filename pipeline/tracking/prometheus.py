"""runs/metrics.prom: numbers for Prometheus, for the textfile collector of its node_exporter.

Totals are counted from the index, so that they go on from run to run; what changes within a stage
is of the run that wrote the file last. docs/observability.md has the table of names.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline import __version__
from pipeline.params import SECTIONS
from pipeline.tracking.index import Made, made_folders, read_index
from pipeline.tracking.peaks import memory_peaks
from pipeline.tracking.recorder import RunFacts
from pipeline.tracking.shard_log import ShardTally
from pipeline.tracking.tracker import NullTracker

METRICS = "metrics.prom"
WRITE_EVERY_SECONDS = 15.0


class MetricsFile(NullTracker):
    """Writes the file as a stage begins and ends, and now and then between."""

    def __init__(
        self,
        facts: RunFacts,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write beside the log of the run; `warn` is told once where that fails."""
        self._facts, self._warn, self._clock = facts, warn, clock
        self._logs = facts.log.parent
        self._tally = ShardTally(self._logs, facts.run_id)
        self._running: str | None = None
        self._tasks: dict[tuple[str, str], tuple[int, int]] = {}
        self._sampling: tuple[float, int, float] | None = None  # clock and images it began at, rate
        self._history: list[Metric] = []
        self._written = float("-inf")
        self._warned = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker."""
        self._running = name
        self._history = index_families(read_index(self._logs))
        self._write()
        try:
            yield
        finally:
            self._running = None
            self._tasks.clear()
            self._sampling = None
            self._history = index_families(read_index(self._logs))
            self._write()

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        now = self._clock()
        if self._running is not None:
            self._tasks[self._running, task] = done, total
        if task == "sample":
            began, first, rate = self._sampling or (now, done, 0.0)
            if done < first:
                began, first = now, done  # another round
            if now > began:
                rate = (done - first) / (now - began)
            self._sampling = began, first, rate
        if now - self._written >= WRITE_EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = self._clock()
        try:
            self._tally.update()
            registry = CollectorRegistry()
            registry.register(_Families(self._families()))
            self._logs.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(self._logs / METRICS), registry)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(
                    f"{self._logs / METRICS}: cannot be written ({error.strerror or error}); the "
                    "work goes on without it"
                )

    def _families(self) -> list[Metric]:
        facts = {"run_id": self._facts.run_id, "driver": self._facts.driver, "version": __version__}
        families = [
            *self._history,
            _gauge("run_info", "The run that wrote this file.", {tuple(facts.items()): 1.0}),
            _gauge(
                "stage_running",
                "1 while a stage is at work.",
                {(("stage", name),): float(name == self._running) for name in SECTIONS},
            ),
            _gauge(
                "task_done",
                "How far a task of the stage at work is, in its own unit.",
                {_task(*key): float(done) for key, (done, _) in self._tasks.items()},
            ),
            _gauge(
                "task_total",
                "Where that task ends.",
                {_task(*key): float(total) for key, (_, total) in self._tasks.items()},
            ),
            _gauge(
                "run_shards",
                "Shards of this run, by what became of them; failed and retried are attempts.",
                {
                    (("outcome", name),): float(getattr(self._tally, name))
                    for name in ("done", "failed", "retried")
                },
            ),
            _gauge(
                "memory_peak_bytes",
                "Most memory that one process held: this one, a worker, either on GPUs.",
                {(("kind", kind),): float(size) for kind, size in self._peaks().items()},
            ),
        ]
        if self._sampling is not None:
            families.append(
                _gauge(
                    "sampling_images_per_second",
                    "Candidates a second in the round at work.",
                    {(): self._sampling[2]},
                )
            )
        return families

    def _peaks(self) -> dict[str, int]:
        found = memory_peaks()
        for kind, size in self._tally.memory_bytes.items():
            name = "worker" if kind == "process" else kind
            found[name] = max(found.get(name, 0), size)
        return found


def index_families(lines: Sequence[dict[str, Any]]) -> list[Metric]:
    """Return what the index says of all runs: durations, totals, the last verdict."""
    made = made_folders(lines)
    last = {one.stage: one for one in made}
    failed = [str(line.get("stage")) for line in lines if line.get("event") == "stage_failed"]
    outcomes: dict[tuple[tuple[str, str], ...], float] = {
        (("stage", name), ("outcome", outcome)): float(count)
        for name in SECTIONS
        for outcome, count in (
            ("made", sum(one.stage == name for one in made)),
            ("failed", failed.count(name)),
        )
    }
    families = [
        _counter("stage_runs", "Stages that were done or failed; up to date is neither.", outcomes),
        _gauge(
            "stage_duration_seconds",
            "Seconds of the last time that the stage was done.",
            {(("stage", name),): one.seconds for name, one in last.items()},
        ),
        _gauge(
            "stage_last_success_timestamp_seconds",
            "When the stage was done last, in seconds since 1970.",
            {(("stage", name),): one.ended.timestamp() for name, one in last.items()},
        ),
        _counter("images_sampled", "Candidates drawn.", {(): _sum(made, "candidates")}),
        _counter("images_accepted", "Candidates kept.", {(): _sum(made, "accepted")}),
    ]
    if made:
        families.append(
            _gauge(
                "last_success_timestamp_seconds",
                "When a stage was done last, in seconds since 1970.",
                {(): max(one.ended.timestamp() for one in made)},
            )
        )
    for name, text, stage, key in (
        ("images_per_second", "Candidates a second, judged and written.", "synthesize", ""),
        ("verdict_gain_points", "Gain of the last verdict, in points.", "evaluate", "gain_points"),
        ("verdict_gain_low_points", "Its lower bound.", "evaluate", "low_points"),
        ("verdict_gain_high_points", "Its upper bound.", "evaluate", "high_points"),
        ("verdict_use", "1 where it says use or use_with_care.", "evaluate", "use"),
    ):
        value = last[stage].numbers.get(key or name) if stage in last else None
        if value is not None:
            families.append(_gauge(name, text, {(): value}))
    return families


class _Families(Collector):
    """What the registry is to write."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


_Samples = Mapping[tuple[tuple[str, str], ...], float]


def _gauge(name: str, text: str, samples: _Samples) -> Metric:
    return _family(GaugeMetricFamily, name, text, samples)


def _counter(name: str, text: str, samples: _Samples) -> Metric:
    return _family(CounterMetricFamily, name, text, samples)


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    samples: _Samples,
) -> Metric:
    labels = [key for key, _ in next(iter(samples), ())]
    family = kind(f"replenish_{name}", text, labels=labels)
    for sample, value in samples.items():
        family.add_metric([one for _, one in sample], value)
    return family


def _task(stage: str, task: str) -> tuple[tuple[str, str], ...]:
    return (("stage", stage), ("task", task))


def _sum(made: Sequence[Made], name: str) -> float:
    return sum(one.numbers.get(name, 0.0) for one in made)
