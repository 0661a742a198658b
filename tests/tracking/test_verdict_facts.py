import re
from pathlib import Path

import pytest
from tracking.full_run import CONTROLS, VERDICT, verdict, write_run

from pipeline.tracking.reading import slugs
from pipeline.tracking.verdict_facts import (
    MOST_CLASSES,
    arm_numbers,
    arm_settings,
    tell_controls,
    tell_verdict,
)

GUIDE = Path(__file__).parents[2] / "docs" / "mlflow.md"


@pytest.fixture
def curves(recording_tracker):
    """The series that the recording tracker is told."""
    kept = {}
    recording_tracker.series = kept.update
    return kept


def told(tracker):
    return {name: value for values, _ in tracker.metrics_calls for name, value in values.items()}


def test_the_headline_has_gain_bounds_power_and_worth(recording_tracker):
    tell_verdict(VERDICT, recording_tracker)
    values = told(recording_tracker)
    wanted = {
        "gain_points": 3.0,
        "gain_low_points": 1.0,
        "gain_high_points": 5.0,
        "own_gain_points": 3.5,
        "own_gain_low_points": 1.5,
        "own_gain_high_points": 5.5,
        "tail_gain_points": 6.0,
        "tail_gain_low_points": 2.0,
        "tail_gain_high_points": 10.0,
        "use": 1.0,
        "use_with_care": 0.0,
        "regressed_classes": 1.0,
        "best_baseline_balanced_accuracy": 0.9,
        "best_synthetic_balanced_accuracy": 0.93,
        "winning_share": 0.5,
        "level": 0.97,
        "minimum_detectable_points": 1.8,
        "power_discordant_share": 0.06,
        "worth_images": 40.0,
        "worth_low_images": 12.0,
        "worth_beyond": 0.0,
        "n_synthetic": 200.0,
        "seeds": 4.0,
        "corruption/blur/baseline": 0.6,
        "corruption/blur/synthetic": 0.7,
    }
    assert {name: values[f"evaluate/{name}"] for name in wanted} == wanted
    assert recording_tracker.tags_calls == [
        {
            "decision": "use",
            "best_baseline": "class_weighted",
            "best_synthetic": "mixed_50",
            "verdict": "Use them: <b>+3 points",
        }
    ]


def test_use_with_care_is_a_use_too(recording_tracker):
    tell_verdict(verdict(decision="use_with_care"), recording_tracker)
    values = told(recording_tracker)
    assert (values["evaluate/use"], values["evaluate/use_with_care"]) == (1, 1)
    tell_verdict(verdict(decision="do_not_use"), recording_tracker)
    values = told(recording_tracker)
    assert (values["evaluate/use"], values["evaluate/use_with_care"]) == (0, 0)


def test_looks_and_the_learning_curve_are_series(recording_tracker, curves):
    tell_verdict(VERDICT, recording_tracker)
    assert curves["evaluate/look/low_points"] == {2: 0.0, 4: 0.5}
    assert curves["evaluate/look/decided"] == {2: 0.0, 4: 1.0}
    assert curves["evaluate/learning_curve/balanced_accuracy"] == {60: 0.8, 120: 0.9}


def test_classes_that_would_share_a_name_are_told_apart(recording_tracker):
    tell_verdict(VERDICT, recording_tracker)
    values = told(recording_tracker)
    assert values["evaluate/class/a_b/training_images"] == 6
    assert values["evaluate/class/a_b 2/training_images"] == 12
    assert values["evaluate/class/plain/regressed"] == 1


def test_of_many_classes_the_regressed_and_the_thin_ones_are_told(recording_tracker):
    row = VERDICT["per_class"][0]
    many = [
        {**row, "name": f"c{i}", "training_images": i, "regressed": i == 99} for i in range(100)
    ]
    tell_verdict(verdict(per_class=many), recording_tracker)
    names = {n.split("/")[2] for n in told(recording_tracker) if n.startswith("evaluate/class/")}
    assert names == {"c99", *(f"c{i}" for i in range(MOST_CLASSES - 1))}


def test_an_arm_has_all_scores_and_settings():
    arm = VERDICT["arms"][1]
    numbers = arm_numbers(arm)
    assert numbers["calibration_error"] == 0.93
    assert numbers["calibration_error_sd"] == 0.01
    assert (numbers["gain_points"], numbers["low_points"], numbers["high_points"]) == (3, 1, 5)
    assert arm_settings(arm) == {
        "role": "synthetic",
        "share": 0.5,
        "description": "how mixed_50 learns",
        "seeds": 4,
        "settings.learning_rate": 0.003,
        "settings.schedule": "cosine",
    }
    assert "gain_points" not in arm_numbers(VERDICT["arms"][0])


def test_what_is_missing_or_no_number_is_passed_over(recording_tracker):
    odd = {
        "decision": "do_not_use",
        "gain_points": None,
        "interval_points": [1.0],
        "arms": [{"name": "real", "test_balanced_accuracy": {"mean": float("nan")}}, 3],
        "learning_curve": None,
        "per_class": None,
        "power": [],
        "looks": {},
    }
    tell_verdict(odd, recording_tracker)
    assert told(recording_tracker) == {"evaluate/use": 0, "evaluate/use_with_care": 0}
    assert recording_tracker.arms == [("real", {"role": "None", "share": None}, {})]


def test_controls_are_told_where_they_were_run(tmp_path, recording_tracker):
    tell_controls(tmp_path, recording_tracker)
    assert recording_tracker.metrics_calls == []
    tell_controls(write_run(tmp_path), recording_tracker)
    assert told(recording_tracker) == {
        "controls/shuffled labels/gain_points": -4,
        "controls/shuffled labels/low_points": -6,
        "controls/shuffled labels/high_points": -2,
        "controls/shuffled labels/as_expected": 1,
        "controls/as_expected_share": 1,
    }
    assert CONTROLS["rows"][0]["kind"] == "negative"


def test_slugs_are_names_that_differ():
    assert slugs(["a/b", "a b", "..", "", "é", "a:b"]) == ["a_b", "a b", "_", "_ 2", "_ 3", "a_b 2"]
    assert len(slugs(["x" * 500])[0]) == 60


def documented(heading):
    """Names of the table below a heading of the guide, `<class>` and its like as patterns."""
    section = GUIDE.read_text().split(f"## {heading}")[1].split("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.M))))


def general(name):
    name = re.sub(r"(evaluate/class|evaluate/corruption|controls)/[^/]+/", r"\1/<name>/", name)
    return re.sub(r"settings\..*", "settings.<name>", name)


def test_the_guide_names_exactly_what_is_told(tmp_path, recording_tracker, curves):
    write_run(tmp_path)
    tell_verdict(VERDICT, recording_tracker)
    tell_controls(tmp_path, recording_tracker)
    names = {general(name) for name in (*told(recording_tracker), *curves)}
    assert documented("Numbers of a run") == names
    arm = VERDICT["arms"][1]
    told_of_arm = {*arm_numbers(arm), *arm_settings(arm)}
    assert documented("An arm") == {general(name) for name in told_of_arm}
