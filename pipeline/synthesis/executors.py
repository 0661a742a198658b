"""Who does the shards: the executor protocol, and the executors of one machine.

A worker samples; a thread beside it writes what is sampled, and reports a shard once it is on disk.
Workers stay warm: each one loads the generator once, for all shards that it is given.
"""

import os
import queue
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Lock
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any, Protocol, Self

from pipeline.data.images import Images
from pipeline.device import torch_threads
from pipeline.errors import InputError, StageError
from pipeline.processes import begin_worker
from pipeline.synthesis.shards import Shard, ShardWorker, read_shard, write_shard
from pipeline.tracking.shard_log import shard_log

MakeWorker = Callable[[], ShardWorker]
Take = Callable[[bool], Shard | None]  # told whether to wait for one
_Report = Shard | BaseException

# Shards that wait in the pipe, so that batches fill and no worker waits. 512 of them, for the most
# workers that there may be, still fit in, and a put must never wait: dead workers take nothing.
_AHEAD = 256
_DYING_SECONDS = 5.0  # from the end of a worker's pipe to the end of the worker


class Executor(Protocol):
    """Does shards; what a shard becomes does not depend on who does it."""

    def run(self, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
        """Yield each shard, in any order, once it is on disk.

        Shards that are there and sound are not done again. Work goes on while the caller is busy
        with what it got; an error in one shard ends the run, and finished shards stay.
        """
        ...

    def __enter__(self) -> Self:
        """Return the executor."""
        ...

    def __exit__(self, *_: Any) -> None:
        """Let the workers go."""
        ...


def in_order(
    executor: Executor,
    shards: Sequence[Shard],
    folder: Path,
    on_done: Callable[[Shard], None],
) -> Generator[tuple[Shard, Images], None, None]:
    """Yield each shard with its images in the given order, as soon as it is on disk.

    Args:
        executor: does the shards.
        shards: the shards, none of them twice.
        folder: where the executor writes them.
        on_done: told each shard as it is done, in any order.

    Raises:
        StageError: a shard cannot be read although it was written.
    """
    ready: set[Shard] = set()
    with closing(executor.run(shards)) as run:
        for shard in shards:
            while shard not in ready:
                done = next(run)
                ready.add(done)
                on_done(done)
            ready.remove(shard)
            images = read_shard(folder, shard)
            if images is None:
                raise StageError(
                    f"{folder / shard.name}: not readable after it was written; check the disk and "
                    "run the same command again"
                )
            yield shard, images


class ThreadExecutor:
    """Does shards on threads of this process, one processor thread each.

    torch releases the interpreter in its operations, so that two threads fill two cores where the
    network is large; and with one thread a shard, results do not depend on how many there are.
    """

    def __init__(self, make_worker: MakeWorker, folder: Path, workers: int) -> None:
        """Take what is to be done; the threads share one worker, made when it is first needed.

        Args:
            make_worker: returns what samples shards.
            folder: of the shards.
            workers: number of threads.
        """
        self._make_worker, self._folder, self._count = make_worker, folder, workers
        self._worker: ShardWorker | None = None
        self._stop = Event()
        self._threads: list[Thread] = []

    def run(self, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
        """See Executor."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._worker is None and shards:
            with torch_threads(1):
                self._worker = self._make_worker()
        tasks: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        reports: queue.SimpleQueue[_Report] = queue.SimpleQueue()
        self._stop = stop = Event()
        for shard in shards:
            tasks.put(shard)

        def take(wait: bool) -> Shard | None:  # all tasks are there from the start
            try:
                return None if stop.is_set() else tasks.get_nowait()
            except queue.Empty:
                return None

        def work(worker: ShardWorker) -> None:
            with torch_threads(1):
                _serve(take, worker, self._folder, reports.put)

        self._threads = [
            Thread(target=work, args=(self._worker,), name=f"shard-worker-{i}", daemon=True)
            for i in range(min(self._count, len(shards)))
        ]
        for thread in self._threads:
            thread.start()
        try:
            for _ in shards:
                yield _shard_of(reports.get())
        finally:
            self.close()

    def close(self) -> None:
        """Begin no further shard, and wait for those that are begun."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def __enter__(self) -> Self:
        """Return the executor."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the executor."""
        self.close()


class ProcessExecutor:
    """Does shards in processes of their own, which stay for all runs.

    The processes are spawned, since torch's threads do not survive a fork. They end with this
    process, however it ends.
    """

    def __init__(
        self, make_worker: MakeWorker, folder: Path, workers: int, gpus: Sequence[str] = ()
    ) -> None:
        """Take what is to be done; the processes start when they are first needed.

        Args:
            make_worker: returns what samples shards; called once in each process, so it must be
                a function of a module or a method of something that can be pickled.
            folder: of the shards.
            workers: number of processes.
            gpus: names of GPUs, of which each process sees one alone; in turn.
        """
        self._make_worker, self._folder, self._count = make_worker, folder, workers
        self._gpus = tuple(gpus)
        self._context = get_context("spawn")
        self._tasks: SimpleQueue[Shard]
        self._lock: Lock
        self._workers: list[_Worker] = []

    def run(self, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
        """See Executor.

        Raises:
            StageError: a worker process died.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._workers:
            self._tasks = self._context.SimpleQueue()
            self._lock = self._context.Lock()
        while len(self._workers) < min(self._count, len(shards)):
            self._workers.append(self._start())
        waiting, further = len(shards), iter(shards)
        for shard in islice(further, max(_AHEAD, 2 * self._count)):
            self._tasks.put(shard)
        try:
            while waiting:
                ready = connection.wait([worker.reports for worker in self._workers])
                for worker in [one for one in self._workers if one.reports in ready]:
                    shard = _shard_of(self._receive(worker))
                    waiting -= 1  # before the caller, who has what it wants, may close this run
                    for another in islice(further, 1):
                        self._tasks.put(another)
                    yield shard
        finally:
            if waiting:
                self.close()

    def close(self) -> None:
        """End the worker processes: what they reported is on disk, and they keep nothing else."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.reports.close()
        if self._workers:
            # Not to be used again: a worker may have died while it held the lock.
            self._tasks.close()
        self._workers = []

    def __enter__(self) -> Self:
        """Return the executor."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Close the executor."""
        self.close()

    def _start(self) -> "_Worker":
        reports, end = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_work,
            args=(self._make_worker, self._folder, self._tasks, self._lock, end, self._gpu()),
            name=f"shard-worker-{len(self._workers)}",
            daemon=True,
        )
        process.start()
        end.close()  # the worker's alone: when it dies, reading the pipe says so
        return _Worker(process, reports)

    def _gpu(self) -> str | None:
        return self._gpus[len(self._workers) % len(self._gpus)] if self._gpus else None

    def _receive(self, worker: "_Worker") -> _Report:
        try:
            report: _Report = worker.reports.recv()
        except (EOFError, OSError):
            worker.process.join(_DYING_SECONDS)
            status = worker.process.exitcode
            how = f"by signal {-status}" if status and status < 0 else f"with exit status {status}"
            why = ", most likely for want of memory" if status == -signal.SIGKILL else ""
            raise StageError(
                f"synthesize: a worker process ended {how}{why} ({len(self._workers)} workers); "
                "run the same command again, with a smaller execution.workers if need be: it goes "
                "on from the shards that are finished"
            ) from None
        return report


@dataclass(frozen=True)
class _Worker:
    """A worker process, and the end of the pipe that its reports come out of."""

    process: SpawnProcess
    reports: "connection.Connection[object, _Report]"


def _work(
    make_worker: MakeWorker,
    folder: Path,
    tasks: "SimpleQueue[Shard]",
    lock: Lock,
    reports: "connection.Connection[_Report, object]",
    gpu: str | None,
) -> None:
    """Be a worker process."""
    begin_worker()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # torch looks when it first uses CUDA
    with torch_threads(1):
        try:
            worker = make_worker()
        except Exception as error:
            reports.send(_portable(error))
        else:

            def take(wait: bool) -> Shard | None:
                # Whoever waits for a task holds the lock: nobody else may take it meanwhile, or
                # wait for one with shards in hand.
                if not lock.acquire(block=wait):
                    return None
                try:
                    return tasks.get() if wait or not tasks.empty() else None
                finally:
                    lock.release()

            def report(what: _Report) -> None:
                try:
                    reports.send(_portable(what))
                except BrokenPipeError:  # the parent is dead, and nobody reads
                    os._exit(1)

            _serve(take, worker, folder, report)


def draw_shards(
    worker: ShardWorker,
    shards: Sequence[Shard],
    folder: Path,
    wanted: Callable[[], bool],
    written: Callable[[Shard], None],
) -> None:
    """Draw and write those shards that are not there yet, on one processor thread.

    Args:
        worker: samples.
        shards: to be drawn, in this order.
        folder: of the shards.
        wanted: is asked before each; are they wanted still?
        written: is told each one that is on disk, on the thread that writes.

    Raises:
        Exception: what went wrong with a shard; those before it are written.
    """
    waiting = deque(shards)
    errors: list[BaseException] = []

    def take(wait: bool) -> Shard | None:
        return waiting.popleft() if waiting and not errors and wanted() else None

    def report(what: _Report) -> None:
        if isinstance(what, BaseException):
            errors.append(what)
            return
        try:
            written(what)
        except Exception as error:
            errors.append(error)

    with torch_threads(1):
        _serve(take, worker, folder, report)
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class _Sampled:
    """A shard on its way to the disk; None where it is there already. `seconds`: that it took."""

    shard: Shard
    images: Images | None
    seconds: float


def _serve(
    take: Take, worker: ShardWorker, folder: Path, report: Callable[[_Report], None]
) -> None:
    """Sample shards until `take` has no more; a thread beside writes and reports them.

    As many shards as fill a batch are sampled together. The thread is at most that many and two
    behind: one that it writes and one that waits.
    """
    sampled: queue.Queue[_Sampled | BaseException | None] = queue.Queue(1)
    log = shard_log()

    def write() -> None:
        while (item := sampled.get()) is not None:
            if isinstance(item, BaseException):
                report(item)
                continue
            try:
                if item.images is not None:
                    write_shard(folder, item.shard, item.images)
            except Exception as error:
                log.failed(item.shard.name, f"{type(error).__name__}: {error}")
                report(error)
            else:
                drawn = 0 if item.images is None else item.shard.size
                log.done(item.shard.name, drawn, item.seconds)
                report(item.shard)

    writer = Thread(target=write, name="shard-writer", daemon=True)
    writer.start()
    try:
        while group := _take_group(take, worker.at_once):
            missing = [shard for shard in group if read_shard(folder, shard) is None]
            began = perf_counter()
            drawn = worker.sample(missing) if missing else []
            each = (perf_counter() - began) / max(1, len(missing))
            images = dict(zip(missing, drawn, strict=True))
            for shard in group:
                found = images.get(shard)
                sampled.put(_Sampled(shard, found, 0.0 if found is None else each))
    except BaseException as error:  # whatever it is: an unreported end would be waited for
        sampled.put(error)
    finally:
        sampled.put(None)
        writer.join()


def _take_group(take: Take, most: int) -> list[Shard]:
    """Return up to `most` shards: the first is waited for, the others are there or not."""
    group: list[Shard] = []
    while len(group) < most and (shard := take(not group)) is not None:
        group.append(shard)
    return group


def _shard_of(report: _Report) -> Shard:
    if isinstance(report, BaseException):
        raise report
    return report


def _portable(report: _Report) -> _Report:
    """Return a report as it goes through a pipe; errors of libraries become their text."""
    if isinstance(report, Shard):
        return report
    trace = "".join(traceback.format_exception(report))
    known = isinstance(report, InputError | StageError) or type(report).__module__ == "builtins"
    plain = all(isinstance(one, str | int) for one in report.args)
    if not (isinstance(report, Exception) and known and plain):
        report = RuntimeError(f"{type(report).__name__}: {report}")
    report.add_note(f"In a worker process:\n{trace}")
    return report
