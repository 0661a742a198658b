"""The flow `sweep`: the whole flow for each point of a small grid, and one table of the verdicts.

Each point has an artifacts folder of its own below the sweep's, so that a sweep that is started
again goes on: finished points are up to date and skipped. A point that fails does not stop others.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import Field

from flows.augment import SWEEP_TAG, augment
from flows.holding import hold_folder
from flows.points import Point, borrow, grid
from flows.server import need_workers
from flows.tracking import PrefectTracker
from pipeline.errors import InputError, StageError
from pipeline.stages.running import stale_stages
from pipeline.storage.locations import refuse_url
from pipeline.tracking.facts import read_verdict

MOST_RUNS = 500
LOOK_SECONDS = 5.0
WORKERS_SECONDS = 30.0  # between looks whether anybody is there to take the runs

Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MOST_RUNS)]
Shares = Annotated[list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(max_length=20)]
Counts = Annotated[
    list[Literal["auto", "fill", "planned"] | Annotated[int, Field(ge=0, le=1_000_000)]],
    Field(max_length=20),
]
Weights = Annotated[
    list[Literal["auto"] | Annotated[float, Field(ge=0.0, le=20.0)]], Field(max_length=20)
]
MaxRuns = Annotated[int, Field(ge=1, le=MOST_RUNS)]


@flow(name="sweep", validate_parameters=True, log_prints=False)
def sweep(
    params_file: str = "params.yaml",
    artifacts: str = "artifacts/sweep",
    seeds: Seeds = [0, 1],  # noqa: B006 - Prefect copies the defaults into the form
    synthetic_shares: Shares = [],  # noqa: B006
    images_per_class: Counts = [],  # noqa: B006
    guidance: Weights = [],  # noqa: B006
    more: tuple[str, ...] = (),
    max_runs: MaxRuns = 20,
    through: str = "",
    mlflow: bool = True,
) -> dict[str, Any] | State[Any]:
    """Run the flow `augment` for each point of a grid, and put the verdicts into one table.

    Args:
        params_file: params file, in the project folder; an axis without values stays as there.
        artifacts: folder of the sweep; each point gets a folder in it, such as seed-0_share-0.5.
        seeds: root seeds.
        synthetic_shares: shares of synthetic draws in the arms with both, between 0 and 1.
        images_per_class: accepted synthetic images of each class: numbers, auto, fill or planned.
        guidance: weights of guidance, 1 = none; or auto.
        more: further changes of all points, each `section.key=value`.
        max_runs: a grid of more points is refused before any work.
        through: deployment whose pool does the points, such as augment/on-demand; empty = here, one
            after the other.
        mlflow: record the runs in MLflow, with the tag `sweep`.

    Raises:
        InputError: the grid or its params cannot be used, or another flow run is at work in the
            folder; the run's state has the message.
        StageError: some points failed; the table says which, and why.
    """
    axes: dict[str, list[Any]] = {
        "seeds": seeds,
        "synthetic_shares": synthetic_shares,
        "images_per_class": images_per_class,
        "guidance": guidance,
    }
    try:
        refuse_url(artifacts, "the points of a sweep have folders of their own below it")
        points = grid(Path(params_file), more, axes, max_runs)
        with hold_folder(Path(artifacts)):
            outcomes = _run_points(points, Path(artifacts), params_file, through, mlflow)
    except (InputError, StageError) as error:
        return Failed(message=str(error), data=error)
    _show(points, Path(artifacts), outcomes)
    bad = {name: why for name, why in outcomes.items() if why not in ("done", "up to date")}
    if bad:
        told = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:3])
        message = (
            f"sweep: {len(bad)} of {len(points)} runs failed; start it again to go on with them. "
            f"{told}"
        )
        return Failed(message=message, data=StageError(message))
    return {"points": outcomes, "folder": artifacts}


def _run_points(
    points: list[Point], artifacts: Path, params_file: str, through: str, mlflow: bool
) -> dict[str, str]:
    """Return what came of each point: `done`, `up to date`, or why it failed."""
    folders = {point.name: artifacts / point.name for point in points}
    outcomes = {
        point.name: "up to date"
        for point in points
        if not stale_stages(point.params, folders[point.name])
    }
    waiting = [point for point in points if point.name not in outcomes]
    get_run_logger().info("%d points, %d of them up to date", len(points), len(outcomes))
    parameters = {
        point.name: {
            "params_file": params_file,
            "artifacts": str(folders[point.name]),
            "more": list(point.overrides),
            "mlflow": mlflow,
        }
        for point in waiting
    }
    tag = f"{SWEEP_TAG}{artifacts.name}"
    if through:
        return outcomes | _through(waiting, parameters, through, tag)
    tracker = PrefectTracker(get_run_logger())
    for point in waiting:
        borrow(point, folders[point.name], list(folders.values()), tracker)
        named = augment.with_options(flow_run_name=f"{artifacts.name}: {point.name}")
        with tags("replenish", tag):
            state: State[Any] = named(**parameters[point.name], return_state=True)
        outcomes[point.name] = _outcome(state)
    return outcomes


def _through(
    waiting: list[Point], parameters: dict[str, dict[str, Any]], deployment: str, tag: str
) -> dict[str, str]:
    """Start a run of the deployment for each point, and wait for all of them."""
    _need_free_pool(deployment)
    runs = {
        point.name: _start(deployment, point.name, parameters[point.name], tag) for point in waiting
    }
    outcomes: dict[str, str] = {}
    looked = time.monotonic()
    with get_client(sync_client=True) as client:
        while len(outcomes) < len(runs):
            working = False
            for name, run in runs.items():
                state = client.read_flow_run(run.id).state if name not in outcomes else None
                if state is not None and state.is_final():
                    outcomes[name] = _outcome(state)
                elif state is not None:
                    working = working or state.is_running() or state.is_pending()
            if len(outcomes) == len(runs):
                break
            if not working and time.monotonic() - looked >= WORKERS_SECONDS:
                looked = time.monotonic()
                _need_free_pool(deployment)  # the last worker may have gone: its runs stay
            time.sleep(LOOK_SECONDS)
    return outcomes


def _start(deployment: str, name: str, parameters: dict[str, Any], tag: str) -> FlowRun:
    def start(key: str) -> FlowRun:
        # A sweep whose worker died is run again under its id, and finds the runs it has started.
        return run_deployment(  # type: ignore[return-value]
            deployment,
            parameters=parameters,
            timeout=0,
            tags=["replenish", tag],
            flow_run_name=f"{tag.removeprefix(SWEEP_TAG)}: {name}",
            idempotency_key=key,
        )

    key = f"{flow_run.id}/{name}"
    run = start(key)
    if run.state is not None and run.state.is_final() and not run.state.is_completed():
        run = start(f"{key}/{flow_run.run_count}")
    return run


def _need_free_pool(deployment: str) -> None:
    """Make sure that the deployment's pool can run points while this sweep runs.

    Raises:
        InputError: there is no such deployment, nobody works for its pool, or the sweep itself
            holds the pool's only slot.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError):
            raise InputError(
                f"sweep: through = {deployment}: no such deployment; write FLOW/NAME, such as "
                "augment/on-demand, or leave it empty; `replenish bootstrap` makes those of "
                "Replenish"
            ) from None
        pool = str(found.work_pool_name or "")
        need_workers(client, pool)
        own = client.read_flow_run(flow_run.id).work_pool_name if flow_run.id else None
        limit = client.read_work_pool(pool).concurrency_limit
    if own == pool and limit == 1:
        raise InputError(
            f"sweep: through = {deployment}: this sweep holds the only slot of the work pool "
            f"{pool}, so that its runs would wait for ever; raise the pool's concurrency limit, "
            "start the sweep by hand, or leave `through` empty"
        )


def _outcome(state: State[Any]) -> str:
    return "done" if state.is_completed() else f"{state.name}: {state.message or 'no message'}"


def _show(points: list[Point], artifacts: Path, outcomes: dict[str, str]) -> None:
    rows: list[dict[str, Any]] = []
    for point in points:
        verdict = read_verdict(artifacts / point.name)
        rows.append(
            {
                **point.values,
                "outcome": outcomes[point.name],
                "decision": verdict.get("decision", "-"),
                "gain, points": verdict.get("gain_points", "-"),
                "interval, points": str(verdict.get("interval_points", "-")),
                "best baseline": verdict.get("best_baseline", "-"),
                "best synthetic": verdict.get("best_synthetic", "-"),
                "folder": str(artifacts / point.name),
            }
        )
    create_table_artifact(
        table=rows, key="sweep", description="The verdict of each point of the grid"
    )
