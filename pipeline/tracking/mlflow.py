"""The run in MLflow: one parent run for a pipeline run, one child run for each classifier arm.

The only file that imports mlflow. Every call names its run: MLflow's "active run" belongs to a
thread and would be lost in workers. The store is `mlflow.db` (SQLite) in the project folder with
the files in `mlartifacts/` beside it, unless MLFLOW_TRACKING_URI names another.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from shutil import copyfile
from typing import Any, Literal

# MLflow reads these while it is imported, so this module sets them first; a user's own value
# stands. Retries are few because a run must not wait minutes for a server that has gone away.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
)

from pipeline.params import SECTIONS  # noqa: E402
from pipeline.tracking.facts import run_tags  # noqa: E402
from pipeline.tracking.memory import run_memory  # noqa: E402
from pipeline.tracking.tracker import NullTracker, Scalar  # noqa: E402

EXPERIMENT = "replenish"
LAST_STAGE = SECTIONS[-1]
PARENT = "mlflow.parentRunId"
Driver = Literal["run", "stage", "flow"]
Status = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_POINTS = 50
FLUSH_SECONDS = 2.0
SILENT_SECONDS = 30.0  # after a failed call the server is left alone for this long

# MLflow's limits: mlflow/utils/validation.py.
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 8000
_KEY_CHARACTERS = 250
_DIGEST_CHARACTERS = 36
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000


def default_tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or else the address of `mlflow.db` in `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(root)


def local_tracking_uri(root: Path) -> str:
    """Return the address of `mlflow.db` in `root`."""
    # Only these two are quoted: SQLAlchemy takes them for its own and reads the rest as it is.
    path = str(root.absolute() / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


class MlflowTracker(NullTracker):
    """Writes to one parent run, by its id.

    A server that goes away never stops the work: `warn` is told once, what was due is dropped
    and later calls try again. The JSON lines and the results on disk remain.
    """

    def __init__(
        self,
        client: MlflowClient | None,
        run: Run | None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `run`; without a client (the store could not be opened) write nothing."""
        self._client = client
        self._run_id: str = run.info.run_id if run is not None else ""
        self._experiment_id: str = run.info.experiment_id if run is not None else ""
        self._warn = warn
        self._clock = clock
        self._points: list[Metric] = []
        self._flushed_at = clock()
        self._silent_until = float("-inf")
        self._warned = False
        self._known_params: dict[str, str] = dict(run.data.params) if run is not None else {}
        self._final: dict[str, float] = {}

    @property
    def run_id(self) -> str:
        """The id of the parent run; empty where the store could not be opened."""
        return self._run_id

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker; also logs `<stage>/seconds`."""
        began = self._clock()
        try:
            yield
        finally:
            self.metrics({f"{name}/seconds": self._clock() - began})
            self.flush()

    def params(self, values: Mapping[str, Scalar]) -> None:
        """See Tracker; a value that the run has already is kept, for MLflow's are final."""
        self._log_params(self._run_id, values, self._known_params)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See Tracker; points are gathered and sent some seconds apart."""
        if self._client is None:
            return
        if step is None:
            # A final number is said by the stage and again by `facts.log_results`.
            values = {k: v for k, v in values.items() if self._final.get(k) != v}
            self._final.update(values)
        now = int(time.time() * 1000)
        self._points += [
            Metric(_key(name), float(value), now, step or 0) for name, value in values.items()
        ]
        late = self._clock() - self._flushed_at >= FLUSH_SECONDS
        if late or len(self._points) >= FLUSH_POINTS:
            self.flush()

    def flush(self) -> None:
        """Send the points that wait."""
        points, self._points = self._points, []
        self._flushed_at = self._clock()
        for start in range(0, len(points), _METRICS_PER_BATCH):
            batch = points[start : start + _METRICS_PER_BATCH]
            self._send(lambda client, batch=batch: client.log_batch(self._run_id, metrics=batch))

    def artifact(self, path: Path, name: str) -> None:
        """See Tracker."""
        target = PurePosixPath(name)
        folder = None if target.parent == PurePosixPath() else target.parent.as_posix()

        def send(client: MlflowClient) -> None:
            if path.name == target.name:
                client.log_artifact(self._run_id, str(path), folder)
                return
            # MLflow keeps the local name: give it a copy that has the wanted one.
            with tempfile.TemporaryDirectory() as temporary:
                copy = Path(temporary) / target.name
                copyfile(path, copy)
                client.log_artifact(self._run_id, str(copy), folder)

        self._send(send)

    def dataset(self, name: str, digest: str, rows: int, context: str) -> None:
        """See Tracker; MLflow takes 36 characters of the digest, the source holds all of it."""
        entity = Dataset(
            name=name,
            digest=digest[:_DIGEST_CHARACTERS],
            source_type="replenish",
            source=f'{{"digest": "{digest}"}}',
            profile=f'{{"num_rows": {rows}}}',
        )
        used = DatasetInput(entity, [InputTag("mlflow.data.context", context)])
        self._send(lambda client: client.log_inputs(self._run_id, [used]))

    def arm(self, name: str, params: Mapping[str, Scalar], metrics: Mapping[str, float]) -> None:
        """See Tracker; an arm that the run has a child for is written to that child."""

        def send(client: MlflowClient) -> None:
            child = self._child(client, name)
            child_id = child.info.run_id
            self._log_params(child_id, params, dict(child.data.params))
            now = int(time.time() * 1000)
            known = child.data.metrics
            points = [
                Metric(key, float(value), now, 0)
                for key, value in ((_key(k), v) for k, v in metrics.items())
                if known.get(key) != value
            ]
            if points:
                client.log_batch(child_id, metrics=points)
            client.set_terminated(child_id, "FINISHED")

        self._send(send)

    def tags(self, values: Mapping[str, str]) -> None:
        """See Tracker."""
        named = {_key(k): str(v)[:_TAG_CHARACTERS] for k, v in values.items()}
        if "git_commit" in named:
            named["mlflow.source.git.commit"] = named["git_commit"]  # MLflow's page shows this
        tags = [RunTag(key, value) for key, value in named.items()]
        if tags:
            self._send(lambda client: client.log_batch(self._run_id, tags=tags))

    def end(self, status: Status) -> None:
        """Send what waits and end the parent run."""
        self.flush()
        self._silent_until = float("-inf")
        self._send(lambda client: client.set_terminated(self._run_id, status))

    def _child(self, client: MlflowClient, name: str) -> Run:
        found = client.search_runs(
            [self._experiment_id], f"tags.`{PARENT}` = '{self._run_id}'", max_results=1000
        )
        for run in found:
            if run.data.tags.get("arm") == name:
                return run
        tags = {PARENT: self._run_id, "arm": name}
        return client.create_run(self._experiment_id, tags=tags, run_name=name)

    def _log_params(self, run_id: str, values: Mapping[str, Scalar], known: dict[str, str]) -> None:
        new: dict[str, str] = {}
        for name, value in values.items():
            key = _key(name)
            if key not in known:
                new[key] = _short(str(value), _PARAM_CHARACTERS)
        items = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(items), _PARAMS_PER_BATCH):
            batch = items[start : start + _PARAMS_PER_BATCH]
            self._send(lambda client, batch=batch: client.log_batch(run_id, params=batch))
        known.update(new)

    def _send(self, call: Callable[..., Any]) -> None:
        if self._client is None or self._clock() < self._silent_until:
            return
        # Whatever MLflow raises (its own errors, SQLAlchemy's, urllib3's): the work goes on.
        try:
            call(self._client)
        except Exception as error:
            self._silent_until = self._clock() + SILENT_SECONDS
            if not self._warned:
                self._warned = True
                self._warn(
                    f"MLflow: not written ({_first_line(error)}); the work goes on, and MLflow's "
                    "record of this run will have gaps"
                )


def open_run(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    resume_run_id: str | None = None,
    *,
    artifact_root: Path | None = None,
) -> tuple[MlflowClient, Run]:
    """Return a client and a running run: the named one if it can be resumed, else a new one.

    A run can be resumed if the store has it, it was not deleted and it did not finish.
    `artifact_root` is where a new experiment in a local database keeps its files.

    Raises:
        Exception: whatever MLflow and its database raise when the store cannot be reached.
    """
    client = MlflowClient(tracking_uri)
    if resume_run_id is not None:
        run = _unfinished(client, resume_run_id)
        if run is not None:
            client.update_run(run.info.run_id, status="RUNNING")
            return client, run
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        experiment_id = found.experiment_id
    else:
        local = artifact_root is not None and tracking_uri.startswith("sqlite:")
        location = artifact_root.absolute().as_uri() if artifact_root and local else None
        # Without its kind, MLflow's page opens the experiment in its view for language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        experiment_id = client.create_experiment(experiment, location, tags=kind)
    return client, client.create_run(experiment_id, run_name=run_name)


def _unfinished(client: MlflowClient, run_id: str) -> Run | None:
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    alive = run.info.lifecycle_stage == "active" and run.info.status != "FINISHED"
    return run if alive else None


@contextmanager
def track_run(
    artifacts: Path,
    params_digest: str,
    name: str,
    driver: Driver,
    *,
    warn: Callable[[str], None],
    root: Path | None = None,
    params: Mapping[str, Scalar] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[MlflowTracker]:
    """Give a tracker on the MLflow run of this work, and end the run as the work ends.

    A run of the same params in the same artifacts folder that did not finish is joined: it was
    killed, it failed, or its stages are run one by one. With the driver `stage` the run is ended
    only by the stage `report`, the last; before that it stays RUNNING for the next stage to join.

    Args:
        artifacts: the artifacts folder.
        params_digest: `Params.digest()`.
        name: name of a new run; with the driver `stage`, the stage.
        driver: who drives: all stages in one go (`run`, `flow`) or one of them (`stage`).
        warn: told once when MLflow cannot be reached.
        root: the project folder that holds mlflow.db; the working directory by default.
        params: `Params.flat()`.
        tags: more labels, besides git's and dvc.lock's.
    """
    root = Path.cwd() if root is None else root
    memory = run_memory(artifacts)
    tracker = MlflowTracker(None, None, warn)
    try:
        client, run = open_run(
            default_tracking_uri(root),
            EXPERIMENT,
            "stages" if driver == "stage" else name,
            memory.recall(params_digest),
            artifact_root=root / "mlartifacts",
        )
        memory.keep(params_digest, run.info.run_id)
        tracker = MlflowTracker(client, run, warn)
    except Exception as error:
        warn(f"MLflow: the store cannot be opened ({_first_line(error)}); going on without it")
    tracker.params(params or {})
    tracker.tags(
        {"driver": driver, "params_digest": params_digest, **run_tags(root), **(tags or {})}
    )
    status: Status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if status == "FINISHED" and driver == "stage" and name != LAST_STAGE:
            tracker.flush()
        else:
            tracker.end(status)


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:_KEY_CHARACTERS]


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
