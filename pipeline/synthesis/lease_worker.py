"""A lease, done: the worker's side of `leasing`, in whatever process the carrier started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread

from pipeline.errors import InputError
from pipeline.folders import write_bytes
from pipeline.synthesis.executors import draw_shards
from pipeline.synthesis.job_files import JOB, read_job
from pipeline.synthesis.leasing import BEAT_SECONDS, BEATS
from pipeline.synthesis.shards import Shard
from pipeline.tracking.identity import LOGS, run_environment


def do_lease(folder: Path, shards: Sequence[Shard], lease_id: str, run_id: str = "") -> None:
    """Draw the shards of a lease that are not there yet, giving a beat all the while.

    Args:
        folder: of the job and its shards, shared with the driver.
        shards: to be drawn.
        lease_id: of the lease.
        run_id: of the run that they are for; this worker's log goes by it.

    Raises:
        InputError: the job cannot be read, or a shard is not one of its.
        StageError: the generator is another than the job's.
    """
    run = run_environment(run_id, LOGS) if run_id else nullcontext()
    with run, beating(folder, lease_id):
        job = read_job(folder)
        for shard in shards:
            if not 0 <= shard.recipe < len(job.recipes) or shard.size != job.shard_images:
                raise InputError(f"{folder}: {shard.name} is no shard of this job")
        draw_shards(job.start(), shards, folder, lambda: _is_wanted(folder))


@contextmanager
def beating(folder: Path, lease_id: str) -> Iterator[None]:
    """Say, every few seconds of the body, that the worker of a lease lives."""
    stop = Event()

    def work() -> None:
        number = 0
        while True:
            if _is_wanted(folder):
                with suppress(OSError):  # a full disk: the shards will tell
                    write_bytes(folder / BEATS / lease_id, str(number).encode())
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


def _is_wanted(folder: Path) -> bool:
    # A driver that is through has moved the folder: nothing must be written where it was.
    return (folder / JOB).exists()
