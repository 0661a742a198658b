"""MLflow's doors: the store, a model's files, the machine's metrics. The only file that imports it.

The store is `mlflow.db` (SQLite) in the project folder with the files in `mlartifacts/` beside it,
unless MLFLOW_TRACKING_URI names another.
"""

import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from sqlalchemy.engine import make_url

# MLflow reads these while it is imported, so this module sets them first; a user's own value
# stands. Retries are few because a run must not wait minutes for a server that has gone away.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model is not to take the user's project file along
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)

from pipeline import __version__  # noqa: E402
from pipeline.folders import temporary_name  # noqa: E402
from pipeline.tracking.tracker import Column, TrackedModel  # noqa: E402
from pipeline.tracking.views import view_tags  # noqa: E402

__all__ = [
    "Dataset",
    "DatasetInput",
    "InputTag",
    "LoggedModelOutput",
    "Metric",
    "MlflowClient",
    "Param",
    "Run",
    "RunTag",
    "default_tracking_uri",
    "find_run",
    "local_tracking_uri",
    "open_client",
    "open_experiment",
    "open_run",
    "project_folder",
    "save_model",
    "system_metrics",
]

MARK = "replenish_mark"
SYSTEM_SECONDS = 5.0  # between samples of processor, memory, disk; a run of a minute has a curve
SYSTEM_PAUSE_SECONDS = 30.0  # after a call that failed
SYSTEM_END_SECONDS = 5.0  # that the end of a run waits for the last sample


def project_folder(root: Path) -> Path:
    """Return the folder that keeps mlflow.db: `root`, or the project that DVC copied it from.

    DVC runs the experiments of `--temp` and `--queue` in copies under `.dvc/tmp`, which go away.
    """
    copied = (above.parent for above in root.absolute().parents if above.name == ".dvc")
    return next(copied, root)


def default_tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or else the address of `mlflow.db` in the project of `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(project_folder(root))


def local_tracking_uri(root: Path) -> str:
    """Return the address of `mlflow.db` in `root`."""
    return _database_uri(root.absolute() / "mlflow.db")


def _database_uri(path: Path) -> str:
    # Only these two are quoted: SQLAlchemy takes them for its own and reads the rest as it is.
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{quoted}"


def open_client(tracking_uri: str) -> MlflowClient:
    """Return a client of a store; a SQLite database that is not there yet is made first.

    It is made aside and moved into place whole: MLflow makes it in dozens of migrations, and one
    that was killed between two could never be opened again.

    Raises:
        Exception: whatever MLflow and its database raise.
    """
    if tracking_uri.startswith("sqlite:"):
        name = make_url(tracking_uri).database
        path = Path(name or ":memory:")
        if path.is_absolute() and path.parent.is_dir() and not path.exists():
            _make_database(path)
    return MlflowClient(tracking_uri)


def _make_database(path: Path) -> None:
    lock, aside = path.with_name(f".{path.name}.lock"), temporary_name(path)
    with FileLock(lock):
        if not path.exists():
            for left in path.parent.glob(f"{aside.name}*"):  # by a process that was killed
                left.unlink()
            MlflowClient(_database_uri(aside)).search_experiments(max_results=1)
            aside.replace(path)
        lock.unlink(missing_ok=True)  # whoever waits for it, or makes it anew, finds the database


def save_model(
    folder: Path, model: TrackedModel, run_id: str, model_id: str, location: str
) -> None:
    """Write a model as MLflow keeps it: files, MLmodel, signature, input example.

    It has no code and nothing pickled: MLflow imports `model.loader`, which reads the files.
    """
    # They take seconds to import, and most trackers never need them.
    with warnings.catch_warnings():
        # MLflow warns of the type hints of its own agents.
        warnings.filterwarnings("ignore", ".*type hint", UserWarning)
        from mlflow.models import Model, ModelSignature
        from mlflow.pyfunc import save_model as save_pyfunc

    described = Model(artifact_path=location, run_id=run_id, model_uuid=model_id, model_id=model_id)
    save_pyfunc(
        str(folder),
        loader_module=model.loader,
        data_path=str(model.folder),
        mlflow_model=described,
        signature=ModelSignature(_schema(model.inputs), _schema(model.outputs)),
        input_example=model.example,
        pip_requirements=[f"replenish=={__version__}"],
        model_config=dict(model.config) or None,
        metadata=dict(model.facts),
    )


def _schema(columns: tuple[Column, ...]) -> Any:
    from mlflow.types import ColSpec, Schema, TensorSpec

    kinds = {"text": "string", "integer": "long"}
    return Schema(
        [
            TensorSpec(np.dtype(one.kind), one.shape, one.name or None)
            if one.shape
            else ColSpec(kinds[one.kind], one.name)
            for one in columns
        ]
    )


@contextmanager
def system_metrics(tracking_uri: str, run_id: str) -> Iterator[None]:
    """Let MLflow sample the machine into a run while the body works; no thread is left behind.

    A server that goes away leaves a gap in the curves and does not touch the work.
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false switches it off, and
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the seconds between samples. Of GPUs it tells
    where the package nvidia-ml-py is installed.
    """
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
        yield
        return
    monitor = None
    try:
        monitor = _patient_monitor(tracking_uri, run_id)
        monitor.start()
    except Exception:  # a machine that cannot be measured: the run has no such curve
        monitor = None
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()


def _patient_monitor(tracking_uri: str, run_id: str) -> Any:
    # It takes time to import, and most trackers never need it.
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):  # type: ignore[misc]
        """MLflow's, which would end for good at the first call that fails."""

        def monitor(self) -> None:
            client = MlflowClient(tracking_uri)
            # The load of the processor is that since the last reading: the first is soon.
            wait = min(self.sampling_interval, 1.0)
            while not self._shutdown_event.wait(wait):
                wait = self.sampling_interval
                try:
                    self.collect_metrics()
                    self._send(client)
                except Exception:
                    wait = max(wait, SYSTEM_PAUSE_SECONDS)
                for one in self.monitors:
                    one.clear_metrics()

        def _send(self, client: MlflowClient) -> None:
            now = int(time.time() * 1000)
            found = self.aggregate_metrics()
            points = [
                Metric(f"{self._metrics_prefix}{name}", float(value), now, self._logging_step)
                for name, value in found.items()
            ]
            client.log_batch(run_id, metrics=points)
            self._logging_step += 1

        def finish(self) -> None:
            self._shutdown_event.set()
            thread: threading.Thread | None = self._process
            if thread is not None:
                # A server that neither answers nor refuses would be waited for.
                thread.join(SYSTEM_END_SECONDS)

    # A run that goes on continues its curve.
    return Monitor(
        run_id, sampling_interval=SYSTEM_SECONDS, resume_logging=True, tracking_uri=tracking_uri
    )


def open_run(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    resume_run_id: str | None = None,
    *,
    artifact_root: Path | None = None,
    mark: str = "",
    marked: bool = False,
) -> tuple[MlflowClient, Run]:
    """Return a client and a running run: the named one if it can be resumed, else a new one.

    A run can be resumed if the store has it, it was not deleted and it did not finish.

    Args:
        tracking_uri: of the store.
        experiment: name of the experiment of a new run.
        run_name: of a new run.
        resume_run_id: of the run to resume, if there is one.
        artifact_root: where a new experiment in a local database keeps its files.
        mark: label of a new run, by which it can be found again.
        marked: may there be a run with this mark? It is resumed, too.

    Raises:
        Exception: whatever MLflow and its database raise when the store cannot be reached.
    """
    client = open_client(tracking_uri)
    run = _unfinished(client, resume_run_id) if resume_run_id is not None else None
    if run is None:
        experiment_id = open_experiment(client, tracking_uri, experiment, artifact_root)
        if marked:
            asked = f"tags.{MARK} = '{mark}'"
            found = client.search_runs([experiment_id], asked, max_results=1)
            run = next((one for one in found if one.info.status != "FINISHED"), None)
        if run is None:
            tags = {MARK: mark} if mark else None
            return client, client.create_run(experiment_id, run_name=run_name, tags=tags)
    client.update_run(run.info.run_id, status="RUNNING")
    return client, run


def open_experiment(
    client: MlflowClient, tracking_uri: str, experiment: str, artifact_root: Path | None
) -> str:
    """Return the id of an experiment, made or restored if need be, with its saved view."""
    found = client.get_experiment_by_name(experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is not None:
        for name, value in view_tags().items():
            if name not in found.tags:  # what a user made of it stays
                client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)
    local = artifact_root is not None and tracking_uri.startswith("sqlite:")
    location = artifact_root.absolute().as_uri() if artifact_root and local else None
    # Without its kind, MLflow's page opens the experiment in its view for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(experiment, location, tags={**kind, **view_tags()}))


def _unfinished(client: MlflowClient, run_id: str) -> Run | None:
    run = find_run(client, run_id)
    return run if run is not None and run.info.status != "FINISHED" else None


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run; None where the store does not have it or it was deleted."""
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
