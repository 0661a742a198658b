"""Send finished results to MLflow later: `replenish track`, after a run that MLflow missed.

Everything is read from the artifacts folder. The run that the results belong to is completed if
MLflow has it, and made if not; sent again, nothing is doubled.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.folders import Manifest
from pipeline.params import SECTIONS
from pipeline.tracking.facts import log_results
from pipeline.tracking.lineage import manifests, results_digest, settings_of
from pipeline.tracking.memory import run_memory
from pipeline.tracking.mlflow import (
    MlflowClient,
    Run,
    default_tracking_uri,
    find_run,
    open_client,
    open_experiment,
    project_folder,
)
from pipeline.tracking.recording import EXPERIMENT, MlflowTracker, first_line
from pipeline.tracking.secrets import without_secrets

# File of a stage -> column -> the name that the stage tells while it works.
_SERIES = {
    "curve.csv": {
        "loss": "loss",
        "gradient_norm": "gradient_norm",
        "learning_rate": "learning_rate",
    },
    "checks.csv": {
        "training_loss": "heldout_train_loss",
        "heldout_loss": "validation_loss",
        "copy_share": "copy_share",
        "quality": "kernel_distance",
    },
}


@dataclass(frozen=True)
class Sent:
    """What became of it.

    Attributes:
        run_id: of the run in MLflow.
        made: was the run made, or one completed that was there?
        tracking_uri: of the store.
    """

    run_id: str
    made: bool
    tracking_uri: str


def send_results(artifacts: Path, root: Path | None = None) -> Sent:
    """Complete the MLflow run of finished folders, or make one.

    Args:
        artifacts: the folder of the stages' folders.
        root: the project folder that holds mlflow.db; the working directory by default.

    Raises:
        InputError: there is nothing to send, or MLflow cannot be reached.
    """
    root = Path.cwd() if root is None else root
    found = manifests(artifacts)
    if not found:
        raise InputError(
            f"{artifacts}: no finished stage to send; give the folder of a run by --artifacts, or "
            "run `replenish run`"
        )
    uri = default_tracking_uri(root)
    try:
        client = open_client(uri)
        experiment = open_experiment(client, uri, EXPERIMENT, project_folder(root) / "mlartifacts")
        run = _find(client, experiment, artifacts, found)
        made = run is None
        if run is None:
            run = client.create_run(experiment, run_name="track")
    except Exception as error:
        raise _unreachable(uri, first_line(error)) from None
    problems: list[str] = []
    tracker = MlflowTracker(client, run, problems.append)
    _send(artifacts, found, tracker, root, made)
    if tracker.gaps:
        raise _unreachable(uri, problems[0] if problems else "no answer")
    _remember(artifacts, tracker.run_id)
    return Sent(tracker.run_id, made, uri)


def _send(
    artifacts: Path, found: dict[str, Manifest], tracker: MlflowTracker, root: Path, made: bool
) -> None:
    # The digest of the results comes first: a run that is interrupted here is found by it.
    tracker.tags({"results_digest": results_digest(found)})
    if made:
        tracker.tags({"driver": "track"})
    tracker.params(settings_of(found))
    tracker.series(_series(artifacts, found))
    log_results(artifacts, tracker, root=root)
    tracker.flush()
    if set(found) == set(SECTIONS):
        tracker.end("FINISHED")


def _find(
    client: MlflowClient, experiment: str, artifacts: Path, found: dict[str, Manifest]
) -> Run | None:
    """Return the run that these results belong to, if the store has it."""
    digest = results_digest(found)
    kept = run_memory(artifacts).last()
    run = None if kept is None else find_run(client, kept)
    if run is not None and _may_be(run, digest, found):
        return run
    told = client.search_runs(
        [experiment],
        f"tags.results_digest = '{digest}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return next(iter(told), None)


def _may_be(run: Run, digest: str, found: dict[str, Manifest]) -> bool:
    """Say whether a remembered run is of these results: by digest, or else by its params."""
    told = run.data.tags.get("results_digest")
    if told is not None:
        return bool(told == digest)
    settings = {name: str(value) for name, value in settings_of(found).items()}
    known: dict[str, str] = run.data.params
    return all(known[name] == value for name, value in settings.items() if name in known)


def _remember(artifacts: Path, run_id: str) -> None:
    memory = run_memory(artifacts)
    if memory.last() != run_id:
        # Of no params: a later run with the same ones is to be a run of its own.
        memory.keep("sent later", run_id)


def _series(artifacts: Path, found: dict[str, Manifest]) -> dict[str, dict[int, float]]:
    """Return name -> step -> value of the curves that stages left as files."""
    series: dict[str, dict[int, float]] = {}
    for stage, manifest in found.items():
        for name, columns in _SERIES.items():
            if name not in manifest.files:
                continue
            for row in _rows(artifacts / stage / name):
                for column, told in columns.items():
                    value = _float(row.get(column))
                    step = _float(row.get("step"))
                    if value is not None and step is not None:
                        series.setdefault(f"{stage}/{told}", {})[int(step)] = value
    return series


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def _float(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unreachable(uri: str, why: str) -> InputError:
    return InputError(
        f"MLflow at {without_secrets(uri)}: not reached ({why}); start it or set "
        "MLFLOW_TRACKING_URI, then give `replenish track` again: it goes on where this one stopped"
    )
