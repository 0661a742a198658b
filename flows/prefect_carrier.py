"""Leases as runs of the deployment `generate-shard`, which workers of a Prefect pool take."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.objects import WorkerStatus as Online
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import task_run
from prefect.states import Cancelling, Crashed

from flows.shards import GENERATE_SHARD
from flows.shared_space import publish_job
from pipeline.errors import InputError, StageError
from pipeline.params import Execution
from pipeline.synthesis.dispatch import Lease
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.leasing import LeasingExecutor, Patience, Seen
from pipeline.tracking.identity import inherited_run
from pipeline.tracking.tracker import Tracker

_RUNS_A_LOOK = 200  # the API gives no more at once

# A pending run has a worker that may die, as a running one has.
_WAITING = {StateType.SCHEDULED, StateType.PAUSED}
_STATES = {
    StateType.COMPLETED: "ended",
    StateType.FAILED: "failed",
    StateType.CRASHED: "lost",
    StateType.CANCELLED: "lost",
}


@dataclass
class PrefectCarrier:
    """Carries leases; see `pipeline.synthesis.leasing.Carrier`.

    Attributes:
        pool: name of the work pool.
        job: folder or URL of the job and its shards.
        client: of the Prefect server.
    """

    pool: str
    job: str
    client: SyncPrefectClient
    _deployment: UUID | None = None
    _runs: dict[str, UUID] = field(default_factory=dict)

    def workers(self) -> int:
        """Return how many workers of the pool are online; none where it is paused.

        Raises:
            InputError: there is no such pool.
            ConnectionError: the server does not answer.
        """
        with _answered(self.client):
            try:
                if self.client.read_work_pool(self.pool).is_paused:
                    return 0
                found = self.client.read_workers_for_work_pool(self.pool)
            except ObjectNotFound:
                raise InputError(
                    f"execution.work_pool = {self.pool}: the Prefect server at "
                    f"{self.client.api_url} has no such work pool; make it with `replenish "
                    "bootstrap`, or name another"
                ) from None
        return sum(worker.status == Online.ONLINE for worker in found)

    def submit(self, lease: Lease, key: str) -> bool:
        """Create the run of a lease, or find the one that has its key; False if that has ended."""
        deployment = self._deployment or self.find_deployment()
        with _answered(self.client):
            run = self.client.create_flow_run_from_deployment(
                deployment,
                parameters={
                    "job": self.job,
                    "shards": [[s.label, s.number, s.size, s.recipe] for s in lease.shards],
                    "lease": lease.id,
                    "run_id": _run_id(),
                },
                idempotency_key=key,
                tags=["replenish", "shards"],
                name=f"shards-{lease.id[:8]}",
                labels=_parent_labels(),
            )
        self._runs[lease.id] = run.id
        return run.state is None or not run.state.is_final()

    def look(self, leases: Iterable[str]) -> Mapping[str, Seen]:
        """Return the states of the runs of some leases."""
        by_run = {self._runs[lease]: lease for lease in leases if lease in self._runs}
        seen: dict[str, Seen] = {}
        ids = list(by_run)
        for start in range(0, len(ids), _RUNS_A_LOOK):
            some = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + _RUNS_A_LOOK]))
            with _answered(self.client):
                for run in self.client.read_flow_runs(flow_run_filter=some, limit=_RUNS_A_LOOK):
                    seen[by_run[run.id]] = _seen(run)
        for run_id in ids:
            seen.setdefault(by_run[run_id], Seen("lost", "its flow run was deleted"))
        return seen

    def cancel(self, lease: str, why: str) -> None:
        """Cancel a lease's run; one that gives no sign of life is marked as crashed."""
        run = self._runs.get(lease)
        if run is None:
            return
        lost = why.startswith("silent")
        state: State[Any] = Crashed(message=why) if lost else Cancelling(message=why)
        with _answered(self.client):
            try:
                self.client.set_flow_run_state(run, state, force=lost)
            except ObjectNotFound:
                pass  # it was deleted meanwhile

    def missing_workers(self, seconds: float) -> Exception:
        """Return the error for people."""
        return StageError(
            f"synthesize: no worker of the work pool {self.pool!r} is online (waited "
            f"{seconds:.0f} s), or the pool is paused; start one: prefect worker start --pool "
            f"{self.pool} --limit 1 (or: prefect work-pool resume {self.pool}), then run the flow "
            "again: finished shards stay"
        )

    def close(self) -> None:
        """Nothing is held but the client, which belongs to who gave it."""

    def find_deployment(self) -> UUID:
        """Return the deployment of `generate-shard` in the pool.

        Raises:
            InputError: there is none.
        """
        with _answered(self.client):
            found = self.client.read_deployments(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[GENERATE_SHARD])),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self.pool])),
            )
        if not found:
            raise InputError(
                f"execution.work_pool = {self.pool}: no deployment of the flow {GENERATE_SHARD} "
                "uses this work pool; run `replenish bootstrap`, or `prefect deploy --all`"
            )
        self._deployment = found[0].id
        return found[0].id


def online_workers(pool: str) -> int:
    """Return how many workers of a pool are online.

    Raises:
        InputError: there is no such pool, or no deployment of `generate-shard` uses it.
    """
    with get_client(sync_client=True) as client:
        carrier = PrefectCarrier(pool, "", client)
        found = carrier.workers()
        carrier.find_deployment()
    return found


def prefect_executor(
    job: ShardJob, folder: Path, execution: Execution, tracker: Tracker
) -> LeasingExecutor:
    """Return the executor of `execution.backend = prefect`.

    Raises:
        InputError: there is no such work pool, or no server.
    """
    folder = folder.absolute()
    space = publish_job(job, folder, execution)
    carrier = PrefectCarrier(execution.work_pool, space.where, get_client(sync_client=True))
    carrier.workers()  # a pool that does not exist is refused before any work
    patience = Patience(silent_seconds=execution.silent_seconds)
    return LeasingExecutor(carrier, folder, space, tracker.note, execution.workers, patience)


def _seen(run: FlowRun) -> Seen:
    kind = run.state.type if run.state is not None else StateType.SCHEDULED
    if kind in _WAITING:
        return Seen("waiting")
    message = (run.state.message or "") if run.state is not None else ""
    name: Any = _STATES.get(kind, "running")
    if name == "failed":
        message = message or "its run failed"
    elif name == "lost":
        message = message or "its worker died"
    return Seen(name, "" if name in ("running", "ended") else message)


def _run_id() -> str:
    run = inherited_run()
    return run[0] if run else ""


def _parent_labels() -> dict[str, bool | int | float | str]:
    """Return what tells in Prefect which task sent a run."""
    sender = task_run.id
    return {"replenish.sent_by_task_run": str(sender)} if sender else {}


@contextmanager
def _answered(client: SyncPrefectClient) -> Iterator[None]:
    """Turn all the ways in which a server may be away into one error."""
    try:
        yield
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        status = error.response.status_code if isinstance(error, PrefectHTTPStatusError) else 0
        if status and status < 500:
            raise StageError(
                f"synthesize: the Prefect server at {client.api_url} refuses ({status}): {error}"
            ) from None
        raise ConnectionError(
            f"the Prefect server at {client.api_url} does not answer ({type(error).__name__})"
        ) from None
