"""Real MLflow stores for the tests of what is written to them."""

import shutil

import pytest

from pipeline.tracking.mlflow import default_tracking_uri, open_run


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A project folder with an empty database: its migrations take seconds, so once."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client, run = open_run(default_tracking_uri(root), "warm-up", "warm-up")
        client.delete_run(run.info.run_id)
    return root


@pytest.fixture
def root(empty_store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path
