"""A simulated cluster for `benchmarks/scale.py`: workers that fail, one store, one API, one driver.

Time is simulated (simpy), and the sampler only takes time. The driver's loop is that of
`pipeline.synthesis.leasing`, step by step, and the scheduling is the real
`pipeline.synthesis.dispatch.Dispatch`. All randomness comes from the seed.
"""

import math
import random
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from pipeline.synthesis.dispatch import Dispatch, Lease, Rules
from pipeline.synthesis.shards import Shard

Steps = Generator[simpy.Event, Any, None]

CLASSES = 10
RUNS_A_LOOK = 200  # states that one call of the API tells
LONGEST_SECONDS = 30 * 24 * 3600.0
MOST = 0.95


@dataclass(frozen=True)
class World:
    """What is simulated; seconds of the simulated clock.

    Attributes:
        workers: machines that take leases.
        shards: of the run.
        seed: of everything random.
        shard_images: candidates of a shard.
        images_per_second: of a worker of median speed.
        speed_sigma: standard deviation of the logarithm of a worker's speed.
        stragglers: share of workers that are `straggler_times` slower.
        straggler_times: see there.
        start_seconds: until a machine takes its first lease.
        lease_seconds: until a lease samples: process, imports, generator.
        deaths_per_hour: of a worker.
        told_share: of the deaths that the API is told of at once (pre-emptions); others are silent.
        away_seconds: mean time until a dead worker is replaced.
        stalls_per_hour: of a worker; it says nothing for `stall_seconds` and then goes on.
        stall_seconds: see there.
        errors_share: of the shards that raise an error.
        bytes_per_image: of a candidate in the store.
        store_seconds: latency of reading or writing a file.
        store_bytes_per_second: of all together.
        stat_seconds: for the driver to look whether a file is there.
        api_seconds: latency of a call.
        api_per_second: calls that the server answers.
        submit_seconds: of the driver, for each lease, beside the call.
        poll_seconds: the driver's rest between two looks.
        judge_seconds: for each candidate, in the driver's loop.
        reads: does the driver read every shard, to check it?
        kills: times that the driver is killed, evenly over the time that the run should take.
        down_seconds: until the driver runs again.
        backups: are slow leases handed out a second time?
        silent_seconds: until a silent lease is lost.
        most_shards: of a lease.
        leases_each: leases that a worker is meant to do, as in `leasing`.
    """

    workers: int
    shards: int
    seed: int = 0
    shard_images: int = 128
    images_per_second: float = 67.0
    speed_sigma: float = 0.25
    stragglers: float = 0.02
    straggler_times: float = 6.0
    start_seconds: float = 20.0
    lease_seconds: float = 8.0
    deaths_per_hour: float = 0.0
    told_share: float = 0.5
    away_seconds: float = 120.0
    stalls_per_hour: float = 0.0
    stall_seconds: float = 150.0
    errors_share: float = 0.0
    bytes_per_image: float = 64.0
    store_seconds: float = 0.002
    store_bytes_per_second: float = 100e6
    stat_seconds: float = 0.0005
    api_seconds: float = 0.02
    api_per_second: float = 100.0
    submit_seconds: float = 0.02
    poll_seconds: float = 0.5
    judge_seconds: float = 0.0011
    reads: bool = True
    kills: int = 0
    down_seconds: float = 30.0
    backups: bool = True
    silent_seconds: float = 60.0
    most_shards: int = 64
    leases_each: int = 2

    @property
    def rules(self) -> Rules:
        """Return how leases are cut, as the driver does it."""
        group = math.ceil(self.shards / (self.leases_each * self.workers))
        return Rules(
            group=min(max(group, 1), self.most_shards),
            ahead=2 * self.workers,
            silent_seconds=self.silent_seconds,
            slow_times=3.0 if self.backups else math.inf,
        )

    @property
    def ideal_seconds(self) -> float:
        """Return how long equal, faultless workers would take that start at once."""
        return self.shards * self.shard_images / self.images_per_second / self.workers


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation; shares are of the time in which workers were up.

    Attributes:
        seconds: until everything was judged.
        drawn_seconds: until the last shard was in the store.
        lost: shards that are not in the store, or that the driver did not pass on.
        doubled: shards that one driver passed on more than once.
        useful: share of time spent on the first copy of a shard.
        wasted: on shards that another drew as well, or that were cut off or failed.
        starting: on starting machines and leases, and on calls.
        stalled: standing still.
        idle: waiting for a lease.
        shard_p50: seconds from the first hand-out of a shard to the store, median.
        shard_p99: the same, 99th percentile.
        last_percent: seconds between 99 % of the shards and all of them.
        leases: that were sent.
        leases_lost: that the last driver gave up.
        deaths: of workers.
        kills: of the driver.
        api_calls: of workers and drivers.
        driver_busy: share of time in which the last driver did not rest; this and the next two
            until `MOST` of the shards were found, so that the wait for the last ones is left out.
        api_busy: share of time in which the API was busy.
        store_busy: the same of the store's line.
    """

    seconds: float
    drawn_seconds: float
    lost: int
    doubled: int
    useful: float
    wasted: float
    starting: float
    stalled: float
    idle: float
    shard_p50: float
    shard_p99: float
    last_percent: float
    leases: int
    leases_lost: int
    deaths: int
    kills: int
    api_calls: int
    driver_busy: float
    api_busy: float
    store_busy: float


@dataclass
class Run:
    """A lease as the API knows it; `beating` is what its worker writes into the shared folder."""

    shards: tuple[Shard, ...]
    state: str = "waiting"  # running, ended, failed, lost, cancelled
    beating: bool = False


@dataclass
class Worker:
    """A machine between two deaths."""

    rate: float
    born: float
    run: Run | None = None
    since: float | None = None  # begin of the shard that it draws


class Line:
    """A server that does one thing after the other."""

    def __init__(self, env: simpy.Environment, per_second: float) -> None:
        """Take how much it does in a second."""
        self._env, self._each, self._free = env, 1 / per_second, 0.0
        self.busy_seconds, self.amount = 0.0, 0.0

    def wait(self, amount: float = 1.0) -> float:
        """Queue for so much; return the seconds until it is done."""
        self._free = max(self._free, self._env.now) + amount * self._each
        self.busy_seconds += amount * self._each
        self.amount += amount
        return self._free - self._env.now


def simulate(world: World) -> Outcome:
    """Run a simulation to its end.

    Raises:
        StageError: a shard failed or was lost too often.
        RuntimeError: the run was not finished after 30 simulated days.
    """
    return _Cluster(world).run()


class _Cluster:
    """The state of a simulation."""

    def __init__(self, world: World) -> None:
        self.world, self.env = world, simpy.Environment()
        per_class = math.ceil(world.shards / CLASSES)
        self.shards = [
            Shard(i // per_class, i % per_class, world.shard_images) for i in range(world.shards)
        ]
        self.queue: simpy.Store = simpy.Store(self.env)
        self.runs: dict[str, Run] = {}
        self.api = Line(self.env, world.api_per_second)
        self.link = Line(self.env, world.store_bytes_per_second)
        self.disk: dict[Shard, float] = {}
        self.written: list[Shard] = []  # in the order in which they came
        self.first_handed: dict[Shard, float] = {}
        self.spent: Counter[str] = Counter()
        self.deaths = self.kills = self.leases = 0
        self.up: dict[int, Worker] = {}
        self.finished = self.env.event()
        self.driver = Driver(self)

    def run(self) -> Outcome:
        """Run everything, and count."""
        for number in range(self.world.workers):
            self.env.process(self._machine(number))
        self.env.process(self._drivers())
        self.env.run(until=self.finished | self.env.timeout(LONGEST_SECONDS))
        if not self.finished.triggered:
            raise RuntimeError(f"{self.driver.dispatch.missing} shards are missing after 30 days")
        return self._outcome()

    def _outcome(self) -> Outcome:
        now, driver, spent = self.env.now, self.driver, self.spent
        for worker in self.up.values():
            spent["up"] += now - worker.born
            if worker.since is not None:
                spent["wasted"] += now - worker.since
        passed = driver.passed
        assert driver.busy is not None
        missing = sum(passed[one] == 0 or one not in self.disk for one in self.shards)
        times = np.sort(np.fromiter(self.disk.values(), float))
        took = [when - self.first_handed[one] for one, when in self.disk.items()]
        known = sum(spent[name] for name in ("useful", "wasted", "starting", "stalled"))
        share = {name: value / spent["up"] for name, value in spent.items()}
        return Outcome(
            seconds=now,
            drawn_seconds=float(times[-1]),
            lost=missing,
            doubled=sum(count - 1 for count in passed.values() if count > 1),
            useful=share.get("useful", 0.0),
            wasted=share.get("wasted", 0.0),
            starting=share.get("starting", 0.0),
            stalled=share.get("stalled", 0.0),
            idle=1 - known / spent["up"],
            shard_p50=float(np.percentile(took, 50)),
            shard_p99=float(np.percentile(took, 99)),
            last_percent=float(times[-1] - times[max(0, math.ceil(0.99 * len(times)) - 1)]),
            leases=self.leases,
            leases_lost=driver.dispatch.lost,
            deaths=self.deaths,
            kills=self.kills,
            api_calls=int(self.api.amount),
            driver_busy=driver.busy[0],
            api_busy=driver.busy[1],
            store_busy=driver.busy[2],
        )

    def _drivers(self) -> Steps:
        """Run a driver, kill it now and then, and run another."""
        every = self.world.ideal_seconds / (self.world.kills + 1)
        while True:
            life = self.env.process(self.driver.live())
            if self.kills == self.world.kills:
                yield life
                break
            yield life | self.env.timeout(every)
            if not life.is_alive:
                break
            life.interrupt()
            self.kills += 1
            yield self.env.timeout(self.world.down_seconds)
            self.driver = Driver(self)
        self.finished.succeed()

    def _machine(self, number: int) -> Steps:
        """Be a worker that dies and is replaced by another, of another speed."""
        world, rng = self.world, random.Random(f"{self.world.seed}-worker-{number}")
        while True:
            speed = rng.lognormvariate(0.0, world.speed_sigma)
            if rng.random() < world.stragglers:
                speed /= world.straggler_times
            worker = Worker(world.images_per_second * speed, self.env.now)
            self.up[number] = worker
            life = self.env.process(self._work(worker, rng))
            if not world.deaths_per_hour:
                return
            yield self.env.timeout(rng.expovariate(world.deaths_per_hour / 3600))
            life.interrupt(rng.random() < world.told_share)
            self.deaths += 1
            self.spent["up"] += self.env.now - worker.born
            del self.up[number]
            yield self.env.timeout(rng.expovariate(1 / world.away_seconds))

    def _work(self, worker: Worker, rng: random.Random) -> Steps:
        """Take leases until death."""
        request = None
        try:
            yield from self._spend("starting", self.world.start_seconds)
            while True:
                with self.queue.get() as request:
                    worker.run = yield request
                yield from self._do(worker.run, worker, rng)
                worker.run = None
        except simpy.Interrupt as death:
            run = worker.run
            if run is None and request is not None and request.triggered:
                run = request.value  # it died as the lease came
            if worker.since is not None:
                self.spent["wasted"] += self.env.now - worker.since
            if run is None:
                return
            run.beating = False
            if run.state == "waiting":
                run.state = "running"  # it was taken, and nobody else will
            if death.cause and run.state == "running":
                self.api.wait()
                run.state = "lost"

    def _do(self, run: Run, worker: Worker, rng: random.Random) -> Steps:
        """Do a lease, as `pipeline.synthesis.lease_worker` does."""
        world = self.world
        if run.state != "waiting":
            return  # cancelled before it began
        run.state = "running"
        yield from self._spend("starting", self.api.wait(2) + world.api_seconds)
        yield from self._spend("starting", world.lease_seconds)
        run.beating = True
        for shard in run.shards:
            if run.state != "running":
                break
            if shard in self.disk:
                continue
            worker.since = self.env.now
            seconds = world.shard_images / worker.rate * rng.uniform(0.9, 1.1)
            if rng.random() < world.stalls_per_hour / 3600 * seconds:
                run.beating = False
                worker.since = None
                yield from self._spend("stalled", world.stall_seconds)
                worker.since = self.env.now
                run.beating = True
            yield self.env.timeout(seconds)
            if rng.random() < world.errors_share:
                self._close_shard(worker, "wasted")
                if run.state == "running":
                    run.state = "failed"
                break
            size = world.shard_images * world.bytes_per_image
            yield self.env.timeout(self.link.wait(size) + world.store_seconds)
            self._close_shard(worker, "wasted" if shard in self.disk else "useful")
            if shard not in self.disk:
                self.disk[shard] = self.env.now
                self.written.append(shard)
        run.beating = False
        yield from self._spend("starting", self.api.wait() + world.api_seconds)
        if run.state == "running":
            run.state = "ended"

    def _close_shard(self, worker: Worker, kind: str) -> None:
        assert worker.since is not None
        self.spent[kind] += self.env.now - worker.since
        worker.since = None

    def _spend(self, kind: str, seconds: float) -> Steps:
        began = self.env.now
        try:
            yield self.env.timeout(seconds)
        finally:
            self.spent[kind] += self.env.now - began


class Driver:
    """The loop of `LeasingExecutor`, and the judging of what it yields, until it is killed."""

    def __init__(self, cluster: _Cluster) -> None:
        """Begin with no memory but the shards that there are to draw."""
        self._cluster, self._env, self._world = cluster, cluster.env, cluster.world
        self.dispatch = Dispatch(cluster.shards, cluster.world.rules)
        self.passed: Counter[Shard] = Counter()
        self.born, self.rested = cluster.env.now, 0.0
        self.busy: tuple[float, float, float] | None = None
        self._seen = 0  # of the shards that were written
        self._judged = 0

    def live(self) -> Steps:
        """Look, hand out and judge until all is done."""
        world, dispatch = self._world, self.dispatch
        try:
            # What stands from before: the side-car of every shard is looked for.
            yield self._env.timeout(len(self._cluster.shards) * world.stat_seconds)
            yield from self._found()
            while not dispatch.finished:
                yield from self._found()
                looked = yield from self._look()
                yield from self._found()
                self._settle(looked)
                yield from self._hand_out()
                if not dispatch.finished:
                    yield self._env.timeout(world.poll_seconds)
                    self.rested += world.poll_seconds
        except simpy.Interrupt:
            pass  # killed

    def _found(self) -> Steps:
        """Read what was written since, and judge what is next in order."""
        world, written = self._world, self._cluster.written
        out = sum(len(lease.shards) for lease in self.dispatch.out.values())
        new = written[self._seen :]
        self._seen += len(new)
        cost = out * world.stat_seconds
        if new and world.reads:
            size = len(new) * world.shard_images * world.bytes_per_image
            cost += self._cluster.link.wait(size) + len(new) * world.store_seconds
        for shard in new:
            if self.dispatch.done(shard):
                self.passed[shard] += 1
        shards, before = self._cluster.shards, self._judged
        if self.busy is None and len(self.passed) >= MOST * len(shards):
            self.busy = self._busy()
        while self._judged < len(shards) and self.dispatch.is_done(shards[self._judged]):
            self._judged += 1
        cost += (self._judged - before) * world.shard_images * world.judge_seconds
        yield self._env.timeout(cost)

    def _busy(self) -> tuple[float, float, float]:
        now, cluster = self._env.now, self._cluster
        rested = self.rested / max(now - self.born, self._world.poll_seconds)
        return 1 - rested, cluster.api.busy_seconds / now, cluster.link.busy_seconds / now

    def _look(self) -> Generator[simpy.Event, Any, float]:
        """Read the beats and ask for the states; return when that was."""
        world, out = self._world, self.dispatch.out
        calls = math.ceil(len(out) / RUNS_A_LOOK)
        yield self._env.timeout(len(out) * world.stat_seconds)
        if calls:
            yield self._env.timeout(self._cluster.api.wait(calls) + calls * world.api_seconds)
        now = self._env.now
        for lease in out.values():
            run = self._cluster.runs[lease.id]
            if run.beating or (lease.begun is None and run.state == "running"):
                self.dispatch.heard(lease.id, now)
        return now

    def _settle(self, looked: float) -> None:
        # By the time of the look: what came while the driver judged, it has not heard.
        for lease in list(self.dispatch.out.values()):
            state = self._cluster.runs[lease.id].state
            if state in ("lost", "cancelled"):
                self.dispatch.give_up(lease.id, "its worker died")
            elif state in ("ended", "failed") and self._knows(lease):
                self.dispatch.ended(lease.id, looked, state if state == "failed" else None)
        for lease in self.dispatch.overdue(looked):
            self._cancel(lease)
            self.dispatch.give_up(lease.id, "silent")
        for lease in self.dispatch.needless():
            self._cancel(lease)
            self.dispatch.ended(lease.id, looked)

    def _knows(self, lease: Lease) -> bool:
        """Say whether all that a lease wrote has been found."""
        disk = self._cluster.disk
        return all(self.dispatch.is_done(one) for one in lease.shards if one in disk)

    def _cancel(self, lease: Lease) -> None:
        run = self._cluster.runs[lease.id]
        self._cluster.api.wait()
        if run.state in ("waiting", "running"):
            run.state = "cancelled"

    def _hand_out(self) -> Steps:
        cluster, world = self._cluster, self._world
        while (lease := self.dispatch.hand_out(self._env.now)) is not None:
            run = cluster.runs.get(lease.id)
            if run is None:
                run = cluster.runs[lease.id] = Run(lease.shards)
                cluster.queue.put(run)
                cluster.leases += 1
                for shard in lease.shards:
                    cluster.first_handed.setdefault(shard, self._env.now)
            elif run.state not in ("waiting", "running"):
                self.dispatch.used_up(lease.id)  # by the driver before
            call = cluster.api.wait() + world.api_seconds
            yield self._env.timeout(call + world.submit_seconds)
