"""MLflow's database is locked by another, or goes away, while a run works: the work ends all the same.

What MLflow missed is sent afterwards by `replenish track`.
"""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_stages import write_stages

from pipeline.tracking.facts import log_results
from pipeline.tracking.mlflow import default_tracking_uri, open_run
from pipeline.tracking.recording import track_run
from pipeline.tracking.sending import send_results

pytestmark = pytest.mark.faults
DIGEST = "d" * 64


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
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
    path.unlink(missing_ok=True)
    sent = send_results(root / "artifacts", root)
    assert sent.made
    assert sent.run_id != run_id
    assert [run for run, _ in runs_of(root)] == [sent.run_id]


def test_a_database_that_is_damaged_is_told_at_once(root: Path) -> None:
    open_run(default_tracking_uri(root), "warm-up", "warm-up")
    (root / "mlflow.db").write_bytes(b"no database at all" * 1000)
    told: list[str] = []
    assert work(root, told, lambda: None) == ""
    assert "the store cannot be opened" in told[0]
    assert "`replenish track" in told[1]
