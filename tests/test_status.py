import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_stages import write_stages
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.folders import read_manifest, write_json
from pipeline.params import Params
from pipeline.status import run_status
from pipeline.status_command import status_lines, status_object
from pipeline.tracking.index import add_record, settings_digest
from pipeline.tracking.jsonlines import JsonLinesTracker
from pipeline.tracking.recorder import RunFacts, RunRecorder

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPLENISH_RUN_ID", raising=False)
    return tmp_path


class Work:
    """A run at work in this process, whose clock stands where the test puts it."""

    def __init__(self, place, run_id="r1"):
        self.place, self.now = place, NOW
        self.facts = RunFacts(run_id, "run", place / "runs" / "a.jsonl")
        self.recorder = RunRecorder(place / "artifacts", self.facts, print)
        self.log = JsonLinesTracker(
            self.facts.log,
            clock=lambda: self.now.timestamp(),
            now=lambda: self.now,
            run_id=run_id,
        )

    def progress(self, seconds, done, total, task="train", unit="steps"):
        self.now = NOW + timedelta(seconds=seconds)
        self.log.progress(task, done, total, unit)


@pytest.fixture
def work(place, monkeypatch):
    made = Work(place)
    monkeypatch.setattr("pipeline.tracking.recorder.utc_now", lambda: made.now)
    return made


def stages(status):
    return {one.name: one for one in status.stages}


def look(place, seconds=0.0, params=None):
    now = NOW + timedelta(seconds=seconds)
    return run_status(place / "artifacts", params, place / "runs", now)


def told_before(place, stage, seconds, params=None):
    section = getattr(params or Params(), stage).identity()
    names = ("digest", "key", "manifest_md5", "artifacts", "mlflow_run_id", "prefect_run_id")
    fields = dict.fromkeys(names, "x") | {
        "settings_digest": settings_digest(section),
        "started": NOW.isoformat(),
        "ended": NOW.isoformat(),
        "seconds": seconds,
        "resumed": False,
        "numbers": {},
        "memory_bytes": {},
    }
    add_record(place / "runs", "earlier", stage, "stage_made", fields)


def leave_work(place, stage, files):
    folder = place / "artifacts" / ".work" / stage / "0123456789abcdef"
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_an_empty_place_has_begun_nothing_and_knows_no_end(place):
    status = look(place)
    assert {one.state for one in status.stages} == {"not begun"}
    assert (status.alive, status.expected_end, status.remaining_seconds) == (False, None, None)
    assert status.basis == "`prepare` was not done here before, so that its time is not known"
    assert not (place / "artifacts").exists()  # it only looks


def test_a_run_at_work_ends_when_its_step_and_what_comes_after_it_end(place, work):
    for stage, seconds in (("synthesize", 60), ("evaluate", 100), ("assemble", 5), ("report", 5)):
        told_before(place, stage, seconds)
    told_before(place, "train", 20)
    write_stages(place / "made")
    for name in ("prepare", "pretrain"):
        (place / "artifacts").mkdir(exist_ok=True)
        with work.recorder.stage(name):
            (place / "made" / name).rename(place / "artifacts" / name)
    work.recorder.params({"train.steps": 100})
    with (
        work.recorder.run(
            ("prepare", "pretrain", "train", "synthesize", "evaluate", "assemble", "report")
        ),
        work.recorder.stage("train"),
        work.log.stage("train"),
    ):
        for seconds in range(11):
            work.progress(seconds, 2 * seconds, 100)
        status = look(place, 12)
        one = stages(status)["train"]
        assert (one.state, one.run_id, one.seconds) == ("running", "r1", 12)
        assert one.process.startswith(f"{os.getpid()} on ")
        assert (one.step.done, one.step.total, one.step.rate) == (20, 100, 2.0)
        # 80 steps are left at 2 a second since second 10, which is later than the usual 20 s.
        assert one.expected_end == NOW + timedelta(seconds=50)
        assert status.alive
        assert status.expected_end == NOW + timedelta(seconds=50 + 60 + 100 + 5 + 5)
        assert "some with other params" in status.basis
        known = look(place, 12, Params())
        assert known.basis == "from earlier runs, with these params; at least 1 of each stage"
        text = "\n".join(status_lines(status, NOW + timedelta(seconds=12)))
        assert "train: 20 of 100 steps, 2 steps/s, 38 s left" in text
        assert "Ends: about" in text
    # Made by this run: not to be done again.
    assert stages(look(place))["prepare"].state == "done"


def test_a_stage_that_is_new_here_has_no_end_but_its_step_has(place, work):
    with work.recorder.run(("train",)), work.recorder.stage("train"), work.log.stage("train"):
        work.progress(0, 0, 100)
        work.progress(10, 20, 100)
        status = look(place, 10)
    assert status.expected_end is None
    assert stages(status)["train"].step.ends(NOW + timedelta(seconds=10)) is not None
    lines = status_lines(status, NOW + timedelta(seconds=10))
    assert lines[-1] == (
        "Ends: unknown; `train` was not done here before, so that its time is not known"
    )
    assert "end unknown" in lines[3]


def test_a_stage_that_takes_longer_than_ever_has_no_end(place, work):
    told_before(place, "train", 20)
    with work.recorder.run(("train",)), work.recorder.stage("train"), work.log.stage("train"):
        status = look(place, 21)
    assert status.expected_end is None
    assert status.basis == "`train` takes longer than it did before"


def test_a_single_stage_does_not_wait_for_those_after_it(place, work):
    told_before(place, "train", 20)
    with work.recorder.run(("train",)), work.recorder.stage("train"), work.log.stage("train"):
        status = look(place, 5)
    assert status.expected_end == NOW + timedelta(seconds=20)


def test_shards_are_counted_on_disk_and_planned_by_rounds(place, work):
    work.recorder.params({"synthesize.shard_images": 4})
    names = [f"shards/class-0000-shard-{n:06d}.sha256" for n in range(3)]
    leave_work(place, "synthesize", [*names, "shards/class-0000-shard-000003.safetensors"])
    with work.recorder.stage("synthesize"), work.log.stage("synthesize"):
        work.progress(0, 0, 8, "sample", "images")
        work.progress(1, 8, 8, "sample", "images")
        work.progress(2, 0, 6, "sample", "images")
        part = stages(look(place, 2))["synthesize"].part
    assert (part.what, part.done, part.total) == ("shards", 3, 4)


def test_a_failed_stage_says_why_and_what_remains(place, work):
    folder = leave_work(place, "train", ["curve.csv"])
    metadata = {"numbers": json.dumps({"step": 60, "stopped": False})}
    save_file({"x": np.zeros(2, np.float32)}, folder / "state.safetensors", metadata=metadata)
    work.recorder.params({"train.steps": 100})
    with pytest.raises(RuntimeError), work.recorder.stage("train"), work.log.stage("train"):
        raise RuntimeError("the loss is no longer finite")
    one = stages(look(place, 30))["train"]
    assert (one.state, one.reason) == ("failed", "the loss is no longer finite")
    assert (one.part.done, one.part.total) == (60, 100)
    with pytest.raises(KeyboardInterrupt), work.recorder.stage("train"):
        raise KeyboardInterrupt
    assert stages(look(place, 30))["train"].state == "interrupted"


def test_work_that_nobody_recorded_counts_as_interrupted(place):
    leave_work(place, "synthesize", ["shards/class-0000-shard-000000.sha256"])
    one = stages(look(place))["synthesize"]
    assert (one.state, one.part.done, one.part.total) == ("interrupted", 1, None)


@pytest.mark.parametrize(("silent", "state"), [(60, "running"), (1801, "interrupted")])
def test_a_run_on_another_machine_lives_while_its_log_is_written(place, work, silent, state):
    with work.recorder.stage("train"), work.log.stage("train"):
        work.progress(0, 0, 100)
        path = place / "artifacts" / ".runs" / "train.live.json"
        write_json(path, {**json.loads(path.read_text()), "host": "elsewhere"})
        assert stages(look(place, silent))["train"].state == state


def test_done_up_to_date_and_stale_are_told_apart(place, monkeypatch):
    write_stages(place / "artifacts")
    current = {"prepare": True, "pretrain": True, "train": False, "synthesize": True}

    class Fake:
        def __init__(self, name):
            self.name = name

        def is_current(self, params, inputs, out):
            return current.get(self.name, True)

    monkeypatch.setattr("pipeline.status.load_stage", Fake)
    assert stages(look(place))["prepare"].state == "done"
    found = stages(look(place, params=Params()))
    assert [one.state for one in found.values()] == [
        "up to date",
        "up to date",
        "stale",
        "stale",
        "stale",
        "not begun",
        "not begun",
    ]
    assert found["train"].reason == "made with other params, inputs or code"
    assert found["synthesize"].reason == "`train` comes first"


def test_a_folder_from_elsewhere_is_not_credited_to_a_run_here(place, work):
    write_stages(place / "made")
    (place / "artifacts").mkdir()
    with work.recorder.stage("train"):
        (place / "made" / "train").rename(place / "artifacts" / "train")
    assert stages(look(place))["train"].run_id == "r1"
    made = place / "artifacts" / ".runs" / "train.json"
    write_json(made, {**json.loads(made.read_text()), "digest": "0" * 64})
    assert stages(look(place))["train"].run_id == ""


KILLED = """
import sys, time
from pathlib import Path
from pipeline.params import Params
from pipeline.tracking.session import record_run

with record_run(Path("artifacts"), Params(), "train", "stage", speakers=(), warn=print,
                mlflow=False) as session, session.tracker.stage("train"):
    session.tracker.progress("train", 5, 100, "steps")
    Path("begun").touch()
    time.sleep(600)
"""


def test_a_killed_run_shows_as_interrupted_within_a_moment(place):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    running = subprocess.Popen([sys.executable, "-c", KILLED], env=environment)
    deadline = time.monotonic() + 60
    while not Path("begun").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    said = CliRunner().invoke(app, ["status", "--quick"])
    assert said.exit_code == 0
    assert f"train       running     process {running.pid} on " in said.stdout
    assert "(stage): at work since" in said.stdout
    running.send_signal(signal.SIGKILL)
    running.wait()
    said = CliRunner().invoke(app, ["status", "--quick", "--json"])
    told = json.loads(said.stdout)
    assert told["alive"] is False
    train = told["stages"][2]
    assert (train["name"], train["state"]) == ("train", "interrupted")
    assert (train["step"]["done"], train["step"]["total"]) == (5, 100)
    assert "(stage): was killed" in CliRunner().invoke(app, ["status", "--quick"]).stdout


def test_the_command_finds_a_maker_and_refuses_what_nobody_made(place, work):
    write_stages(place / "made")
    (place / "artifacts").mkdir()
    with work.recorder.stage("train"):
        (place / "made" / "train").rename(place / "artifacts" / "train")
    digest = read_manifest(place / "artifacts" / "train").digest
    said = CliRunner().invoke(app, ["status", "--digest", digest[:12]])
    assert said.stdout.splitlines()[0] == f"train {digest}"
    assert "  run      r1" in said.stdout.splitlines()
    (one,) = json.loads(CliRunner().invoke(app, ["status", "--digest", digest, "--json"]).stdout)
    assert (one["run_id"], one["stage"]) == ("r1", "train")
    refused = CliRunner().invoke(app, ["status", "--digest", "0" * 64])
    assert "no run in the index made a folder of that name" in str(refused.exception)


def test_hostile_names_are_shown_and_not_obeyed(place, work):
    with work.recorder.stage("train"), work.log.stage("train"):
        work.progress(0, 1, 2, task="\x1b[2J")
        status = look(place)
        text = "\n".join(status_lines(status, NOW))
    assert "\\x1b[2J: 1 of 2 steps" in text
    assert status_object(status)["stages"][2]["step"]["task"] == "\x1b[2J"


def test_watching_goes_on_until_it_is_interrupted(place, monkeypatch):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.status_command.time.sleep", wait)
    said = CliRunner().invoke(app, ["status", "--watch", "--json", "--every-seconds", "2"])
    assert waits == [2.0, 2.0, 2.0]
    assert [json.loads(line)["alive"] for line in said.stdout.splitlines()] == [False] * 3
    assert said.exit_code == 0
