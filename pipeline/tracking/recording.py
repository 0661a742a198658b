"""The run in MLflow: one parent run for a pipeline run, one child run for each classifier arm.

Every call names its run: MLflow's "active run" belongs to a thread and would be lost in workers.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from shutil import copyfile
from typing import Any, Literal

from PIL import Image

from pipeline.params import SECTIONS
from pipeline.tracking.lineage import run_tags
from pipeline.tracking.memory import run_memory
from pipeline.tracking.mlflow import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    MlflowClient,
    Param,
    Run,
    RunTag,
    default_tracking_uri,
    find_run,
    open_client,
    open_run,
    project_folder,
    save_model,
    system_metrics,
)
from pipeline.tracking.registry import enter
from pipeline.tracking.secrets import clean, without_secrets
from pipeline.tracking.tracker import NullTracker, Scalar, TrackedModel

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
        self._final: dict[str, float] = dict(run.data.metrics) if run is not None else {}
        self._images: set[tuple[str, int]] | None = None
        self.gaps = client is None  # was anything not written?

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
            if not self._send(
                lambda client, batch=batch: client.log_batch(self._run_id, metrics=batch)
            ):
                self._final.clear()  # what is said again is sent again

    def series(self, points: Mapping[str, Mapping[int, float]]) -> None:
        """See Tracker; the steps that a curve has already are kept as they are."""
        self.flush()  # points that wait are not known to the store yet
        now = int(time.time() * 1000)

        def send(client: MlflowClient) -> None:
            for name, values in points.items():
                known = {one.step for one in client.get_metric_history(self._run_id, _key(name))}
                self._points += [
                    Metric(_key(name), value, now, step)
                    for step, value in values.items()
                    if step not in known
                ]

        self._send(send)
        self.flush()

    def image(self, path: Path, key: str, step: int) -> None:
        """See Tracker; MLflow's page shows a slider over the steps of a key."""

        def send(client: MlflowClient) -> None:
            if self._images is None:
                listed = client.list_artifacts(self._run_id, "images")
                self._images = {_image_of(one.path) for one in listed}
            if (key, step) in self._images:
                return  # MLflow would show it twice
            with Image.open(path, formats=["PNG"]) as image:
                client.log_image(self._run_id, image, key=key, step=step, synchronous=True)
            self._images.add((key, step))

        self._send(send)

    def model(self, model: TrackedModel) -> None:
        """See Tracker; a model that the run has already is neither sent nor entered again."""

        def send(client: MlflowClient) -> None:
            model_id, location = self._logged_model(client, model)
            if model.registry:
                enter(client, model.registry, self._run_id, model_id, location, model.tags)

        self._send(send)

    def _logged_model(self, client: MlflowClient, model: TrackedModel) -> tuple[str, str]:
        mine = client.search_logged_models(
            [self._experiment_id], f"source_run_id = '{self._run_id}' AND name = '{model.name}'"
        )
        tags = {name: value[:_TAG_CHARACTERS] for name, value in model.tags.items() if value}
        found = next(iter(mine), None)
        if found is None:
            found = client.create_logged_model(
                self._experiment_id, model.name, self._run_id, tags=tags, model_type="replenish"
            )
        if found.status != "READY":  # new, or sent half-way by a run that ended there
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "model"
                save_model(folder, model, self._run_id, found.model_id, found.artifact_location)
                client.log_model_artifacts(found.model_id, str(folder))
            client.log_outputs(self._run_id, [LoggedModelOutput(found.model_id, 0)])
            client.finalize_logged_model(found.model_id, "READY")
        return found.model_id, found.artifact_location

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
        named = {_key(k): str(clean(v, k))[:_TAG_CHARACTERS] for k, v in values.items()}
        # MLflow's page shows these two.
        if "git_commit" in named:
            named["mlflow.source.git.commit"] = named["git_commit"]
        if "description" in named:
            page = f"#/experiments/{self._experiment_id}/runs/{self._run_id}/artifacts"
            named["mlflow.note.content"] = (
                f"{named.pop('description')}\n\n[Files of this run]({page})"
            )
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
                new[key] = _short(str(clean(value, name)), _PARAM_CHARACTERS)
        items = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(items), _PARAMS_PER_BATCH):
            batch = items[start : start + _PARAMS_PER_BATCH]
            if self._send(lambda client, batch=batch: client.log_batch(run_id, params=batch)):
                known.update({param.key: param.value for param in batch})

    def _send(self, call: Callable[..., Any]) -> bool:
        """Make a call, and say whether it went through."""
        if self._client is None or self._clock() < self._silent_until:
            self.gaps = True
            return False
        # Whatever MLflow raises (its own errors, SQLAlchemy's, urllib3's): the work goes on.
        try:
            call(self._client)
        except Exception as error:
            self.gaps = True
            self._silent_until = self._clock() + SILENT_SECONDS
            if not self._warned:
                self._warned = True
                self._warn(
                    f"MLflow: not written ({first_line(error)}); the work goes on, and MLflow's "
                    "record of this run will have gaps"
                )
            return False
        return True


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
    nothing_to_do: Callable[[], bool] = lambda: False,
) -> Iterator[MlflowTracker]:
    """Give a tracker on the MLflow run of this work, and end the run as the work ends.

    A run of the same params in the same artifacts folder that did not finish is joined: it was
    killed, it failed, or its stages are run one by one. With the driver `stage` the run is ended
    only by the stage `report`, the last; before that it stays RUNNING for the next stage to join.
    A run that finished is joined by one that has nothing to do, which writes nothing: the command
    is given again, or was killed in its very last moment. Of two at once in one folder the second
    is not recorded.

    Args:
        artifacts: the artifacts folder.
        params_digest: `Params.digest()`.
        name: name of a new run; with the driver `stage`, the stage.
        driver: who drives: all stages in one go (`run`, `flow`) or one of them (`stage`).
        warn: told once when MLflow cannot be reached.
        root: the project folder that holds mlflow.db; the working directory by default.
        params: `Params.flat()`.
        tags: more labels, besides git's and dvc.lock's. Of `replenish_run_id` an earlier value
            stays in `replenish_run_ids`, which lists all runs that this one was joined by.
        nothing_to_do: is all up to date? Asked only where a finished run is remembered.
    """
    root = Path.cwd() if root is None else root
    with run_memory(artifacts).held() as mine:
        if not mine:
            # The stages' locks are about to refuse it; the other one's record must not suffer.
            warn(f"MLflow: another run is at work in {artifacts}; this one is not recorded")
            yield MlflowTracker(None, None, warn)
            return
        with _recorded(
            artifacts, params_digest, name, driver, warn, root, params, tags, nothing_to_do
        ) as tracker:
            yield tracker


@contextmanager
def _recorded(
    artifacts: Path,
    params_digest: str,
    name: str,
    driver: Driver,
    warn: Callable[[str], None],
    root: Path,
    params: Mapping[str, Scalar] | None,
    tags: Mapping[str, str] | None,
    nothing_to_do: Callable[[], bool],
) -> Iterator[MlflowTracker]:
    """Do what `track_run` says, for the only process that records to the folder's run."""
    uri = default_tracking_uri(root)
    tracker = MlflowTracker(None, None, warn)
    joined: list[str] = []
    finished = False
    try:
        run_name = "stages" if driver == "stage" else name
        client, run = _join_or_make(artifacts, params_digest, run_name, uri, root, nothing_to_do)
        finished = run.info.status == "FINISHED"
        tracker = MlflowTracker(None if finished else client, run, warn)
        joined = run.data.tags.get("replenish_run_ids", "").split()
    except Exception as error:
        warn(f"MLflow: the store cannot be opened ({first_line(error)}); going on without it")
    if finished:
        yield tracker
        return
    tracker.params(params or {})
    labels = {"driver": driver, "params_digest": params_digest, **run_tags(root), **(tags or {})}
    if run_id := labels.get("replenish_run_id"):
        labels["replenish_run_ids"] = " ".join(dict.fromkeys([*joined, run_id]))
    tracker.tags(labels)
    status: Status = "FAILED"
    try:
        with system_metrics(uri, tracker.run_id) if tracker.run_id else nullcontext():
            yield tracker
        status = "FINISHED"
    except Exception:
        raise
    except BaseException:  # Ctrl-C; or the flow was cancelled
        status = "KILLED"
        raise
    finally:
        if status == "FINISHED" and driver == "stage" and name != LAST_STAGE:
            tracker.flush()
        else:
            tracker.end(status)
        if tracker.gaps:
            warn(
                "MLflow: the record of this run has gaps, the results on disk have none; once "
                f"MLflow answers, `replenish track --artifacts {artifacts}` sends what is missing"
            )


def _join_or_make(
    artifacts: Path,
    params_digest: str,
    name: str,
    uri: str,
    root: Path,
    nothing_to_do: Callable[[], bool],
) -> tuple[MlflowClient, Run]:
    """Return the run of this work, at work; a finished one where there is nothing to do."""
    memory = run_memory(artifacts)
    known = memory.recall(params_digest)
    client = open_client(uri)
    run = None if known is None else find_run(client, known)
    if run is not None and run.info.status == "FINISHED" and nothing_to_do():
        return client, run
    goes_on = run is not None and run.info.status != "FINISHED"
    mark, marked = ("", False) if goes_on else memory.claim(params_digest)
    client, run = open_run(
        uri,
        EXPERIMENT,
        name,
        known,
        artifact_root=project_folder(root) / "mlartifacts",
        mark=mark,
        marked=marked,
    )
    memory.keep(params_digest, run.info.run_id)
    return client, run


def _image_of(path: str) -> tuple[str, int]:
    """Return key and step of an image that `log_image` has named."""
    match = re.match(r"(?:images/)?(.+?)[+%]step[+%](\d+)[+%]timestamp", path)
    return (match[1].replace("~", "/"), int(match[2])) if match else (path, -1)


def _key(name: str) -> str:
    text = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:_KEY_CHARACTERS]
    # MLflow refuses, with all that is sent beside it, a name that reads as an odd path.
    parts = [part for part in text.split("/") if part.strip(". ")]
    return "/".join(parts) or "_"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says, without passwords."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {without_secrets(lines[0])[:200]}"
