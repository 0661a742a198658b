"""`replenish track`: results that MLflow missed are sent later, once."""

import sys

import pytest
from tracking.full_run import write_run, write_stage
from tracking.server import Server, free_port

from pipeline.__main__ import main
from pipeline.errors import InputError
from pipeline.tracking.facts import log_results
from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri
from pipeline.tracking.recording import EXPERIMENT, track_run
from pipeline.tracking.sending import send_results

DIGEST = "d" * 64


def everything(client):
    """What the store holds of the experiment: each run's kind, numbers, points, files, data."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    held = []
    for run in client.search_runs([experiment]):
        run_id = run.info.run_id
        held.append(
            {
                "name": run.data.tags.get("arm", "parent"),
                "status": run.info.status,
                "params": run.data.params,
                "points": {
                    name: sorted(
                        (one.step, one.value) for one in client.get_metric_history(run_id, name)
                    )
                    for name in run.data.metrics
                    if not name.startswith("system/")
                },
                "files": sorted(
                    file.path
                    for folder in client.list_artifacts(run_id)
                    for file in client.list_artifacts(run_id, folder.path)
                ),
                "data": len(run.inputs.dataset_inputs),
            }
        )
    return sorted(held, key=lambda one: one["name"])


@pytest.fixture
def artifacts(root):
    return write_run(root / "artifacts", params={"train": {"steps": 2}})


@pytest.fixture
def client(root):
    return MlflowClient(default_tracking_uri(root))


def test_results_that_mlflow_never_saw_become_a_whole_run(root, artifacts, client):
    sent = send_results(artifacts, root)
    assert sent.made
    parent = {one["name"]: one for one in everything(client)}["parent"]
    assert parent["status"] == "FINISHED"
    assert parent["params"] == {"train.steps": "2"}
    assert parent["points"]["train/loss"] == [(1, 0.9), (2, 0.5)]
    assert parent["points"]["train/validation_loss"] == [(2, 0.6)]
    assert parent["points"]["evaluate/gain_points"] == [(0, 3.0)]
    assert "report/index.html" in parent["files"]
    assert [one["name"] for one in everything(client)] == ["class_weighted", "mixed_50", "parent"]


def test_sent_again_nothing_is_doubled(root, artifacts, client):
    first = send_results(artifacts, root)
    before = everything(client)
    again = send_results(artifacts, root)
    assert (again.run_id, again.made) == (first.run_id, False)
    assert everything(client) == before


def test_without_its_memory_a_run_is_found_by_its_results(root, artifacts, client):
    first = send_results(artifacts, root)
    (artifacts / ".work" / "mlflow_run.json").unlink()
    assert send_results(artifacts, root).run_id == first.run_id
    assert len(everything(client)) == 3


def test_a_run_that_broke_off_is_completed(root, artifacts, client):
    with track_run(artifacts, DIGEST, "demo", "run", warn=pytest.fail, root=root) as tracker:
        tracker.params({"train.steps": 2})
        tracker.metrics({"train/loss": 0.9}, 1)
        tracker.flush()
        tracker._send = lambda call: False  # from here on nothing arrives
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    sent = send_results(artifacts, root)
    assert (sent.run_id, sent.made) == (tracker.run_id, False)
    parent = {one["name"]: one for one in everything(client)}["parent"]
    assert parent["status"] == "FINISHED"
    assert parent["points"]["train/loss"] == [(1, 0.9), (2, 0.5)]


def test_results_of_other_params_are_not_put_into_a_remembered_run(root, artifacts, client):
    with track_run(artifacts, DIGEST, "demo", "run", warn=pytest.fail, root=root) as tracker:
        tracker.params({"train.steps": 999})
    sent = send_results(artifacts, root)
    assert sent.made
    assert sent.run_id != tracker.run_id


def test_results_that_changed_since_are_a_run_of_their_own(root, artifacts):
    with track_run(artifacts, DIGEST, "demo", "run", warn=pytest.fail, root=root) as tracker:
        log_results(artifacts, tracker, root=root)
    assert send_results(artifacts, root).run_id == tracker.run_id
    write_stage(artifacts, "report", {"index.html": "<p>another"})
    assert send_results(artifacts, root).run_id != tracker.run_id


def test_half_a_run_is_sent_and_stays_open(root, artifacts, client):
    (artifacts / "report" / "manifest.json").unlink()
    send_results(artifacts, root)
    parent = {one["name"]: one for one in everything(client)}["parent"]
    assert parent["status"] == "RUNNING"
    assert "report/index.html" not in parent["files"]


def test_nothing_to_send_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no finished stage to send; give the folder of a run"):
        send_results(tmp_path / "none", tmp_path)


def test_a_server_that_does_not_answer_is_named_without_its_password(
    artifacts, root, monkeypatch, capsys
):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sys, "argv", ["replenish", "track", "--artifacts", str(artifacts)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: MLflow at http://127.0.0.1:{port}: not reached" in error
    assert "then give `replenish track` again" in error
    assert "secret" not in error


def test_a_server_that_goes_away_half_way_is_an_error_and_the_rest_follows(
    root, artifacts, client, monkeypatch
):
    calls = []
    whole = MlflowClient.log_artifact

    def break_off(*arguments):
        calls.append(arguments)
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowClient, "log_artifact", break_off)
    with pytest.raises(InputError, match=r"not reached \(.*ConnectionError: gone"):
        send_results(artifacts, root)
    assert calls
    monkeypatch.setattr(MlflowClient, "log_artifact", whole)
    assert not send_results(artifacts, root).made
    parent = {one["name"]: one for one in everything(client)}["parent"]
    assert "report/index.html" in parent["files"]
    assert len(everything(client)) == 3


@pytest.fixture
def server(root):
    server = Server(root)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.faults
def test_a_server_killed_in_the_middle_of_a_run_gets_all_of_it_later(
    server, root, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    artifacts, told = root / "artifacts", []
    with track_run(artifacts, DIGEST, "demo", "run", warn=told.append, root=root) as tracker:
        tracker.params({"train.steps": 2})
        with tracker.stage("train"):
            tracker.metrics({"train/loss": 0.9}, 1)
            tracker.flush()
            server.kill()
            tracker.metrics({"train/loss": 0.5}, 2)
        write_run(artifacts, params={"train": {"steps": 2}})
        log_results(artifacts, tracker, root=root)
    assert len(told) == 2
    assert "the work goes on" in told[0]
    assert f"`replenish track --artifacts {artifacts}` sends what is missing" in told[1]
    with pytest.raises(InputError, match=f"MLflow at {server.url}: not reached"):
        send_results(artifacts, root)

    server.start()
    client = MlflowClient(server.url)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    sent = send_results(artifacts, root)
    assert (sent.run_id, sent.made) == (tracker.run_id, False)
    held = everything(client)
    assert [one["name"] for one in held] == ["class_weighted", "mixed_50", "parent"]
    assert {one["status"] for one in held} == {"FINISHED"}
    assert held[2]["points"]["train/loss"] == [(1, 0.9), (2, 0.5)]
    assert held[2]["points"]["evaluate/gain_points"] == [(0, 3.0)]
    assert "report/index.html" in held[2]["files"]
    assert send_results(artifacts, root).run_id == tracker.run_id
    assert everything(client) == held
