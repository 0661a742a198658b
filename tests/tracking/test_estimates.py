from datetime import UTC, datetime, timedelta

import pytest

from pipeline.tracking.estimates import (
    Step,
    current_step,
    rounds_total,
    stage_lines,
    time_of,
    usual_seconds,
)
from pipeline.tracking.index import Made

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def progress(seconds, done, total=100, task="train", stage="train"):
    fields = {"task": task, "done": done, "total": total, "unit": "steps"}
    line = {"time": at(seconds).isoformat(), "stage": stage, "event": "progress"}
    return {**line, "fields": fields}


def made(seconds, settings="same", stage="train", resumed=False):
    return Made(
        run_id="r",
        stage=stage,
        digest="d",
        key="k",
        manifest_md5="m",
        settings_digest=settings,
        artifacts="a",
        mlflow_run_id="",
        prefect_run_id="",
        started=NOW,
        ended=NOW,
        seconds=seconds,
        resumed=resumed,
        numbers={},
        memory_bytes={},
    )


def test_the_pace_is_that_of_the_last_two_minutes_of_the_task():
    lines = [progress(0, 0), progress(100, 10), progress(200, 40), progress(210, 50, task="other")]
    lines += [progress(220, 60), progress(230, 70)]
    step = current_step(lines)
    # From 10 at 100 s (130 s ago: too long) on: 40 at 200 s to 70 at 230 s.
    assert (step.task, step.done, step.rate) == ("train", 70, 1.0)
    assert step.ends(at(235)) == at(260)
    assert step.ends(at(261)) is None  # late: nobody knows


def test_a_round_that_began_again_has_its_own_pace():
    step = current_step([progress(0, 0), progress(10, 100), progress(11, 0), progress(21, 5)])
    assert step.rate == 0.5
    assert step.ends(at(21)) == at(211)


def test_without_two_points_there_is_no_pace():
    assert current_step([]) is None
    assert current_step([{"event": "note", "fields": {}}]) is None
    step = current_step([progress(0, 3)])
    assert step.rate is None
    assert step.ends(NOW) is None
    assert Step("t", 5, 5, "steps", 1.0, NOW).ends(NOW) is None


def test_damaged_lines_are_passed_over():
    lines = [progress(0, 1), progress(1, 2)]
    lines += [
        {**progress(2, 9), "time": "soon"},
        {**progress(2, 9), "fields": [1]},
        progress(2, None),
    ]
    assert current_step(lines).done == 2


def test_rounds_add_up():
    lines = [progress(0, 0, 8), progress(1, 8, 8), progress(2, 0, 4), progress(3, 2, 4)]
    assert rounds_total(lines, "train") == 12
    assert rounds_total(lines, "sample") == 0


def test_only_what_came_since_the_stage_began_last_counts():
    begin = {"event": "stage_begin", "stage": "train"}
    lines = [begin, progress(0, 1), progress(1, 1, stage="report"), begin, progress(2, 2)]
    assert stage_lines(lines, "train") == lines[3:]
    assert stage_lines(lines[1:3], "train") is None


def test_the_same_params_go_before_other_ones_and_whole_runs_before_none():
    index = [made(10), made(30), made(20), made(500, "other"), made(1, resumed=True)]
    same = usual_seconds(index, "train", "same")
    assert (same.seconds, same.runs, same.same_params) == (20, 3, True)
    new = usual_seconds(index, "train", "new")
    assert (new.seconds, new.runs, new.same_params) == (25, 4, False)
    assert usual_seconds(index, "report", "same") is None
    assert usual_seconds([made(1, resumed=True)], "train", "same") is None


@pytest.mark.parametrize("value", [None, "", "soon", "2026-01-31T09:30:00", 5])
def test_what_is_no_time_with_a_zone_is_none(value):
    assert time_of(value) is None
