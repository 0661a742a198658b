"""verdict.json as flat, stable names: numbers of the run, and a child run for each arm.

docs/mlflow.md has the table of all names; a test holds it equal to this module. Gains and their
bounds are percentage points, accuracies and recalls lie in [0, 1].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.tracking.console import printable
from pipeline.tracking.reading import number, numbers, pair, read_object, records, slugs, spread
from pipeline.tracking.tracker import Scalar, Tracker

# A thousand classes would make ten thousand metrics; per_class.csv has them all.
MOST_CLASSES = 20
ARM_SCORES = (
    "validation_balanced_accuracy",
    "test_balanced_accuracy",
    "test_macro_f1",
    "tail_recall",
    "test_auroc",
    "calibration_error",
    "worst_group_recall",
    "corrupted_balanced_accuracy",
)
_GAIN = ("gain_points", "low_points", "high_points")
_CLASS = (
    *_GAIN,
    "simultaneous_low_points",
    "simultaneous_high_points",
    "baseline_recall",
    "synthetic_recall",
    "baseline_precision",
    "synthetic_precision",
    "training_images",
    "test_images",
)
_COUNTS = (
    "training",
    "validation",
    "test",
    "synthetic",
    "splits",
    "bootstrap_resamples",
)
_POWER = ("discordant_share", "seeds", "test_images", "test_units")


def tell_verdict(verdict: Mapping[str, Any], tracker: Tracker) -> None:
    """Tell a tracker all of a verdict: numbers, series, one arm each, labels.

    What is missing or no number is passed over, so that an unfinished or older verdict does no
    harm.
    """
    tracker.metrics(
        {
            **_headline(verdict),
            **_classes(verdict),
            **_corruptions(verdict),
        }
    )
    if curves := _turned([*_looks(verdict), *_curve(verdict)]):
        tracker.series(curves)
    for arm in records(verdict.get("arms")):
        tracker.arm(str(arm.get("name")), arm_settings(arm), arm_numbers(arm))
    tracker.tags(verdict_tags(verdict))


def tell_controls(artifacts: Path, tracker: Tracker) -> None:
    """Tell a tracker what `replenish evaluate --controls` found, if it has been run."""
    rows = records(read_object(artifacts / "controls" / "controls.json").get("rows"))
    if not rows:
        return
    values: dict[str, object] = {}
    for row, slug in zip(rows, slugs([str(row.get("name")) for row in rows]), strict=True):
        values |= {f"controls/{slug}/{name}": row.get(name) for name in _GAIN}
        values[f"controls/{slug}/as_expected"] = float(row.get("as_expected") is True)
    kept = [row.get("as_expected") is True for row in rows]
    tracker.metrics({**numbers(values), "controls/as_expected_share": sum(kept) / len(kept)})


def verdict_tags(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of a run that has a verdict: decision, the two arms compared, sentence."""
    tags = {name: verdict.get(name) for name in ("decision", "best_baseline", "best_synthetic")}
    tags["verdict"] = verdict.get("sentence")
    return {name: printable(str(value)) for name, value in tags.items() if value}


def arm_settings(arm: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return what an arm is: role, share, description, seeds, and `settings.<name>`."""
    settings = _object(arm.get("settings"))
    return {
        "role": str(arm.get("role")),
        "share": number(arm.get("share")),
        **{name: arm[name] for name in ("description", "seeds") if name in arm},
        **{f"settings.{name}": value for name, value in settings.items()},
    }


def arm_numbers(arm: Mapping[str, Any]) -> dict[str, float]:
    """Return every score of an arm, `<score>` and `<score>_sd`, and its gain with bounds."""
    values: dict[str, object] = {name: arm.get(name) for name in _GAIN}
    for name in ARM_SCORES:
        values[name], values[f"{name}_sd"] = spread(arm, name)
    return numbers(values)


def _headline(verdict: Mapping[str, Any]) -> dict[str, float]:
    low, high = pair(verdict.get("interval_points"))
    tail_low, tail_high = pair(verdict.get("tail_interval_points"))
    own_low, own_high = pair(verdict.get("own_interval_points"))
    arms = {str(arm.get("name")): arm for arm in records(verdict.get("arms"))}
    rows = records(verdict.get("per_class"))
    values: dict[str, object] = {
        "gain_points": verdict.get("gain_points"),
        "gain_low_points": low,
        "gain_high_points": high,
        "tail_gain_points": verdict.get("tail_gain_points"),
        "tail_gain_low_points": tail_low,
        "tail_gain_high_points": tail_high,
        "own_gain_points": verdict.get("own_gain_points"),
        "own_gain_low_points": own_low,
        "own_gain_high_points": own_high,
        "use": float(verdict.get("decision") in ("use", "use_with_care")),
        "use_with_care": float(verdict.get("decision") == "use_with_care"),
        "regressed_classes": sum(row.get("regressed") is True for row in rows) if rows else None,
    }
    for name in ("winning_share", "confidence", "level", "steps"):
        values[name] = verdict.get(name)
    for side in ("baseline", "synthetic"):
        arm = arms.get(str(verdict.get(f"best_{side}")), {})
        values[f"best_{side}_balanced_accuracy"] = spread(arm, "test_balanced_accuracy")[0]
    counts = _object(verdict.get("n"))
    values |= {f"n_{name}": counts.get(name) for name in _COUNTS}
    values["seeds"] = counts.get("seeds")
    power = _object(verdict.get("power"))
    values["minimum_detectable_points"] = power.get("minimum_detectable_points")
    values |= {f"power_{name}": power.get(name) for name in _POWER}
    curve = _object(verdict.get("learning_curve"))
    values["worth_images"] = curve.get("worth_images")
    values |= {f"worth_{end}_images": curve.get(f"worth_{end}") for end in ("low", "high")}
    if "beyond" in curve:
        values["worth_beyond"] = float(curve["beyond"] is True)
    return _named("evaluate", values)


def _classes(verdict: Mapping[str, Any]) -> dict[str, float]:
    rows = records(verdict.get("per_class"))
    # Synthetic images are for thin classes, and the harm is in regressed ones: these come first.
    order = sorted(
        rows,
        key=lambda row: (row.get("regressed") is not True, number(row.get("training_images")) or 0),
    )[:MOST_CLASSES]
    values: dict[str, float] = {}
    for row, slug in zip(order, slugs([str(row.get("name")) for row in order]), strict=True):
        values |= _named(f"evaluate/class/{slug}", {name: row.get(name) for name in _CLASS})
        if "regressed" in row:
            values[f"evaluate/class/{slug}/regressed"] = float(row["regressed"] is True)
    return values


def _corruptions(verdict: Mapping[str, Any]) -> dict[str, float]:
    rows = records(verdict.get("corruptions"))
    values: dict[str, float] = {}
    for row, slug in zip(rows, slugs([str(row.get("name")) for row in rows]), strict=True):
        sides = {side: row.get(side) for side in ("baseline", "synthetic")}
        values |= _named(f"evaluate/corruption/{slug}", sides)
    return values


def _looks(verdict: Mapping[str, Any]) -> list[tuple[dict[str, float], int]]:
    """Return what was seen at each look, by the number of seeds."""
    told = []
    for row in records(verdict.get("looks")):
        values: dict[str, object] = {name: row.get(name) for name in _GAIN}
        values["decided"] = float(row.get("decided") is True)
        told.append((_named("evaluate/look", values), int(number(row.get("seeds")) or 0)))
    return told


def _curve(verdict: Mapping[str, Any]) -> list[tuple[dict[str, float], int]]:
    """Return the learning curve, by the number of real images."""
    points = records(_object(verdict.get("learning_curve")).get("points"))
    names = ("balanced_accuracy", "low", "high")
    return [
        (
            _named("evaluate/learning_curve", {name: row.get(name) for name in names}),
            round(number(row.get("real_images")) or 0),
        )
        for row in points
    ]


def _turned(rows: Sequence[tuple[dict[str, float], int]]) -> dict[str, dict[int, float]]:
    series: dict[str, dict[int, float]] = {}
    for values, step in rows:
        for name, value in values.items():
            series.setdefault(name, {})[step] = value
    return series


def _named(prefix: str, values: Mapping[str, object]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in numbers(values).items()}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
