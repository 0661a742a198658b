"""Leases as Prefect tasks on a Ray cluster, by prefect-ray's task runner: the extra `ray`."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Ray would tell its makers; it reads this when it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options
except ImportError as error:
    from pipeline.errors import InputError

    raise InputError(
        f"execution.backend = ray: {error.name} is not installed; install the extra: "
        'pip install "replenish[ray]", or use backend = processes'
    ) from None

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.shared_space import publish_job
from pipeline.errors import InputError, StageError
from pipeline.params import Execution
from pipeline.synthesis.dispatch import Lease
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.lease_worker import do_lease
from pipeline.synthesis.leasing import LeasingExecutor, Patience, Seen
from pipeline.synthesis.shards import Shard
from pipeline.tracking.identity import inherited_run
from pipeline.tracking.tracker import Tracker


@task(name="generate-shard", cache_policy=NO_CACHE, log_prints=False)
def draw_lease(job: str, shards: list[list[int]], lease: str, run_id: str) -> int:
    """Draw the shards of a lease, on a worker of the cluster."""
    do_lease(job, [Shard(*one) for one in shards], lease, run_id)
    return len(shards)


class RayCarrier:
    """Carries leases; see `pipeline.synthesis.leasing.Carrier`."""

    def __init__(self, job: str, address: str | None, device: str, workers: int) -> None:
        """Connect to a cluster, or start one on this machine.

        Args:
            job: folder, under the same path on every machine, or URL of the job and its shards.
            address: of a cluster; None starts one.
            device: auto, cpu or cuda; each lease takes a GPU where the cluster has some.
            workers: processors of a cluster that is started here; 0 = all.

        Raises:
            InputError: the cluster cannot be reached, or has no GPU although `device` is cuda.
        """
        self._job = job
        self._refs: dict[str, Any] = {}
        settings: dict[str, Any] = {"log_to_driver": False}
        if address is None:
            settings |= {"include_dashboard": False, "num_cpus": workers or None}
        self._runner: RayTaskRunner[Any] = RayTaskRunner(address=address, init_kwargs=settings)
        try:
            self._runner.__enter__()
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = address or "one on this machine"
            raise InputError(
                f"execution.ray_address = {where}: no Ray cluster there ({error}); start one with "
                "`ray start --head`, or set ray_address to null"
            ) from None
        self._kind = "CPU"
        if device != "cpu" and ray.cluster_resources().get("GPU", 0):
            self._kind = "GPU"
        elif device == "cuda":
            self.close()
            raise InputError(
                "execution.device = cuda: the Ray cluster has no GPU; start its workers with "
                "`ray start --num-gpus`, or set device to auto"
            )

    def workers(self) -> int:
        """Return how many leases the cluster can do at once."""
        return int(ray.cluster_resources().get(self._kind, 0))

    def submit(self, lease: Lease, key: str) -> bool:
        """Submit a lease as a task that takes one processor, or one GPU."""
        parameters = {
            "job": self._job,
            "shards": [[s.label, s.number, s.size, s.recipe] for s in lease.shards],
            "lease": lease.id,
            "run_id": run[0] if (run := inherited_run()) else "",
        }
        wanted = {"num_gpus": 1} if self._kind == "GPU" else {"num_cpus": 1}
        # Who lost a lease hands it out again itself, elsewhere and with a limit.
        with remote_options(**wanted, max_retries=0):
            self._refs[lease.id] = self._runner.submit(draw_lease, parameters).wrapped_future
        return True  # tasks end with the driver that submitted them

    def look(self, leases: Iterable[str]) -> Mapping[str, Seen]:
        """Return what has become of some leases; their beats tell which of them are at work."""
        refs = {self._refs[lease]: lease for lease in leases if lease in self._refs}
        if not refs:
            return {}
        ready, waiting = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        seen = {refs[ref]: Seen("waiting") for ref in waiting}
        for ref in ready:
            lease = refs[ref]
            self._refs.pop(lease)
            seen[lease] = _outcome(ref)
        return seen

    def cancel(self, lease: str, why: str) -> None:
        """End a lease's task, whatever it is at."""
        ref = self._refs.pop(lease, None)
        if ref is not None:
            ray.cancel(ref, force=True)

    def missing_workers(self, seconds: float) -> Exception:
        """Return the error for people."""
        return StageError(
            f"synthesize: the Ray cluster has no {self._kind} to draw shards on (waited "
            f"{seconds:.0f} s); add a node with `ray start`, then run the flow again: finished "
            "shards stay"
        )

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        self._runner.__exit__(None, None, None)


def ray_executor(
    job: ShardJob, folder: Path, execution: Execution, tracker: Tracker
) -> LeasingExecutor:
    """Return the executor of `execution.backend = ray`.

    Raises:
        InputError: no such cluster, or it has no GPU although one is asked for.
    """
    folder = folder.absolute()
    space = publish_job(job, folder, execution)
    carrier = RayCarrier(space.where, execution.ray_address, execution.device, execution.workers)
    patience = Patience(silent_seconds=execution.silent_seconds)
    return LeasingExecutor(carrier, folder, space, tracker.note, execution.workers, patience)


def _outcome(ref: Any) -> Seen:
    try:
        state = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        return Seen("failed", f"{type(error.cause).__name__}: {error.cause}")
    except ray.exceptions.RayError as error:  # its worker, node or object is gone
        return Seen("lost", f"its worker died ({type(error).__name__})")
    if state.is_completed():
        return Seen("ended")
    return Seen("failed", state.message or "its task failed")
