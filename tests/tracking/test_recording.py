import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from tracking.full_run import write_sheet

from pipeline.tracking.memory import RunMemory, run_memory
from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri, open_client, open_run
from pipeline.tracking.recording import MlflowTracker, track_run

DIGEST = "d" * 64


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
    ("error", "status"),
    [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
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
    with begin() as second:
        pass
    with begin("f" * 64) as third:
        pass
    assert "" not in (first.run_id, second.run_id, third.run_id)
    assert len({first.run_id, second.run_id, third.run_id}) == 3


def test_of_two_at_once_in_a_folder_the_second_leaves_the_record_alone(begin, root, warnings):
    with begin() as first:
        with begin(name="report", driver="stage") as second:  # it would end the run
            second.tags({"driver": "other"})
        client, run = read(root, first.run_id)
        assert (run.info.status, run.data.tags["driver"]) == ("RUNNING", "run")
    assert second.run_id == ""
    assert warnings == [
        f"MLflow: another run is at work in {root / 'artifacts'}; this one is not recorded"
    ]
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_finished_run_stays_the_one_of_its_work_while_there_is_nothing_to_do(
    begin, root, warnings
):
    with begin() as first:
        first.metrics({"train/seconds": 30.0})
    with begin(nothing_to_do=lambda: True) as again:
        again.metrics({"train/seconds": 0.1})
        again.tags({"driver": "other"})
    assert again.run_id == first.run_id
    _, run = read(root, first.run_id)
    assert (run.data.metrics["train/seconds"], run.data.tags["driver"]) == (30.0, "run")
    assert run.info.status == "FINISHED"
    assert warnings == []


def test_a_run_that_was_made_and_not_kept_is_found_by_its_mark(begin, root, monkeypatch):
    def killed(self, params_digest, run_id):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(RunMemory, "keep", killed)
        with begin():
            pass
    with begin() as second:
        pass
    client, run = read(root, second.run_id)
    (only,) = client.search_runs([run.info.experiment_id])
    assert only.info.run_id == second.run_id
    assert only.info.status == "FINISHED"


_MAKE = """
import sys
from pathlib import Path
from pipeline.tracking.mlflow import default_tracking_uri, open_client
open_client(default_tracking_uri(Path(sys.argv[1])))
"""


def test_a_database_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    making = subprocess.Popen([sys.executable, "-c", _MAKE, str(tmp_path)])
    aside = tmp_path / ".mlflow.db.unfinished.tmp"
    while not (aside.exists() and aside.stat().st_size):  # in the middle of the migrations
        assert making.poll() is None
        time.sleep(0.001)
    making.kill()
    making.wait()
    assert not (tmp_path / "mlflow.db").exists()
    client = open_client(default_tracking_uri(tmp_path))
    assert [one.name for one in client.search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


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


def test_a_dead_server_does_not_stop_the_work(begin, root, monkeypatch, warnings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin(params={"a": 1}) as tracker:
        tracker.metrics({"train/loss": 1.0}, 1)
        tracker.arm("real", {}, {"tail_recall": 0.5})
    assert tracker.run_id == ""
    assert "the store cannot be opened" in warnings[0]
    assert (
        f"`replenish track --artifacts {root / 'artifacts'}` sends what is missing" in warnings[1]
    )
    assert len(warnings) == 2


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


def test_pictures_are_a_series_by_step_and_none_is_kept_twice(begin, root, warnings):
    for step in (1, 20):
        write_sheet(root / f"step-{step}.png", step)
    for _ in range(2):
        with begin(driver="stage", name="train") as tracker:
            for step in (1, 20):
                tracker.image(root / f"step-{step}.png", "train/samples", step)
    assert warnings == []
    client, run = read(root, tracker.run_id)
    files = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    kept = sorted(int(re.search(r"step\+(\d+)", f)[1]) for f in files if f.endswith(".png"))
    assert kept == [1, 20]
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_the_description_is_the_note_of_the_run_with_a_link_to_its_files(begin, root):
    with begin() as tracker:
        tracker.tags({"description": "**Use them**"})
    _, run = read(root, tracker.run_id)
    note = run.data.tags["mlflow.note.content"]
    where = f"#/experiments/{run.info.experiment_id}/runs/{tracker.run_id}/artifacts"
    assert note == f"**Use them**\n\n[Files of this run]({where})"
    assert "description" not in run.data.tags


def test_the_machine_is_measured_while_a_run_works_and_no_thread_stays(begin, root, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.mlflow.SYSTEM_SECONDS", 0.05)
    before = {thread.ident for thread in threading.enumerate()}
    with begin() as tracker:
        deadline = time.monotonic() + 60
        client = MlflowClient(default_tracking_uri(root))
        name = "system/cpu_utilization_percentage"
        while len(client.get_metric_history(tracker.run_id, name)) < 2:
            assert time.monotonic() < deadline, "no sample of the machine came"
            time.sleep(0.05)
    left = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert "SystemMetricsMonitor" not in left
    _, run = read(root, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0


def test_the_measuring_of_the_machine_can_be_switched_off(begin, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with begin():
        assert "SystemMetricsMonitor" not in [thread.name for thread in threading.enumerate()]


def test_what_was_lost_is_sent_when_it_is_said_again():
    sent, broken = [], [True]

    class Client:
        def log_batch(self, run_id, metrics=(), params=()):
            if broken[0]:
                raise ConnectionError("gone")
            sent.extend([*metrics, *params])

    now = [0.0]
    tracker = MlflowTracker(Client(), None, lambda _: None, clock=lambda: now[0])
    for _ in range(2):
        tracker.params({"a": 1})
        tracker.metrics({"prepare/images": 60})
        tracker.flush()
        broken[0], now[0] = False, now[0] + 31
    assert [one.key for one in sent] == ["a", "prepare/images"]
    assert tracker.gaps


def test_an_odd_name_spoils_no_batch(begin, root, warnings):
    with begin() as tracker:
        tracker.metrics({"evaluate/class/../gain": 1.0, "a//b": 2.0, "..": 3.0, "good": 4.0})
    assert warnings == []
    _, run = read(root, tracker.run_id)
    assert run.data.metrics == {"evaluate/class/gain": 1.0, "a/b": 2.0, "_": 3.0, "good": 4.0}


def test_a_run_that_is_joined_knows_the_ids_of_all_runs(begin, root):
    for run_id in ("one", "two", "two"):
        with begin(name="train", driver="stage", tags={"replenish_run_id": run_id}) as tracker:
            pass
    _, run = read(root, tracker.run_id)
    assert run.data.tags["replenish_run_id"] == "two"
    assert run.data.tags["replenish_run_ids"] == "one two"


def test_no_secret_reaches_mlflow(begin, root):
    with begin(params={"prepare.path": "s3://me:hunter2@host/raw", "a.password": "hunter2"}) as it:
        it.tags({"where": "https://me:hunter2@host", "token": "hunter2"})
        it.arm("mixed", {"settings.url": "ftp://me:hunter2@host"}, {"share": 1.0})
    client, run = read(root, it.run_id)
    assert run.data.params == {"prepare.path": "s3://host/raw", "a.password": "***"}
    assert (run.data.tags["where"], run.data.tags["token"]) == ("https://host", "***")
    assert children(client, run)[0].data.params == {"settings.url": "ftp://host"}


def test_the_curves_of_the_machine_go_on_after_the_server_was_away(begin, root, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.mlflow.SYSTEM_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.tracking.mlflow.SYSTEM_PAUSE_SECONDS", 0.05)
    name, send, away, refused = "system/cpu_utilization_percentage", MlflowClient.log_batch, [], []

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        if away and any(one.key.startswith("system/") for one in metrics):
            refused.append(metrics)
            raise ConnectionError("gone")
        return send(self, run_id, metrics, params, tags)

    def wait_for(what):
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    client = MlflowClient(default_tracking_uri(root))
    with begin() as tracker:
        wait_for(lambda: client.get_metric_history(tracker.run_id, name))
        away.append(True)
        wait_for(lambda: len(refused) >= 2)
        before = len(client.get_metric_history(tracker.run_id, name))
        away.clear()
        wait_for(lambda: len(client.get_metric_history(tracker.run_id, name)) > before)
    steps = [point.step for point in client.get_metric_history(tracker.run_id, name)]
    assert sorted(steps) == list(range(len(steps)))  # no step twice, none left out
    assert "SystemMetricsMonitor" not in [thread.name for thread in threading.enumerate()]


def test_the_end_of_a_run_does_not_wait_for_a_server_that_hangs(begin, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.mlflow.SYSTEM_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.tracking.mlflow.SYSTEM_END_SECONDS", 0.1)
    hanging, answer = threading.Event(), threading.Event()
    send = MlflowClient.log_batch

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        if any(one.key.startswith("system/") for one in metrics):
            hanging.set()
            answer.wait(60)
        return send(self, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with begin():
        assert hanging.wait(60)
    left = [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    assert len(left) == 1  # the run has ended, and this one still waits
    answer.set()
    left[0].join()
