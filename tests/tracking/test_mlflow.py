import json
import shutil
import socket

import pytest

from pipeline.tracking.memory import run_memory
from pipeline.tracking.mlflow import MlflowTracker, default_tracking_uri, open_run, track_run

DIGEST = "d" * 64


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


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def begin(root, warnings):
    def start(digest=DIGEST, name="demo", driver="run", **more):
        return track_run(
            root / "artifacts", digest, name, driver, warn=warnings.append, root=root, **more
        )

    return start


def read(root, run_id):
    client, probe = open_run(default_tracking_uri(root), "probe", "probe")
    client.set_terminated(probe.info.run_id)
    return client, client.get_run(run_id)


def children(client, run):
    return client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )


def test_a_run_holds_params_metrics_tags_data_and_files(begin, root, warnings):
    (root / "page.html").write_text("hello")
    with begin(params={"train.steps": 5, "prepare.path": "x" * 7000}, tags={"a": "b"}) as tracker:
        with tracker.stage("train"):
            for step in range(1, 4):
                tracker.metrics({"train/loss": 1 / step}, step=step)
        tracker.metrics({"prepare/images": 60})
        tracker.tags({"git_commit": "c" * 40})
        tracker.dataset("prepared", "e" * 64, 60, "training")
        tracker.artifact(root / "page.html", "report/index.html")
    assert warnings == []
    client, run = read(root, tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.params["train.steps"] == "5"
    assert len(run.data.params["prepare.path"]) == 6000
    assert run.data.tags["a"] == "b"
    assert run.data.tags["params_digest"] == DIGEST
    assert run.data.tags["mlflow.source.git.commit"] == "c" * 40
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert run.data.metrics["prepare/images"] == 60
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == "e" * 36
    assert json.loads(used.dataset.source) == {"digest": "e" * 64}
    assert used.tags[0].value == "training"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "report")] == [
        "report/index.html"
    ]
    assert (root / "mlartifacts").is_dir()


def test_each_arm_is_one_child_run_also_when_it_is_said_again_in_a_resumed_run(begin, root):
    with begin(name="evaluate", driver="stage") as tracker:
        tracker.arm("mixed_50", {"share": 0.5}, {"tail_recall": 0.75})
    with begin() as again:
        again.arm("mixed_50", {"share": 0.5}, {"tail_recall": 0.75, "test_macro_f1": 0.5})
        again.arm("real", {"share": None}, {"tail_recall": 0.25})
    assert again.run_id == tracker.run_id
    client, run = read(root, again.run_id)
    arms = {child.info.run_name: child for child in children(client, run)}
    assert sorted(arms) == ["mixed_50", "real"]
    assert arms["mixed_50"].data.metrics == {"tail_recall": 0.75, "test_macro_f1": 0.5}
    assert arms["mixed_50"].data.params == {"share": "0.5"}
    assert arms["mixed_50"].info.status == "FINISHED"
    history = client.get_metric_history(arms["mixed_50"].info.run_id, "tail_recall")
    assert len(history) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_how_a_run_ended_is_its_status_and_it_is_joined_again(begin, root, error, status):
    def work(tracker):
        tracker.metrics({"train/loss": 1.0}, step=1)
        raise error

    with pytest.raises(error), begin() as tracker:
        work(tracker)
    client, run = read(root, tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics == {"train/loss": 1.0}
    with begin() as again:
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
    assert again.run_id == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_other_params_and_a_finished_run_begin_a_new_one(begin):
    with begin() as first:
        pass
    with begin() as second, begin("f" * 64) as third:
        pass
    assert len({first.run_id, second.run_id, third.run_id}) == 3


def test_stages_run_one_by_one_share_a_run_that_the_report_ends(begin, root):
    with begin(name="prepare", driver="stage") as first:
        first.metrics({"prepare/images": 60})
    client, run = read(root, first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"prepare/images": 60}
    with begin(name="report", driver="stage") as last:
        pass
    assert last.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_deleted_or_forgotten_run_is_not_joined(begin, root):
    with begin(name="prepare", driver="stage") as first:
        pass
    client, _ = read(root, first.run_id)
    client.delete_run(first.run_id)
    with begin(name="train", driver="stage") as second:
        pass
    assert second.run_id != first.run_id
    run_memory(root / "artifacts").keep(DIGEST, "0" * 32)
    with begin() as third:
        assert third.run_id not in ("", "0" * 32)


@pytest.mark.parametrize("text", ["", "[]", '{"params_digest": "' + DIGEST + '"}', "{"])
def test_a_damaged_memory_counts_as_none(tmp_path, text):
    memory = run_memory(tmp_path)
    memory.path.parent.mkdir()
    memory.path.write_text(text)
    assert memory.recall(DIGEST) is None


def test_points_are_sent_in_batches():
    sent = []

    class Client:
        def log_batch(self, run_id, metrics):
            sent.append(len(metrics))

    now = [0.0]
    tracker = MlflowTracker(Client(), None, pytest.fail, clock=lambda: now[0])
    for step in range(120):
        tracker.metrics({"train/loss": 1.0}, step)
    assert sent == [50, 50]
    now[0] = 2.0
    tracker.metrics({"train/loss": 1.0}, 120)
    assert sent == [50, 50, 21]


def test_a_server_that_goes_away_is_told_once_and_tried_again_later():
    calls, warnings, now = [], [], [0.0]

    class Client:
        def log_batch(self, run_id, **_):
            calls.append(run_id)
            raise ConnectionError("gone")

        set_terminated = log_batch

    tracker = MlflowTracker(Client(), None, warnings.append, clock=lambda: now[0])
    for _ in range(5):
        tracker.tags({"a": "b"})
    assert len(calls) == 1  # it is left alone for a while
    now[0] = 31.0
    tracker.tags({"a": "b"})
    assert len(calls) == 2
    assert len(warnings) == 1
    assert "ConnectionError: gone" in warnings[0]
    assert "the work goes on" in warnings[0]


def test_a_dead_server_does_not_stop_the_work(begin, monkeypatch, warnings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin(params={"a": 1}) as tracker:
        tracker.metrics({"train/loss": 1.0}, 1)
        tracker.arm("real", {}, {"tail_recall": 0.5})
    assert tracker.run_id == ""
    assert len(warnings) == 1
    assert "the store cannot be opened" in warnings[0]


def test_a_database_lies_where_its_folder_is_whatever_the_folder_is_called(
    empty_store, tmp_path, monkeypatch, warnings
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    odd = tmp_path / "a b%20c#d?e"
    odd.mkdir()
    shutil.copy(empty_store / "mlflow.db", odd / "mlflow.db")
    before = (odd / "mlflow.db").read_bytes()
    with track_run(odd / "artifacts", DIGEST, "x", "run", warn=warnings.append, root=odd):
        pass
    assert warnings == []
    assert (odd / "mlflow.db").read_bytes() != before
