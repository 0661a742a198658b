"""Old runs in MLflow: which ones may go, and how they go for good.

A run that is deleted goes into MLflow's bin, and its files stay. Those in the project folder are
removed here; `mlflow gc` empties the bin, and frees the files that a server of MLflow's keeps.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flows.leftovers import Leftover
from pipeline.errors import StageError
from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri
from pipeline.tracking.recording import EXPERIMENT, PARENT, first_line

_FILES = "mlartifacts"
_PAGE = 1000


def old_runs(root: Path, keep: int, before: float, warn: Callable[[str], None]) -> list[Leftover]:
    """Return the runs beyond the newest `keep` that are older than `before`, children included.

    A run at work stays, and one that holds a registered model with an alias.

    Args:
        root: the project folder that holds mlflow.db.
        keep: how many of the newest runs stay.
        before: seconds since the epoch; what began later stays.
        warn: told where MLflow cannot be reached.
    """
    uri = default_tracking_uri(root)
    if uri.startswith("sqlite:") and not (root / "mlflow.db").is_file():
        return []  # a client would make the database
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs = _all(
            partial(client.search_runs, [experiment.experiment_id], order_by=["start_time DESC"])
        )
        aliased = _aliased(client)
    except Exception as error:  # its own errors, SQLAlchemy's, urllib3's: the rest can go on
        warn(f"MLflow: cannot be read ({first_line(error)}); its runs stay")
        return []
    children: dict[str, list[Any]] = {}
    for run in runs:
        if PARENT in run.data.tags:
            children.setdefault(run.data.tags[PARENT], []).append(run)
    tops = [run for run in runs if PARENT not in run.data.tags]
    found: list[Leftover] = []
    for run in tops[keep:]:
        run_id = run.info.run_id
        if run.info.start_time / 1000 >= before or run.info.status == "RUNNING":
            continue
        if run_id in aliased:
            continue
        family = [run, *children.get(run_id, [])]
        models = _models(client, experiment.experiment_id, run_id)
        places = [one.info.artifact_uri for one in family] + [m.artifact_location for m in models]
        found.append(
            Leftover(
                "MLflow run",
                f"{run.info.run_name} ({run_id})",
                sum(_bytes_at(place) for place in places),
                partial(_delete, client, root, family, models),
            )
        )
    return found


def _all(search: Callable[..., Any]) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _aliased(client: MlflowClient) -> set[str]:
    """Return the runs that a registered model's alias is on."""
    found: set[str] = set()
    for model in _all(client.search_registered_models):
        for version in set(model.aliases.values()):
            found.add(str(client.get_model_version(model.name, str(version)).run_id))
    return found


def _models(client: MlflowClient, experiment_id: str, run_id: str) -> list[Any]:
    return list(
        client.search_logged_models(
            [experiment_id], filter_string=f"source_run_id = '{run_id}'", max_results=50
        )
    )


def _delete(client: MlflowClient, root: Path, family: list[Any], models: list[Any]) -> None:
    top = family[0].info.run_id
    versions = _all(partial(client.search_model_versions, f"run_id = '{top}'"))
    if top in _aliased(client):
        raise StageError("one of its models has got an alias meanwhile")
    for version in versions:
        client.delete_model_version(version.name, version.version)
    for model in models:
        client.delete_logged_model(model.model_id)
        _remove_files(root, model.artifact_location, model.model_id)
    # The parent is last: a deletion that is cut off is found again by it.
    for run in reversed(family):
        client.delete_run(run.info.run_id)
        _remove_files(root, run.info.artifact_uri, run.info.run_id)


def _remove_files(root: Path, place: str, name: str) -> None:
    """Remove the folder of a run or a model, if it is where Replenish keeps them."""
    folder = _local(place)
    home = (root / _FILES).resolve()
    if folder is None or folder.parent.name != name:
        return
    if folder.resolve().is_relative_to(home) and not folder.parent.is_symlink():
        shutil.rmtree(folder.parent, ignore_errors=True)


def _bytes_at(place: str) -> int:
    """Return what lies at an address, as far as it is on this disk."""
    folder = _local(place)
    if folder is None:
        return 0
    return sum(one.lstat().st_size for one in folder.rglob("*") if one.is_file())


def _local(place: str) -> Path | None:
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
