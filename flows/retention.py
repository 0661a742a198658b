"""The flow `retention`: what old runs left, said first and removed when asked.

One rule for all of it: what is among the newest `keep_runs`, or younger than `keep_days`, stays.
Finished stage folders always stay, and so does whatever a run is at work on.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from pydantic import Field

from flows.leftovers import Leftover, old_logs, old_work, remove
from pipeline.errors import InputError

FLOWS = ("augment", "sweep", "generate-shard", "retention")
_PAGE = 200  # the most that the server gives at once
TAG = "replenish"  # of all deployments in prefect.yaml
_ENDED = FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(TERMINAL_STATES)))

KeepRuns = Annotated[int, Field(ge=1, le=100_000)]
KeepDays = Annotated[int, Field(ge=1, le=36_500)]


@flow(name="retention", validate_parameters=True, log_prints=False)
def retention(
    artifacts: str = "artifacts",
    keep_runs: KeepRuns = 20,
    keep_days: KeepDays = 30,
    dry_run: bool = True,
    mlflow: bool = True,
) -> dict[str, Any] | State[Any]:
    """Say what old runs hold, and remove it if `dry_run` is off.

    Args:
        artifacts: folder of stages' folders, or of several such folders; only work that was given
            up is looked for in it, below `.work`.
        keep_runs: the newest so many logs, MLflow runs and flow runs stay, whatever their age.
        keep_days: what is younger stays, however many there are.
        dry_run: only say what would be removed.
        mlflow: look at the runs in MLflow too; one that holds a model with an alias stays.

    Raises:
        InputError: there is no such folder.
    """
    logger = get_run_logger()
    before = time.time() - keep_days * 86_400
    root = Path(artifacts)
    if not root.is_dir():
        error = InputError(f"{artifacts}: no such folder; give the artifacts folder of your runs")
        return Failed(message=str(error), data=error)
    found = [*old_work(root, before), *old_logs(Path("runs"), keep_runs, before)]
    if mlflow:
        # MLflow takes seconds to import: only where it is wanted.
        from flows.retention_mlflow import old_runs

        found += old_runs(Path.cwd(), keep_runs, before, logger.warning)
    found += _old_flow_runs(keep_runs, datetime.fromtimestamp(before, UTC))
    if not dry_run:
        # What somebody took up again meanwhile, or what does not go, stays and is told.
        found = [one for one in found if remove(one, logger.warning)]
    freed = sum(one.bytes for one in found)
    verb = "would be removed" if dry_run else "removed"
    logger.info("%d things %s, %.1f MB", len(found), verb, freed / 1e6)
    _show(found, verb, freed)
    counts: dict[str, int] = {}
    for one in found:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    return {"dry_run": dry_run, "counts": counts, "bytes": freed}


def _old_flow_runs(keep_runs: int, before: datetime) -> list[Leftover]:
    """Return the ended flow runs of Replenish that may go."""
    found: list[Leftover] = []
    with get_client(sync_client=True) as client:
        for name in FLOWS:
            offset, more = keep_runs, True
            while more:
                page = client.read_flow_runs(
                    flow_filter=FlowFilter(name=FlowFilterName(any_=[name])),
                    # Ended ones alone: those that a schedule has planned would count as newest.
                    flow_run_filter=FlowRunFilter(state=_ENDED),
                    sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                    limit=_PAGE,
                    offset=offset,
                )
                found += [
                    Leftover("flow run", f"{name}/{run.name}", 0, _delete_flow_run(run.id))
                    for run in page
                    if _is_ours(run)
                    if run.end_time is not None and run.end_time < before
                ]
                offset += len(page)
                more = len(page) == _PAGE
    return found


def _is_ours(run: FlowRun) -> bool:
    """Say whether a run is one of Replenish: another project may have flows of the same names."""
    return TAG in run.tags or any(label.startswith("replenish.") for label in run.labels)


def _delete_flow_run(run_id: Any) -> Any:
    def delete() -> None:
        with get_client(sync_client=True) as client:
            try:
                client.delete_flow_run(run_id)
            except ObjectNotFound:
                pass  # somebody else did

    return delete


def _show(found: list[Leftover], verb: str, freed: int) -> None:
    rows = [
        {"kind": one.kind, "name": one.name, "MB": round(one.bytes / 1e6, 2)} for one in found[:500]
    ]
    create_table_artifact(
        table=[*rows, {"kind": "all", "name": f"{len(found)} {verb}", "MB": round(freed / 1e6, 2)}],
        key="retention",
        description=f"What {verb}; the first 500 of {len(found)}",
    )
