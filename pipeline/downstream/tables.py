"""The tables of the comparison: a row an arm, a class, a run, a setting, a prediction."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.store import Samples
from pipeline.downstream.comparison import Comparison
from pipeline.downstream.tail import tail_recall
from pipeline.downstream.verdict import ArmScores, describe_settings
from pipeline.folders import write_bytes, write_json


def write_tables(
    out: Path,
    verdict: Mapping[str, Any],
    comparison: Comparison,
    scored: Sequence[ArmScores],
    tail: Sequence[int],
) -> None:
    """Write verdict.json and metrics.json, and arms, per_class, runs and search as CSV files.

    Args:
        out: folder to write into.
        verdict: of `make_verdict`.
        comparison: what it is about.
        scored: scores of the arms, in order.
        tail: labels of the tail classes.
    """
    write_json(out / "verdict.json", verdict)
    write_json(out / "metrics.json", headline(verdict))
    write_csv(
        out / "arms.csv",
        (
            {
                "arm": arm["name"],
                "role": arm["role"],
                "share": _text(arm["share"]),
                **{name: arm["settings"].get(name, "") for name in _settings(verdict)},
                **{name: _text(value) for name, value in arm_numbers(arm, every=True).items()},
            }
            for arm in verdict["arms"]
        ),
    )
    names = {"name": "class", "regressed": "regressed"}
    write_csv(
        out / "per_class.csv",
        (
            {names.get(k, k): int(v) if isinstance(v, bool) else v for k, v in row.items()}
            for row in verdict["per_class"]
        ),
    )
    write_csv(
        out / "runs.csv",
        (
            {
                "arm": one.arm.name,
                "seed": seed,
                "validation_balanced_accuracy": one.validation[seed].balanced_accuracy,
                "test_balanced_accuracy": one.test[seed].balanced_accuracy,
                "test_macro_f1": one.test[seed].macro_f1,
                "tail_recall": tail_recall(one.test[seed], tail),
                "test_auroc": _text(one.auroc[seed]),
                "calibration_error": _text(one.calibration_error[seed]),
            }
            for one in scored
            for seed in range(len(one.test))
        ),
    )
    searched = [one for one in comparison.tried if not np.isnan(one.validation_balanced_accuracy)]
    if searched:
        settings = dict.fromkeys(name for one in searched for name in describe_settings(one.arm))
        write_csv(
            out / "search.csv",
            (
                {
                    "arm": one.arm.name,
                    **{name: describe_settings(one.arm).get(name, "") for name in settings},
                    "validation_balanced_accuracy": one.validation_balanced_accuracy,
                    "chosen": int(one.chosen),
                }
                for one in searched
            ),
        )


def headline(verdict: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that runs are compared by, flat."""
    accuracy = {arm["name"]: arm["test_balanced_accuracy"]["mean"] for arm in verdict["arms"]}
    curve = verdict["learning_curve"] or {}
    worth = curve.get("worth_images")
    return {
        "gain_points": verdict["gain_points"],
        "gain_low_points": verdict["interval_points"][0],
        "gain_high_points": verdict["interval_points"][1],
        "tail_gain_points": verdict["tail_gain_points"],
        "use": int(verdict["decision"] != "do_not_use"),
        "best_baseline_balanced_accuracy": accuracy[verdict["best_baseline"]],
        "best_synthetic_balanced_accuracy": accuracy[verdict["best_synthetic"]],
        "minimum_detectable_points": verdict["power"]["minimum_detectable_points"],
        "seeds": verdict["n"]["seeds"],
        **({} if worth is None else {"worth_images": worth}),
    }


def arm_numbers(arm: Mapping[str, Any], every: bool = False) -> dict[str, Any]:
    """Return an arm's scores, flat: a mean by its name, its spread with `_sd`.

    Args:
        arm: of verdict.json.
        every: with what is not known, as None?
    """
    values: dict[str, Any] = {}
    for name, value in arm.items():
        if isinstance(value, dict) and name != "settings":
            values[name], values[f"{name}_sd"] = value["mean"], value["sd"]
        elif name.endswith("_points") and (every or value is not None):
            values[name] = value
        elif value is None and every and name != "share":
            values[name] = values[f"{name}_sd"] = None
    return values


def write_predictions(
    path: Path, comparison: Comparison, validation: Samples, test: Samples
) -> None:
    """Write predictions.parquet: a row an arm, seed and held-out row, by arm and seed."""
    tables = []
    seeds = range(comparison.last().seeds)
    for arm in sorted(comparison.arms, key=lambda arm: arm.name):
        for seed in seeds:
            found = comparison.results[arm, seed]
            for name, rows, predicted, chances in (
                ("validation", validation, found.validation, found.validation_probabilities),
                ("test", test, found.test, found.test_probabilities),
            ):
                n = len(rows)
                confidence = chances.max(axis=1) if chances.size else np.full(n, np.nan)
                columns = {
                    "arm": pa.array([arm.name] * n, pa.string()),
                    "seed": pa.array(np.full(n, seed), pa.int32()),
                    "split": pa.array([name] * n, pa.string()),
                    "id": pa.array(rows.ids, pa.string()),
                    "label": pa.array(rows.labels, pa.int64()),
                    "predicted": pa.array(predicted, pa.int64()),
                    "confidence": pa.array(confidence.astype(np.float32), pa.float32()),
                }
                tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of the same columns; numbers with six digits after the point."""
    every = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(every[0]), lineterminator="\n")
    writer.writeheader()
    for row in every:
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})
    write_bytes(path, buffer.getvalue().encode())


def _settings(verdict: Mapping[str, Any]) -> list[str]:
    found = dict.fromkeys(name for arm in verdict["arms"] for name in arm["settings"])
    return [name for name in found if name != "share"]


def _text(value: float | None) -> float | str:
    return "" if value is None else value
