"""The flow `augment`: all stages in order, each a Prefect task, with retries and a record.

`python -m flows.augment` runs it in this process, on Prefect's temporary server unless
PREFECT_API_URL names one. It calls the same stage functions as `replenish run` and `dvc repro`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import httpx
import typer
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run, task_run
from prefect.settings import get_current_settings
from prefect.states import Failed

from flows.form import Changes
from flows.holding import hold_folder
from flows.server import need_server
from flows.shown import show_results
from flows.tracking import PrefectTracker
from flows.workers import check_workers, lent_workers
from pipeline.errors import InputError, StageError
from pipeline.params import Params, StageName, load_params
from pipeline.stages import STAGES
from pipeline.stages.running import run_stage_at, stale_stages
from pipeline.storage.artifacts import Artifacts, mirror_folder, open_artifacts
from pipeline.storage.locations import is_url, open_location
from pipeline.tracking.facts import log_results, outcome_lines, read_verdict
from pipeline.tracking.session import Session, record_run
from pipeline.tracking.tracker import Tracker

RETRIES = 2
RETRY_DELAY_SECONDS = 10.0
SWEEP_TAG = "sweep:"


def _may_pass(_task: object, _run: object, state: State[Any]) -> bool:
    """Say whether trying again can help: what the user gave, or a broken result, stays so."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, InputError | StageError)


# The stage's folder is its cache, with a key of its own; Prefect is to keep none.
@task(retries=RETRIES, retry_condition_fn=_may_pass, cache_policy=NO_CACHE, log_prints=False)
def run_one(
    name: StageName, params: Params, place: Artifacts, tracker: Tracker, force: bool
) -> dict[str, Any]:
    """Bring one stage up to date; the task takes the stage's name."""
    # A retry goes on from where the first attempt stopped.
    first = (task_run.run_count or 1) == 1
    with lent_workers(params.execution):
        summary = run_stage_at(name, params, place, tracker, force=force and first)
    return summary.model_dump(mode="json")


@flow(name="augment", validate_parameters=True, log_prints=False)
def augment(
    params_file: str = "params.yaml",
    artifacts: str = "artifacts",
    changes: Changes = Changes(),  # noqa: B008 - frozen
    more: tuple[str, ...] = (),
    force: bool = False,
    mlflow: bool = True,
) -> dict[str, Any] | State[Any]:
    """Top up a labelled image set with synthetic images, and say whether that helped.

    Prefect's page shows these arguments as a form, with these descriptions.

    Args:
        params_file: params file, in the project folder.
        artifacts: folder that holds the stages' folders, or its URL (s3://bucket/run).
        changes: what to change against the params file; an empty field leaves it as it is there.
        more: further changes, each `section.key=value`.
        force: do every stage again, up to date or not.
        mlflow: record the run in MLflow.

    Raises:
        InputError: the params or the data cannot be used, or another flow run is at work in the
            folder; the run's state has the message.
        StageError: a stage failed; likewise.
    """
    # A returned state carries the message alone: an error of the user's needs no traceback.
    try:
        params = load_params(Path(params_file), (*changes.overrides(), *more))
        with open_artifacts(artifacts) as place, hold_folder(place.folder):
            return _run_all(params, place, force, mlflow)
    except (InputError, StageError) as error:
        return Failed(message=str(error), data=error)


def _run_all(params: Params, place: Artifacts, force: bool, mlflow: bool) -> dict[str, Any]:
    logger, artifacts = get_run_logger(), place.folder
    run_id = str(flow_run.id or "")
    with record_run(
        artifacts,
        params,
        "flow",
        "flow",
        speakers=(PrefectTracker(logger),),
        warn=logger.warning,
        mlflow=mlflow,
        mlflow_name=str(flow_run.name or "augment"),
        prefect_run_id=run_id,
        tags={"prefect_flow_run_id": run_id, **sweep_tags(flow_run.tags)},
        nothing_to_do=lambda: not (force or stale_stages(params, artifacts)),
    ) as session:
        _label(run_id, session)
        check_workers(params.execution, logger.warning)
        for name in STAGES:
            # The files of a stage are its cache, with a key of its own: Prefect keeps none.
            one = run_one.with_options(
                name=name, task_run_name=name, retry_delay_seconds=RETRY_DELAY_SECONDS
            )
            one(name, params, place, session.tracker, force)
        log_results(artifacts, session.tracker)
    show_results(artifacts, session.mlflow_run_id, session.run_id)
    verdict = read_verdict(artifacts)
    return {
        "decision": verdict.get("decision"),
        "sentence": verdict.get("sentence"),
        "gain_points": verdict.get("gain_points"),
        "report": str(artifacts / "report" / "index.html"),
        "run_id": session.run_id,
        "mlflow_run_id": session.mlflow_run_id,
        "seconds": {name: round(value, 1) for name, value in session.seconds.items()},
    }


def _label(flow_run_id: str, session: Session) -> None:
    """Let the run be found in Prefect by the id that logs, MLflow and shards know it by."""
    if flow_run_id:
        labels: dict[str, bool | int | float | str] = {"replenish.run_id": session.run_id}
        if session.mlflow_run_id:
            labels["replenish.mlflow_run_id"] = session.mlflow_run_id
        try:
            with get_client(sync_client=True) as client:
                client.update_flow_run_labels(UUID(flow_run_id), labels)
        except (PrefectHTTPStatusError, httpx.HTTPError) as error:
            get_run_logger().warning("the run has no labels in Prefect: %s", type(error).__name__)


def sweep_tags(prefect_tags: Sequence[str]) -> dict[str, str]:
    """Return MLflow's tag `sweep` of a run that a sweep started, by its Prefect tags."""
    names = [tag.removeprefix(SWEEP_TAG) for tag in prefect_tags if tag.startswith(SWEEP_TAG)]
    return {"sweep": names[0]} if names else {}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m flows.augment --set train.steps=500 --no-mlflow")
def command(
    params: Annotated[Path, typer.Option("--params", help="Params file.", metavar="FILE")] = Path(
        "params.yaml"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override one param; may be repeated."
        ),
    ] = None,
    artifacts: Annotated[
        str,
        typer.Option(
            "--artifacts", help="Folder of the stages' folders, or its URL.", metavar="DIR|URL"
        ),
    ] = "artifacts",
    force: Annotated[
        bool, typer.Option("--force", help="Do it again even if it is up to date.")
    ] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow/--no-mlflow", help="Record the run in MLflow (mlflow.db).")
    ] = True,
) -> None:
    """Run the flow `augment` in this process and say what came of it."""
    load_params(params, tuple(overrides or ()))  # a wrong params file needs no server
    _need_server()
    try:
        outcome: dict[str, Any] = augment(
            params_file=str(params),
            artifacts=artifacts,
            more=tuple(overrides or ()),
            force=force,
            mlflow=mlflow,
        )  # type: ignore[assignment]
    except KeyboardInterrupt:  # here, because typer would make "Aborted." of it
        _fail("interrupted; run the same command again to go on from here", 130)
    folder = Path(artifacts)
    if is_url(artifacts):
        folder = mirror_folder(open_location(artifacts))
    for line in outcome_lines(folder, outcome["seconds"]):
        typer.echo(line)


def _need_server() -> None:
    if get_current_settings().api.url:
        need_server()  # one that is named is asked at once: Prefect would try for minutes
        return
    try:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
    except Exception as error:  # a busy port, a time-out, a broken database: all end here
        raise StageError(
            f"Prefect's temporary server did not start ({type(error).__name__}: {error}); "
            "`make ui` starts one that stays, to be named in PREFECT_API_URL; "
            "`replenish run` does the same work without Prefect"
        ) from None
    if failure is not None:
        raise StageError(
            f"Prefect's temporary server does not answer ({type(failure).__name__}: {failure}); "
            "run again, or use `replenish run`, which does the same work without Prefect"
        )


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the input cannot be used."""
    try:
        app(arguments, standalone_mode=True)
    except InputError as error:
        _fail(error, 2)
    except StageError as error:
        _fail(error, 1)
    except Exception as error:  # Prefect has logged the traceback already
        _fail(f"{type(error).__name__}: {error}", 1)
    raise SystemExit(0)


def _fail(error: object, status: int) -> NoReturn:
    for line in str(error).splitlines() or [""]:
        typer.echo(f"error: {line}", err=True)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
