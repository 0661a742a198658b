import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_stages import Fake, write_stages
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import InputError
from pipeline.folders import read_manifest
from pipeline.params import Params
from pipeline.tracking.identity import RUN_ID, RUN_LOGS, run_environment
from pipeline.tracking.index import made_folders, read_index, settings_digest
from pipeline.tracking.lookup import dvc_folder_md5, find_made
from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri
from pipeline.tracking.prometheus import MetricsFile
from pipeline.tracking.recorder import RunFacts, RunRecorder
from pipeline.tracking.schema import check_line
from pipeline.tracking.session import record_run
from pipeline.tracking.shard_log import shard_log
from pipeline.tracking.tracker import FanOut, NullTracker


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.delenv(RUN_ID, raising=False)
    monkeypatch.delenv(RUN_LOGS, raising=False)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def recorder(tmp_path, warnings):
    facts = RunFacts("run-one", "run", tmp_path / "runs" / "a.jsonl", "f" * 32, "flow-1")
    return RunRecorder(tmp_path / "artifacts", facts, warnings.append)


def side(tmp_path, name):
    path = tmp_path / "artifacts" / ".runs" / name
    return json.loads(path.read_text()) if path.exists() else None


def make_all(tmp_path, tracker):
    """Run fake stages as a driver would: each makes its folder within its stage."""
    folders = write_stages(tmp_path / "elsewhere", Fake(accepted=(0, 2, 4), rejected=(0, 2, 3)))
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    for name, folder in folders.items():
        with tracker.stage(name):
            if name == "synthesize":
                tracker.metrics({"synthesize/images_per_second": 12.5})
            folder.rename(tmp_path / "artifacts" / name)


def test_the_index_ties_a_folder_to_its_run_and_the_folder_does_not_know(tmp_path, recorder):
    make_all(tmp_path, recorder)
    made = {one.stage: one for one in made_folders(read_index(tmp_path / "runs"))}
    assert list(made) == ["prepare", "pretrain", "train", "synthesize", "evaluate"]
    manifest = read_manifest(tmp_path / "artifacts" / "train")
    one = made["train"]
    assert (one.run_id, one.mlflow_run_id, one.prefect_run_id) == ("run-one", "f" * 32, "flow-1")
    assert (one.digest, one.key) == (manifest.digest, manifest.key)
    assert one.settings_digest == settings_digest(Params().train.identity())
    assert made["synthesize"].numbers == {
        "candidates": 11.0,
        "accepted": 6.0,
        "images_per_second": 12.5,
    }
    assert made["evaluate"].numbers == {
        "gain_points": 3.1,
        "low_points": 1.2,
        "high_points": 5.0,
        "use": 1.0,
    }
    for line in (tmp_path / "runs" / "index.jsonl").read_text().splitlines():
        check_line(line)
    assert side(tmp_path, "train.json")["digest"] == manifest.digest
    assert side(tmp_path, "train.live.json") is None
    files = [p for p in (tmp_path / "artifacts" / "train").rglob("*") if p.is_file()]
    assert not [p for p in files if b"run-one" in p.read_bytes()]


def test_who_finds_a_folder_up_to_date_did_not_make_it(tmp_path, recorder):
    make_all(tmp_path, recorder)
    facts = RunFacts("run-two", "run", tmp_path / "runs" / "b.jsonl")
    with RunRecorder(tmp_path / "artifacts", facts, print).stage("train"):
        pass
    assert side(tmp_path, "train.json")["run_id"] == "run-one"
    assert len(read_index(tmp_path / "runs")) == 5


def test_a_failure_is_in_the_index_and_stays_in_the_live_file(tmp_path, recorder):
    recorder.params({"train.steps": 5, "prepare.path": "s3://me:pw@host", "train.password": "pw"})
    with pytest.raises(InputError), recorder.stage("train"):
        raise InputError("https://me:pw@host: no\nsuch thing")
    (line,) = read_index(tmp_path / "runs")
    assert (line["event"], line["level"]) == ("stage_failed", "error")
    assert line["fields"]["error"] == "InputError"
    assert line["fields"]["message"] == "https://host: no"
    live = side(tmp_path, "train.live.json")
    assert live["settings"] == {"train.steps": 5, "train.password": "***"}
    assert live["error"] == "InputError"
    with recorder.stage("train"):  # another go, which ends well
        pass
    assert side(tmp_path, "train.live.json") is None


def test_a_run_that_the_lock_refuses_leaves_the_file_of_the_one_at_work(tmp_path, recorder):
    other = RunRecorder(
        tmp_path / "artifacts", RunFacts("run-two", "run", tmp_path / "runs" / "b.jsonl"), print
    )
    with recorder.stage("train"):
        with pytest.raises(InputError), other.stage("train"):
            raise InputError("another run is at work")
        assert side(tmp_path, "train.live.json")["run_id"] == "run-one"
        assert "error" not in side(tmp_path, "train.live.json")


def test_an_artifacts_folder_that_cannot_be_written_is_told_once(tmp_path, recorder, warnings):
    (tmp_path / "artifacts").write_text("a file")
    for _ in range(2):
        with recorder.run(("train",)), recorder.stage("train"):
            pass
    assert len(warnings) == 1
    assert "`replenish status` will know less" in warnings[0]


def test_the_run_file_says_what_the_run_is_to_do_and_that_it_ended(tmp_path, recorder):
    with recorder.run(("prepare", "train")):
        run = side(tmp_path, "run.json")
        assert (run["run_id"], run["stages"], run["pid"]) == (
            "run-one",
            ["prepare", "train"],
            os.getpid(),
        )
        assert "ended" not in run
    assert side(tmp_path, "run.json")["error"] is None


def samples(path):
    """Return name -> labels as text -> value, and check that each family says what it is."""
    found = {}
    text = path.read_text()
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("gauge", "counter")
        assert f"# HELP {family.name}" in text
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_metrics_file_is_what_prometheus_reads(tmp_path, recorder, warnings):
    ticks = iter(range(10_000))
    facts = RunFacts("run-one", "run", tmp_path / "runs" / "a.jsonl")
    metrics = MetricsFile(facts, warnings.append, clock=lambda: 2.0 * next(ticks))
    tracker = FanOut([metrics, recorder])
    make_all(tmp_path, tracker)
    with run_environment("run-one", tmp_path / "runs"):
        shard_log().done("a", 4, 0.1)
        shard_log().failed("b", "no memory")

    def fail_while_sampling():
        for done in range(0, 44, 4):
            tracker.progress("sample", done, 40, "images")
        within.update(samples(tmp_path / "runs" / "metrics.prom"))
        raise InputError("x")

    within = {}
    with pytest.raises(InputError), tracker.stage("synthesize"):
        fail_while_sampling()
    assert within["replenish_task_total"] == {"stage=synthesize,task=sample": 40}
    assert within["replenish_stage_running"]["stage=synthesize"] == 1
    assert within["replenish_sampling_images_per_second"][""] == 2  # 4 images a tick of 2 s
    told = samples(tmp_path / "runs" / "metrics.prom")
    assert told["replenish_images_sampled_total"] == {"": 11}
    assert told["replenish_images_accepted_total"] == {"": 6}
    assert told["replenish_images_per_second"] == {"": 12.5}
    assert told["replenish_verdict_gain_points"] == {"": 3.1}
    assert told["replenish_verdict_gain_low_points"] == {"": 1.2}
    assert told["replenish_verdict_gain_high_points"] == {"": 5.0}
    assert told["replenish_verdict_use"] == {"": 1}
    assert told["replenish_stage_runs_total"]["outcome=made,stage=synthesize"] == 1
    assert told["replenish_stage_runs_total"]["outcome=failed,stage=synthesize"] == 1
    assert told["replenish_run_shards"] == {
        "outcome=done": 1,
        "outcome=failed": 1,
        "outcome=retried": 0,
    }
    assert told["replenish_stage_running"]["stage=synthesize"] == 0
    assert "replenish_task_done" not in told
    made = {one.stage: one for one in made_folders(read_index(tmp_path / "runs"))}
    ended = {f"stage={name}": one.ended.timestamp() for name, one in made.items()}
    assert told["replenish_stage_last_success_timestamp_seconds"] == pytest.approx(ended)
    assert told["replenish_last_success_timestamp_seconds"][""] == pytest.approx(
        max(ended.values())
    )
    assert told["replenish_memory_peak_bytes"]["kind=worker"] > 1_000_000
    assert warnings == []
    assert [p.name for p in (tmp_path / "runs").glob("metrics*")] == ["metrics.prom"]
    document = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^\| `(replenish_\w+)`", document, re.MULTILINE)) == set(within | told)


def test_a_metrics_file_that_cannot_be_written_is_told_once(tmp_path, warnings):
    (tmp_path / "runs").write_text("a file")
    metrics = MetricsFile(RunFacts("r", "run", tmp_path / "runs" / "a.jsonl"), warnings.append)
    with metrics.stage("train"):
        pass
    assert len(warnings) == 1
    assert "metrics.prom: cannot be written" in warnings[0]


def test_a_folder_is_found_by_any_of_its_names(tmp_path, recorder):
    make_all(tmp_path, recorder)
    made = made_folders(read_index(tmp_path / "runs"))
    artifacts = tmp_path / "artifacts"
    train = next(one for one in made if one.stage == "train")

    def found(name):
        return [one.stage for one in find_made(made, name, artifacts, tmp_path)]

    assert found(train.digest) == found(train.digest[:8].upper()) == ["train"]
    assert found("run-one") == ["prepare", "pretrain", "train", "synthesize", "evaluate"]
    assert found("f" * 32) == found("flow-1") == found("run-one")
    assert found(f"{dvc_folder_md5(artifacts / 'train')}.dir") == ["train"]
    with pytest.raises(InputError, match="give at least 6"):
        found("abc")
    with pytest.raises(InputError, match="no run in the index made a folder of that name"):
        found("0" * 32)


def test_dvc_lock_leads_to_the_run_by_the_cache_alone(tmp_path, recorder):
    make_all(tmp_path, recorder)
    made = made_folders(read_index(tmp_path / "runs"))
    dvc = [sys.executable, "-m", "dvc"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for command in (["init", "--no-scm", "-q"], ["add", "-q", "artifacts/train"]):
        subprocess.run([*dvc, *command], cwd=tmp_path, env=environment, check=True)
    stated = (tmp_path / "artifacts" / "train.dvc").read_text()
    md5 = stated.split("md5: ")[1].split()[0]
    assert md5 == f"{dvc_folder_md5(tmp_path / 'artifacts' / 'train')}.dir"
    (one,) = find_made(made, md5, tmp_path / "nothing", tmp_path)  # no folder to hash
    assert (one.stage, one.run_id) == ("train", "run-one")


class Spoken(NullTracker):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_one_id_goes_through_log_side_files_index_workers_and_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID, "chosen")
    logs, spoken = tmp_path / "runs", Spoken()
    with record_run(
        tmp_path / "artifacts",
        Params(),
        "run",
        "run",
        speakers=(spoken,),
        warn=spoken.note,
        mlflow=False,
        prefect_run_id="flow-1",
        logs=logs,
    ) as session:
        assert session.run_id == "chosen"
        make_all(tmp_path, session.tracker)
        session.tracker.note("hello")
        shard_log().done("a", 4, 0.1)
    assert spoken.notes == ["hello"]
    assert list(session.seconds) == ["prepare", "pretrain", "train", "synthesize", "evaluate"]
    (log,) = logs.glob("*-run.jsonl")
    told = [check_line(line) for line in log.read_text().splitlines()]
    assert {one.run_id for one in told} == {"chosen"}
    assert (told[0].event, told[-1].event) == ("run_begin", "run_end")
    assert told[0].fields["prefect_run_id"] == "flow-1"
    assert {line["run_id"] for line in read_index(logs)} == {"chosen"}
    assert [p.name.split(".")[0] for p in (logs / "shards").iterdir()] == ["chosen"]
    assert side(tmp_path, "evaluate.json")["run_id"] == "chosen"
    info = samples(logs / "metrics.prom")["replenish_run_info"]
    assert [labels.split(",")[1] for labels in info] == ["run_id=chosen"]
    assert os.environ[RUN_ID] == "chosen"
    assert RUN_LOGS not in os.environ


def test_the_mlflow_run_and_the_index_name_each_other(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    spoken = []
    with record_run(
        root / "artifacts",
        Params(),
        "flow",
        "flow",
        speakers=(),
        warn=spoken.append,
        mlflow_name="odd-owl",
        prefect_run_id="flow-1",
        tags={"prefect_flow_run_id": "flow-1"},
    ) as session:
        make_all(root, session.tracker)
    assert spoken == []
    run = MlflowClient(default_tracking_uri(root)).get_run(session.mlflow_run_id)
    assert (run.info.run_name, run.info.status) == ("odd-owl", "FINISHED")
    assert run.data.tags["replenish_run_id"] == "flow-1" == session.run_id
    assert run.data.tags["prefect_flow_run_id"] == "flow-1"
    assert run.data.params["train.steps"] == str(Params().train.steps)
    made = made_folders(read_index(root / "runs"))
    assert {one.mlflow_run_id for one in made} == {session.mlflow_run_id}
    assert {one.prefect_run_id for one in made} == {"flow-1"}


KILLED = """
import sys, time
from pathlib import Path
from pipeline.tracking.recorder import RunFacts, RunRecorder

root = Path(sys.argv[1])
facts = RunFacts("killed", "run", root / "runs" / "a.jsonl")
recorder = RunRecorder(root / "artifacts", facts, print)
with recorder.run(("train",)), recorder.stage("train"):
    (root / "begun").touch()
    time.sleep(600)
"""


def test_a_killed_run_leaves_its_live_file_and_the_next_one_takes_it_over(tmp_path, recorder):
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert side(tmp_path, "train.live.json")["run_id"] == "killed"
    assert read_index(tmp_path / "runs") == []
    with recorder.stage("train"):
        assert side(tmp_path, "train.live.json")["run_id"] == "run-one"
    assert side(tmp_path, "train.live.json") is None
