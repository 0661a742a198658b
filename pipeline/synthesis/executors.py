"""Who does the shards: the executor protocol and the executors of one machine."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

from pipeline.device import torch_threads
from pipeline.synthesis.shards import Shard


class Executor(Protocol):
    """Does shards, in any order; what a shard becomes does not depend on who does it."""

    def run(self, shards: Sequence[Shard], work: Callable[[Shard], None]) -> Iterator[Shard]:
        """Call `work` on every shard and yield each one when it is done."""
        ...


class ThreadExecutor:
    """Does shards on threads of this process, one processor thread each.

    torch releases the interpreter in its operations, so that two threads fill two cores; and with
    one thread a shard, results do not depend on how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(self, shards: Sequence[Shard], work: Callable[[Shard], None]) -> Iterator[Shard]:
        """See Executor; an error in one shard ends the run, finished shards stay."""

        def on_one_thread(shard: Shard) -> Shard:
            with torch_threads(1):
                work(shard)
            return shard

        with ThreadPoolExecutor(self._workers, thread_name_prefix="shard") as pool:
            waiting = [pool.submit(on_one_thread, shard) for shard in shards]
            try:
                for future in as_completed(waiting):
                    yield future.result()
            finally:
                for future in waiting:
                    future.cancel()
