import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.tracking.jsonlines import JsonLinesTracker, new_run_log
from pipeline.tracking.schema import EVENTS, check_line
from pipeline.tracking.tracker import TrackedModel

MOMENT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_each_event_is_a_line_with_its_time_and_stage(tmp_path):
    path = tmp_path / "runs" / "a.jsonl"
    with JsonLinesTracker(path, now=lambda: MOMENT, run_id="r1") as tracker:
        tracker.params({"train.steps": 5, "prepare.path": None})
        with tracker.stage("train"):
            tracker.metrics({"train/loss": 0.5}, step=3)
        tracker.arm("mixed_50", {"share": 0.5}, {"tail_recall": 0.75})
    events = lines(path)
    assert [e["event"] for e in events] == ["params", "stage_begin", "metrics", "stage_end", "arm"]
    assert events[2] == {
        "time": "2026-01-31T09:30:00.000+00:00",
        "level": "debug",
        "run_id": "r1",
        "stage": "train",
        "event": "metrics",
        "fields": {"step": 3, "values": {"train/loss": 0.5}},
    }
    assert events[3]["fields"]["error"] is None
    assert events[4]["stage"] is None


def test_a_line_is_on_disk_at_once(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "a.jsonl")
    tracker.note("one")
    assert lines(tracker.path)[0]["fields"]["message"] == "one"
    tracker.note("two")
    assert [e["fields"]["message"] for e in lines(tracker.path)] == ["one", "two"]


def test_numbers_that_are_not_finite_become_null_and_numpy_numbers_are_numbers(tmp_path):
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.metrics(
            {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.float64("nan")}
        )
    assert lines(tracker.path)[0]["fields"]["values"] == {"a": None, "b": None, "c": 0.5, "d": None}


def test_hostile_text_stays_in_its_line(tmp_path):
    text = 'a\nb\u2028c"\x1b[2J\ud800'
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.note(text)
    assert lines(tracker.path)[0]["fields"]["message"] == text
    assert tracker.path.read_bytes().count(b"\n") == 1


def test_the_end_of_a_failed_stage_names_the_error(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="two"), tracker, tracker.stage("train"):
        raise ValueError("s3://me:pw@host: one\ntwo")
    last = lines(tracker.path)[-1]
    assert (last["event"], last["level"]) == ("stage_end", "error")
    assert last["fields"]["error"] == "ValueError"
    assert last["fields"]["message"] == "s3://host: one"


def test_progress_is_thinned_but_keeps_the_last(tmp_path):
    ticks = iter(range(1000))
    with JsonLinesTracker(tmp_path / "a.jsonl", clock=lambda: next(ticks) * 0.25) as tracker:
        for done in range(11):
            tracker.progress("sample", done, 10, "images")
    assert [e["fields"]["done"] for e in lines(tracker.path)] == [0, 4, 8, 10]


def test_a_file_that_cannot_be_written_warns_once_and_the_work_goes_on(tmp_path):
    (tmp_path / "runs").write_text("a file")
    warnings = []
    with JsonLinesTracker(tmp_path / "runs" / "a.jsonl", warn=warnings.append) as tracker:
        tracker.note("one")
        tracker.note("two")
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]
    assert str(tracker.path) in warnings[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_warns_once_and_the_work_goes_on():
    warnings = []
    with JsonLinesTracker(Path("/dev/full"), warn=warnings.append) as tracker:
        tracker.note("one")
        tracker.note("two")
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_run_logs_of_the_same_second_get_names_of_their_own(tmp_path):
    first = new_run_log(tmp_path, "flow", lambda: MOMENT)
    first.touch()
    assert first.name == "20260131T093000Z-flow.jsonl"
    assert new_run_log(tmp_path, "flow", lambda: MOMENT).name == "20260131T093000Z-flow-2.jsonl"


def test_pictures_models_and_curves_are_named(tmp_path):
    model = TrackedModel("generator", tmp_path, "m", (), (), None, {}, tags={"decision": "use"})
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.image(tmp_path / "step-000010.png", "train/samples", 10)
        tracker.model(model)
        tracker.series({"evaluate/look/gain_points": {2: 1.5}})
    picture, kept, curves = lines(tracker.path)
    assert picture["event"] == "image"
    assert (picture["fields"]["key"], picture["fields"]["step"]) == ("train/samples", 10)
    assert kept["fields"]["name"] == "generator"
    assert kept["fields"]["tags"] == {"decision": "use"}
    assert curves["fields"]["points"] == {"evaluate/look/gain_points": {"2": 1.5}}


def test_every_event_of_a_tracker_keeps_to_the_schema(tmp_path):
    model = TrackedModel("generator", tmp_path, "m", (), (), None, {})
    facts = {"driver": "run", "version": "1", "host": "h", "pid": 1, "artifacts": "a"}
    tracker = JsonLinesTracker(tmp_path / "a.jsonl", run_id="r1")
    with tracker.run(**facts, mlflow_run_id="", prefect_run_id=""), tracker.stage("train"):
        tracker.params({"train.steps": 5})
        tracker.metrics({"a": math.inf})
        tracker.series({"b": {1: 2.0}})
        tracker.progress("train", 1, 2, "steps")
        tracker.note("n")
        tracker.warning("w")
        tracker.artifact(tmp_path, "n")
        tracker.image(tmp_path, "k", 1)
        tracker.model(model)
        tracker.dataset("d", "e" * 64, 3, "training")
        tracker.arm("mixed", {"share": 0.5}, {"x": 1.0})
        tracker.tags({"t": "v"})
    told = [check_line(line) for line in tracker.path.read_text().splitlines()]
    ours = {"shard_done", "shard_failed", "shard_retried", "stage_made", "stage_failed"}
    assert {one.event for one in told} == set(EVENTS) - ours
    assert {one.run_id for one in told} == {"r1"}
    assert [one.level for one in told if one.event == "warning"] == ["warning"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "2026-01-31T09:30:00"}, "time: Input should have timezone info"),
        ({"time": "2026-01-31T09:30:00+01:00"}, "the time is not in UTC"),
        ({"level": "loud"}, "level: Input should be"),
        ({"event": "party"}, "event 'party' is not known"),
        ({"fields": {"message": "a", "more": 1}}, "fields of note are message"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_line_off_the_schema_is_refused_by_name(change, message):
    line = {"time": "2026-01-31T09:30:00+00:00", "level": "info", "run_id": "r", "stage": None}
    line |= {"event": "note", "fields": {"message": "a"}}
    assert check_line(json.dumps(line)).event == "note"
    with pytest.raises(InputError, match=re.escape(message)):
        check_line(json.dumps(line | change))


def test_no_secret_reaches_the_log(tmp_path):
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.params(
            {
                "prepare.path": "s3://user:hunter2@host/raw?X-Amz-Signature=hunter2&part=1",
                "store.password": "hunter2",
            }
        )
        tracker.note("failed at https://user:hunter2@host/x with Bearer hunter2hunter2")
        tracker.artifact(Path("/x"), "postgresql://me:hunter2@db/mlflow")
    text = tracker.path.read_text()
    assert "hunter2" not in text
    assert lines(tracker.path)[0]["fields"]["values"] == {
        "prepare.path": "s3://host/raw?X-Amz-Signature=***&part=1",
        "store.password": "***",
    }


def test_a_log_is_bounded_and_each_part_says_whose_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    with JsonLinesTracker(path, run_id="r1", most_bytes=4000) as tracker:
        tracker.params({"seed": 0})
        for number in range(200):
            tracker.note(f"line {number}")
    older = tmp_path / "a.1.jsonl"
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["a.1.jsonl", "a.jsonl"]
    assert path.stat().st_size <= 4000
    assert older.stat().st_size <= 4000
    assert "params" in [e["event"] for e in lines(path)]
    assert lines(path)[-1]["fields"]["message"] == "line 199"
    kept = [e["fields"]["message"] for e in lines(older) if e["event"] == "note"]
    assert len(kept) > 20
    assert lines(path)[0]["fields"]["message"] == f"line {int(kept[-1].split()[1]) + 1}"


def test_a_round_that_begins_again_is_told_although_the_last_line_is_new(tmp_path):
    with JsonLinesTracker(tmp_path / "a.jsonl", clock=lambda: 0.0) as tracker:
        for done, total in ((0, 8), (4, 8), (8, 8), (0, 4), (4, 4)):
            tracker.progress("sample", done, total, "images")
    told = [(e["fields"]["done"], e["fields"]["total"]) for e in lines(tracker.path)]
    assert told == [(0, 8), (8, 8), (0, 4), (4, 4)]


def test_the_document_has_every_event_with_its_fields():
    text = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    table = text.split("| event | fields |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert {name: tuple(re.findall(r"`(\w+)`", cells)) for name, cells in rows} == EVENTS
