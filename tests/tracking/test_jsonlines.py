import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.tracking.jsonlines import JsonLinesTracker, new_run_log
from pipeline.tracking.tracker import TrackedModel

MOMENT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_each_event_is_a_line_with_its_time_and_stage(tmp_path):
    path = tmp_path / "runs" / "a.jsonl"
    with JsonLinesTracker(path, now=lambda: MOMENT) as tracker:
        tracker.params({"train.steps": 5, "prepare.path": None})
        with tracker.stage("train"):
            tracker.metrics({"train/loss": 0.5}, step=3)
        tracker.arm("mixed_50", {"share": 0.5}, {"tail_recall": 0.75})
    events = lines(path)
    assert [e["event"] for e in events] == ["params", "stage_begin", "metrics", "stage_end", "arm"]
    assert events[2] == {
        "time": "2026-01-31T09:30:00+00:00",
        "stage": "train",
        "event": "metrics",
        "step": 3,
        "values": {"train/loss": 0.5},
    }
    assert events[3]["error"] is None
    assert events[4]["stage"] is None


def test_a_line_is_on_disk_before_the_tracker_is_closed(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "a.jsonl")
    tracker.note("one")
    assert lines(tracker.path)[0]["message"] == "one"
    tracker.close()
    tracker.note("two")
    tracker.close()
    assert [e["message"] for e in lines(tracker.path)] == ["one", "two"]


def test_numbers_that_are_not_finite_become_null_and_numpy_numbers_are_numbers(tmp_path):
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.metrics(
            {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.float64("nan")}
        )
    assert lines(tracker.path)[0]["values"] == {"a": None, "b": None, "c": 0.5, "d": None}


def test_hostile_text_stays_in_its_line(tmp_path):
    text = 'a\nb\u2028c"\x1b[2J\ud800'
    with JsonLinesTracker(tmp_path / "a.jsonl") as tracker:
        tracker.note(text)
    assert lines(tracker.path)[0]["message"] == text
    assert tracker.path.read_bytes().count(b"\n") == 1


def test_the_end_of_a_failed_stage_names_the_error(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "a.jsonl")
    with pytest.raises(KeyboardInterrupt), tracker, tracker.stage("train"):
        raise KeyboardInterrupt
    assert lines(tracker.path)[-1]["error"] == "KeyboardInterrupt"


def test_progress_is_thinned_but_keeps_the_last(tmp_path):
    ticks = iter(range(1000))
    with JsonLinesTracker(tmp_path / "a.jsonl", clock=lambda: next(ticks) * 0.25) as tracker:
        for done in range(11):
            tracker.progress("sample", done, 10, "images")
    assert [e["done"] for e in lines(tracker.path)] == [0, 4, 8, 10]


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
    assert (picture["event"], picture["key"], picture["step"]) == ("image", "train/samples", 10)
    assert kept["name"] == "generator"
    assert kept["tags"] == {"decision": "use"}
    assert curves["points"] == {"evaluate/look/gain_points": {"2": 1.5}}
