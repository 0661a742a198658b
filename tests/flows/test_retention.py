import json
import os
import time

import pytest
from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
)

from flows.augment import augment
from flows.leftovers import old_logs, old_work, remove
from flows.retention import _is_ours, retention
from flows.retention_mlflow import old_runs
from pipeline.errors import InputError
from pipeline.folders import write_manifest
from pipeline.tracking.mlflow import MlflowClient, local_tracking_uri

DAY = 86_400
NOW = time.time()


def old(path, days=40):
    """Make a file or a folder, and all in it, look this old."""
    for one in (*path.rglob("*"), path):
        os.utime(one, (NOW - days * DAY,) * 2, follow_symlinks=False)
    return path


def work_folder(artifacts, stage="train", key="0123456789abcdef", days=40):
    folder = artifacts / ".work" / stage / key
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(b"x" * 1000)
    return old(folder, days)


def names(found):
    return [one.name for one in found]


def test_only_old_work_that_nobody_holds_is_found(tmp_path):
    root = tmp_path / "artifacts"
    work_folder(root)
    work_folder(root / "sweep" / "seed-0", "synthesize")
    work_folder(root, "evaluate", days=3)
    work_folder(root, "pretrain")
    before = NOW - 30 * DAY
    with FileLock(root / ".work" / "pretrain.lock"):
        found = old_work(root, before)
        assert names(found) == [
            ".work/train/0123456789abcdef",
            "sweep/seed-0/.work/synthesize/0123456789abcdef",
        ]
    assert [one.bytes for one in found] == [1000, 1000]
    assert all(remove(one, pytest.fail) for one in found)
    assert names(old_work(root, before)) == [".work/pretrain/0123456789abcdef"]
    assert (root / ".work" / "evaluate" / "0123456789abcdef" / "checkpoint").is_file()


def test_work_that_is_taken_up_again_meanwhile_stays(tmp_path):
    root = tmp_path / "artifacts"
    folder = work_folder(root)
    (found,) = old_work(root, NOW - 30 * DAY)
    warned = []
    with FileLock(root / ".work" / "train.lock"):
        assert remove(found, warned.append) is False
    (folder / "checkpoint").write_bytes(b"new")
    assert remove(found, warned.append) is False
    assert "a run is at work on it" in warned[0]
    assert "it was taken up again" in warned[1]
    assert (folder / "checkpoint").read_bytes() == b"new"


def test_finished_stages_and_what_links_lead_to_stay(tmp_path):
    root, outside = tmp_path / "artifacts", tmp_path / "outside"
    work_folder(outside, "train")
    finished = root / "train"
    work_folder(finished, "train")
    write_manifest(finished, "train", "k", {}, {})
    old(finished)
    (root / ".work").symlink_to(outside / ".work")
    (root / "linked").symlink_to(outside)
    assert old_work(root, NOW - 30 * DAY) == []
    # A link inside a work folder goes; what it leads to stays.
    other = tmp_path / "other"
    folder = work_folder(other, "train")
    (folder / "out").symlink_to(outside)
    old(folder)
    (found,) = old_work(other, NOW - 30 * DAY)
    assert remove(found, pytest.fail)
    assert not folder.exists()
    assert (outside / ".work" / "train" / "0123456789abcdef" / "checkpoint").is_file()


def test_logs_beyond_the_number_and_old_enough_go(tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    for day in (1, 35, 40, 50):
        (runs / f"20260101T0000{day:02}Z-flow.jsonl").write_text("{}\n")
        old(runs / f"20260101T0000{day:02}Z-flow.jsonl", day)
    for name in ("announced.json", "my-notes.jsonl", "index.jsonl"):  # not logs of runs
        (runs / name).write_text("{}")
        old(runs / name)
    third, fourth = "runs/20260101T000040Z-flow.jsonl", "runs/20260101T000050Z-flow.jsonl"
    assert names(old_logs(runs, 2, NOW - 30 * DAY)) == [third, fourth]
    assert names(old_logs(runs, 2, NOW - 45 * DAY)) == [fourth]
    assert old_logs(tmp_path / "none", 2, NOW) == []


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    """Four runs of 40 days and more, newest first: plain, with a model, with an alias, running."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(local_tracking_uri(tmp_path))
    experiment = client.create_experiment("replenish", (tmp_path / "mlartifacts").as_uri())
    runs = {}
    for days, name in enumerate(("newest", "plain", "aliased", "versioned", "running"), 40):
        began = int((NOW - days * DAY) * 1000)
        run = client.create_run(experiment, start_time=began, run_name=name).info.run_id
        client.log_text(run, "x" * 500, "file.txt")
        if name != "running":
            client.set_terminated(run)
        runs[name] = run
    child = client.create_run(
        experiment, start_time=1, tags={"mlflow.parentRunId": runs["plain"]}, run_name="an arm"
    ).info.run_id
    client.log_text(child, "x" * 70, "arm.txt")
    client.set_terminated(child)
    client.create_registered_model("replenish-generator")
    for name in ("aliased", "versioned"):
        version = client.create_model_version("replenish-generator", "file:///x", runs[name])
        runs[f"version of {name}"] = version.version
    client.set_registered_model_alias("replenish-generator", "champion", runs["version of aliased"])
    runs["child"] = child
    return client, runs, experiment


def test_mlflow_runs_beyond_the_number_go_with_their_files(tmp_path, mlflow_store):
    client, runs, experiment = mlflow_store
    before = NOW - 30 * DAY
    assert old_runs(tmp_path, 1, NOW - 60 * DAY, pytest.fail) == []
    found = old_runs(tmp_path, 1, before, pytest.fail)
    assert [one.name.partition(" ")[0] for one in found] == ["plain", "versioned"]
    assert [one.bytes for one in found] == [570, 500]
    assert all(remove(one, pytest.fail) for one in found)
    left = {run.info.run_name for run in client.search_runs([experiment])}
    assert left == {"newest", "aliased", "running"}
    files = {path.parent.parent.name for path in (tmp_path / "mlartifacts").rglob("*.txt")}
    assert files == {runs["newest"], runs["aliased"], runs["running"]}
    versions = client.search_model_versions("name = 'replenish-generator'")
    assert [one.run_id for one in versions] == [runs["aliased"]]
    assert old_runs(tmp_path, 1, before, pytest.fail) == []


def test_a_run_that_gets_an_alias_meanwhile_stays(tmp_path, mlflow_store):
    client, runs, _ = mlflow_store
    found = old_runs(tmp_path, 2, NOW - 30 * DAY, pytest.fail)
    client.set_registered_model_alias("replenish-generator", "mine", runs["version of versioned"])
    warned = []
    assert [remove(one, warned.append) for one in found] == [False]
    assert "got an alias meanwhile" in warned[0]


def test_without_a_database_none_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert old_runs(tmp_path, 1, NOW, pytest.fail) == []
    assert not (tmp_path / "mlflow.db").exists()


def test_the_flow_says_first_and_removes_when_asked(project):
    work = work_folder(project.root / "artifacts")
    told = retention(keep_runs=1, keep_days=30, mlflow=False)
    assert told == {"dry_run": True, "counts": {"work folder": 1}, "bytes": 1000}
    assert work.is_dir()
    told = retention(keep_runs=1, keep_days=30, dry_run=False, mlflow=False)
    assert told == {"dry_run": False, "counts": {"work folder": 1}, "bytes": 1000}
    assert not work.exists()
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]
        (shown,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    assert [row["kind"] for row in json.loads(shown.data)] == ["work folder", "all"]


def test_old_flow_runs_go_and_the_newest_and_the_young_stay(project, monkeypatch):
    for _ in range(3):
        augment(mlflow=False)
    with get_client(sync_client=True) as client:
        before = len(_augment_runs(client))
    assert before >= 3
    # As it will be in 40 days.
    monkeypatch.setattr("flows.retention.time.time", lambda: NOW + 40 * DAY)
    (project.root / "artifacts").mkdir(exist_ok=True)
    told = retention(keep_runs=2, keep_days=30, dry_run=False, mlflow=False)
    assert told["counts"]["flow run"] >= before - 2
    with get_client(sync_client=True) as client:
        assert len(_augment_runs(client)) == 2


def _augment_runs(client):
    """Return those that may go: other tests leave running and nameless ones on the same server."""
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["augment"])), limit=200
    )
    return [run for run in runs if run.state.is_final() and _is_ours(run)]


def test_a_folder_that_is_not_there_is_named(project):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        retention(artifacts="nowhere", mlflow=False)
