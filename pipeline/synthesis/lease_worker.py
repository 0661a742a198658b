"""A lease, done: the worker's side of `leasing`, in whatever process the carrier started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from threading import Event, Thread

from pipeline.errors import InputError, StageError
from pipeline.synthesis.executors import draw_shards
from pipeline.synthesis.leasing import BEAT_SECONDS
from pipeline.synthesis.shards import Shard
from pipeline.synthesis.spaces import Space, open_space
from pipeline.tracking.identity import LOGS, run_environment


def do_lease(where: str, shards: Sequence[Shard], lease_id: str, run_id: str = "") -> None:
    """Draw the shards of a lease that are not there yet, giving a beat all the while.

    Args:
        where: folder or URL of the job and its shards, shared with the driver.
        shards: to be drawn.
        lease_id: of the lease.
        run_id: of the run that they are for; this worker's log goes by it.

    Raises:
        InputError: the job cannot be read, or a shard is not one of its.
        StageError: the generator is another than the job's, or the store fails.
    """
    space = open_space(where)
    run = run_environment(run_id, LOGS) if run_id else nullcontext()
    with run, beating(space, lease_id), space.open_job() as (job, folder):
        for shard in shards:
            if not 0 <= shard.recipe < len(job.recipes) or shard.size != job.shard_images:
                raise InputError(f"{where}: {shard.name} is no shard of this job")
        draw_shards(
            job.start(), shards, folder, space.is_wanted, lambda shard: space.give(shard, folder)
        )


@contextmanager
def beating(space: Space, lease_id: str) -> Iterator[None]:
    """Say, every few seconds of the body, that the worker of a lease lives."""
    stop = Event()

    def work() -> None:
        number = 0
        while True:
            # A full disk, a store that is away: the shards will tell.
            with suppress(OSError, InputError, StageError):
                if space.is_wanted():
                    space.give_beat(lease_id, number)
            number += 1
            if stop.wait(BEAT_SECONDS):
                return

    thread = Thread(target=work, name="lease-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
