"""MLflow's database is locked by another, or goes away, while a run works: the work ends anyway.

What MLflow missed is sent afterwards by `replenish track`.
"""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_stages import write_stages

from pipeline.tracking.facts import log_results
from pipeline.tracking.mlflow import default_tracking_uri, open_run
from pipeline.tracking.recording import track_run
from pipeline.tracking.sending import send_results

pytestmark = [pytest.mark.faults, pytest.mark.slow]
DIGEST = "d" * 64


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: Any) -> Path:
    """An empty database: its migrations take seconds, so once."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client, run = open_run(default_tracking_uri(folder), "warm-up", "warm-up")
        client.delete_run(run.info.run_id)
    return Path(folder / "mlflow.db")


@pytest.fixture
def root(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_stages(tmp_path / "artifacts")
    return tmp_path


def runs_of(root: Path) -> list[tuple[str, str]]:
    """Return id and status of the parent runs."""
    with sqlite3.connect(root / "mlflow.db") as database:
        return database.execute(
            "select run_uuid, status from runs where experiment_id in"
            " (select experiment_id from experiments where name = 'replenish')"
            " and run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')"
        ).fetchall()


def work(root: Path, told: list[str], trouble: Any) -> str:
    """Do a run that has trouble with MLflow halfway, and return its id there."""
    artifacts = root / "artifacts"
    with track_run(artifacts, DIGEST, "demo", "run", warn=told.append, root=root) as tracker:
        tracker.metrics({"train/loss": 0.5}, 1)
        tracker.flush()
        trouble()
        log_results(artifacts, tracker, root=root)
    return tracker.run_id


def test_a_database_that_another_holds_stops_nothing_and_is_told(root: Path) -> None:
    told: list[str] = []
    holder = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    run_id = work(root, told, lambda: holder.execute("begin exclusive"))
    assert len(told) == 2
    assert "database is locked" in told[0]
    assert "the work goes on" in told[0]
    assert f"`replenish track --artifacts {root / 'artifacts'}` sends what is missing" in told[1]
    holder.execute("rollback")
    holder.close()
    assert runs_of(root) == [(run_id, "RUNNING")]
    sent = send_results(root / "artifacts", root)
    assert (sent.run_id, sent.made) == (run_id, False)
    assert runs_of(root) == [(run_id, "RUNNING")]  # the report is missing: the run is not whole


def test_a_database_that_is_deleted_stops_nothing_and_is_told(root: Path) -> None:
    told: list[str] = []
    path = root / "mlflow.db"
    run_id = work(root, told, path.unlink)
    assert len(told) == 2
    assert "the work goes on" in told[0]
    assert "`replenish track" in told[1]
    # In a process of its own: in this one MLflow holds on to the file that is gone.
    command = (sys.executable, "-m", "pipeline", "track")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ((made, _),) = runs_of(root)
    assert f"MLflow run {made} made" in done.stdout
    assert made != run_id


def test_a_database_that_is_damaged_is_told_at_once(root: Path) -> None:
    (root / "mlflow.db").write_bytes(b"no database at all" * 1000)
    told: list[str] = []
    assert work(root, told, lambda: None) == ""
    assert "the store cannot be opened" in told[0]
    assert "`replenish track" in told[1]
