"""A run as all drivers record it: its id, log, side files, metrics file and MLflow run, tied up."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import __version__
from pipeline.params import SECTIONS, Params
from pipeline.tracking.facts import StageClock
from pipeline.tracking.identity import LOGS, choose_run_id, run_environment
from pipeline.tracking.jsonlines import JsonLinesTracker, new_run_log
from pipeline.tracking.lines import prune_run_logs
from pipeline.tracking.prometheus import MetricsFile
from pipeline.tracking.recorder import RunFacts, RunRecorder
from pipeline.tracking.tracker import FanOut, Tracker

Driver = Literal["run", "stage", "flow"]


@dataclass(frozen=True)
class Session:
    """A run at work.

    Attributes:
        tracker: to be handed to the stages.
        run_id: of the run.
        mlflow_run_id: empty where MLflow does not record it.
        seconds: stage -> seconds that it took; filled as they end.
    """

    tracker: Tracker
    run_id: str
    mlflow_run_id: str
    seconds: dict[str, float]


@contextmanager
def record_run(
    artifacts: Path,
    params: Params,
    name: str,
    driver: Driver,
    *,
    speakers: Sequence[Tracker],
    warn: Callable[[str], None],
    mlflow: bool = True,
    mlflow_name: str = "",
    prefect_run_id: str = "",
    tags: Mapping[str, str] | None = None,
    logs: Path = LOGS,
    nothing_to_do: Callable[[], bool] = lambda: False,
) -> Iterator[Session]:
    """Record a run while the body works; processes that the body starts inherit its id.

    Args:
        artifacts: folder of the stages' folders.
        params: of the run.
        name: of its log: `run`, `flow`, or the stage.
        driver: `run` or `flow` (all stages in one go) or `stage` (the one of that name).
        speakers: trackers that tell people: console, Prefect.
        warn: told what goes wrong beside the work.
        mlflow: record it in MLflow, too?
        mlflow_name: of a new MLflow run; empty is `name`.
        prefect_run_id: of the flow run, if there is one.
        tags: more labels of the MLflow run.
        logs: folder of the logs, the index and the metrics file.
        nothing_to_do: is all up to date? A finished MLflow run stays the one of this work then.

    Raises:
        InputError: REPLENISH_RUN_ID is no run id.
    """
    run_id = choose_run_id(prefect_run_id)
    clock = StageClock()
    prune_run_logs(logs)
    log = JsonLinesTracker(new_run_log(logs, name), warn, run_id=run_id)

    def tell(message: str) -> None:
        warn(message)
        log.warning(message)

    with ExitStack() as stack:
        stack.enter_context(run_environment(run_id, logs))
        trackers: list[Tracker] = []
        mlflow_run_id = ""
        if mlflow:
            # MLflow takes seconds to import: only where it is wanted.
            from pipeline.tracking.recording import track_run

            recorded = stack.enter_context(
                track_run(
                    artifacts,
                    params.digest(),
                    mlflow_name or name,
                    driver,
                    warn=tell,
                    tags={"replenish_run_id": run_id, **(tags or {})},
                    nothing_to_do=nothing_to_do,
                )
            )
            trackers.append(recorded)
            mlflow_run_id = recorded.run_id
        facts = RunFacts(run_id, driver, log.path, mlflow_run_id, prefect_run_id)
        recorder = RunRecorder(artifacts, facts, tell)
        # A stage ends for the last of them first: the index has it before the metrics are written.
        trackers = [clock, *speakers, log, MetricsFile(facts, tell), recorder, *trackers]
        stack.enter_context(
            log.run(
                driver=driver,
                version=__version__,
                host=socket.gethostname(),
                pid=os.getpid(),
                artifacts=str(artifacts.absolute()),
                mlflow_run_id=mlflow_run_id,
                prefect_run_id=prefect_run_id,
            )
        )
        stages = (name,) if driver == "stage" else SECTIONS
        stack.enter_context(recorder.run(tuple(stages)))
        tracker = FanOut(trackers)
        tracker.params(params.flat())
        yield Session(tracker, run_id, mlflow_run_id, clock.seconds)
