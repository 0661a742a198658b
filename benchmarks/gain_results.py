"""What finished runs of `gain.py` gained and cost, in one row a regime."""

import json
from pathlib import Path
from typing import Any

from gain_sets import Regime

from pipeline.downstream.pooled import pooled_verdict, read_run
from pipeline.params import HEAD_MARGIN_POINTS
from pipeline.recipe.measured import Regime as Measured
from pipeline.recipe.measured import read_regimes

SECONDS = "seconds.json"  # of each stage, in a run's folder
_RESAMPLES, _CONFIDENCE = 2000, 0.95


def result(regime: Regime, runs: list[Path], base: Path | None = None) -> dict[str, Any]:
    """Return what the finished runs of a regime gained, in points, and what they cost.

    Args:
        regime: which.
        runs: artifacts folders, one a split.
        base: that of the generator that they start from, whose time counts apart.
    """
    one, pooled = _pooled(runs)
    minutes = sum(seconds_of(run) for run in runs) / 60 / len(runs)
    base_minutes = None if base is None else seconds_of(base) / 60
    gain = pooled["gain_points"]
    recipe = json.loads((runs[0] / "prepare" / "recipe.json").read_text())
    started = json.loads((runs[0] / "pretrain" / "summary.json").read_text())["base"]
    return {
        "name": regime.name,
        "facts": recipe["facts"],
        "base": started if started in ("none", "pool") else "elsewhere",
        "decision": pooled["decision"],
        "way": pooled["best_synthetic"],
        "best_baseline": pooled["best_baseline"],
        "gain_points": gain,
        "gain_low": pooled["interval_points"][0],
        "gain_high": pooled["interval_points"][1],
        "tail_gain_points": pooled["tail_gain_points"],
        "tail_low": pooled["tail_interval_points"][0],
        "tail_high": pooled["tail_interval_points"][1],
        "arms": {
            arm["name"]: {
                "test": arm["test_balanced_accuracy"],
                "gain_points": arm["gain_points"],
            }
            for arm in pooled["arms"]
        },
        "minutes": minutes,
        "base_minutes": base_minutes,
        "minutes_per_point": (minutes + (base_minutes or 0.0)) / gain if gain > 0 else None,
        "images_of_base": regime.images,
        "one_collection": regime.one_collection,
        "labels": _labels(one),
        "seeds": one["n"]["seeds"],
        "splits": len(runs),
    }


def _pooled(runs: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first verdict, and the one of all splits together."""
    verdicts = [json.loads((run / "evaluate" / "verdict.json").read_text()) for run in runs]
    if len(runs) == 1:
        return verdicts[0], verdicts[0]
    read = [read_run(run, verdict) for run, verdict in zip(runs, verdicts, strict=True)]
    return verdicts[0], pooled_verdict(read, _RESAMPLES, _CONFIDENCE, HEAD_MARGIN_POINTS, 0)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the regime that gained most for sure, and those of all.

    One whose verdict is to use the images stands before one that was refused, and a base of others'
    images before one of the very collection, whose gain is easier.
    """
    if not found:
        return {"regimes": []}
    best = max(
        found,
        key=lambda one: (
            not one["one_collection"],
            one["decision"] != "do_not_use",
            one["gain_low"],
        ),
    )
    keys = ("decision", "gain_points", "gain_low", "tail_gain_points", "best_baseline")
    return {"regime": best["name"], **{key: best[key] for key in keys}, "regimes": found}


def add_regimes(path: Path, found: list[dict[str, Any]]) -> list[str]:
    """Put what was found into the recipe's list, in the place of what has the same name.

    What was measured with more classifiers of an arm, on all splits together, stays. Where a
    baseline saw the base's images, or these are of the very collection, it is another comparison
    than the list's, and stays out.

    Returns:
        Names of what stayed out.

    Raises:
        InputError: the file is no such list.
    """
    left_out = []
    known = {one.name: one for one in (read_regimes(path) if path.exists() else ())}
    for one in found:
        old = known.get(one["name"])
        fewer = old is not None and one["seeds"] * one["splits"] < old.seeds * old.splits
        if one["images_of_base"] or one["one_collection"] or fewer:
            left_out.append(one["name"])
            continue
        facts = {key: value for key, value in one["facts"].items() if key in Measured.model_fields}
        plain = {key: value for key, value in one.items() if key in Measured.model_fields}
        plain |= facts | {"pool": facts["pool"] if one["base"] == "pool" else 0}
        rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in plain.items()}
        known[one["name"]] = Measured.model_validate(rounded)
    lines = ",\n".join(f"  {one.model_dump_json()}" for one in known.values())
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return left_out


def _labels(verdict: dict[str, Any]) -> dict[str, float] | None:
    """Return what the last labelled images brought, by the learning curve of the first split."""
    curve = verdict.get("learning_curve")
    if curve is None or len(curve["points"]) < 2:
        return None
    before, last = curve["points"][-2:]
    images = last["real_images"] - before["real_images"]
    points = 100 * (last["balanced_accuracy"] - before["balanced_accuracy"])
    return {"images": images, "points": points}


def seconds_of(folder: Path) -> float:
    """Return what all stages of a run took."""
    kept = json.loads((folder / SECONDS).read_text()).values()
    return float(sum(one["seconds"] for one in kept))
