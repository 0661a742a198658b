"""The stage `evaluate`: train classifiers with and without synthetic images, compare, decide.

Writes verdict.json, metrics.json, arms.csv, per_class.csv, runs.csv (a row an arm and seed) and
predictions.parquet (a row an arm, seed and image).
"""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.store import (
    Samples,
    read_info,
    read_samples,
    rows_digest,
    without_held_out_repeats,
)
from pipeline.downstream.arms import plan_arms
from pipeline.downstream.compare import paired_gain
from pipeline.downstream.scores import Scores, require_every_class, score
from pipeline.downstream.training import Pair, Predictions, classifier_steps, train_pairs
from pipeline.downstream.verdict import (
    ArmScores,
    best_arm,
    make_verdict,
    tail_classes,
    tail_recall,
)
from pipeline.errors import StageError
from pipeline.folders import write_bytes, write_json
from pipeline.params import EvaluateParams
from pipeline.seeds import numpy_generator
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

_RUNS = "runs"


class EvaluateSummary(Summary):
    """What came of the comparison; the details are in verdict.json.

    Attributes:
        decision: use or do_not_use.
        sentence: the verdict in plain words.
        best_baseline: name of the best arm without synthetic images.
        best_mixed: name of the best mixed arm.
        winning_share: share of synthetic draws of `best_mixed`.
        gain_points: gain of `best_mixed` in balanced accuracy, in percentage points.
        interval_points: low and high end of its interval.
    """

    decision: Literal["use", "do_not_use"]
    sentence: str
    best_baseline: str
    best_mixed: str
    winning_share: float
    gain_points: float
    interval_points: tuple[float, float]


@stage("evaluate", EvaluateSummary)
def run(params: EvaluateParams, inputs: Inputs, out: Path, tracker: Tracker) -> EvaluateSummary:
    """Compare the arms and write the verdict.

    Raises:
        InputError: the test split lacks a class.
        StageError: a test or validation row is synthetic or is trained on, the two stores are of
            different kinds, or a worker died.
    """
    dataset, accepted = inputs["prepare"] / "dataset", inputs["synthesize"] / "accepted"
    info, other = read_info(dataset), read_info(accepted)
    for key in ("classes", "image_size_px", "image_mode"):
        if getattr(info, key) != getattr(other, key):
            raise StageError(
                f"{accepted}: `{key}` differs from that of {dataset}; run all stages anew"
            )
    classes = info.classes
    rows = without_held_out_repeats(read_samples(dataset, ("train", "validation", "test")))
    synthetic = read_samples(accepted)
    check_separation(rows, synthetic)
    splits = {name: rows.take(_mask(rows, name)) for name in ("train", "validation", "test")}
    require_every_class(splits["test"].labels, classes, "test")
    for name, context in (("train", "training"), ("test", "evaluation")):
        tracker.dataset(name, rows_digest(splits[name]), len(splits[name]), context)
    if len(synthetic):
        tracker.dataset("synthetic", rows_digest(synthetic), len(synthetic), "training")

    arms = [
        arm
        for arm in plan_arms(params.arms, params.mixed_shares)
        if len(synthetic) or arm.role != "synthetic_only"
    ]
    pairs: list[Pair] = [(arm, seed) for seed in range(params.seeds) for arm in arms]
    predictions = train_pairs(
        pairs,
        params,
        dataset,
        accepted,
        out / _RUNS,
        lambda done, total: tracker.progress("classifiers", done, total, "runs"),
    )
    scored = [
        ArmScores(
            arm,
            _score(arm.name, "validation", splits, predictions, params.seeds, len(classes)),
            _score(arm.name, "test", splits, predictions, params.seeds, len(classes)),
        )
        for arm in arms
    ]
    baseline, mixed = best_arm(scored, "baseline"), best_arm(scored, "mixed")
    labels = splits["test"].labels
    steps = classifier_steps(params.steps, len(splits["train"]))
    without, with_synthetic = (
        np.stack([predictions[arm.arm.name, s].test == labels for s in range(params.seeds)])
        for arm in (baseline, mixed)
    )
    gain = paired_gain(
        without,
        with_synthetic,
        labels,
        len(classes),
        params.bootstrap_resamples,
        params.confidence,
        numpy_generator(params.seed, "evaluate", "bootstrap"),
    )
    sources = {
        "training": splits["train"],
        "validation": splits["validation"],
        "test": splits["test"],
        "synthetic": synthetic,
    }
    counts = {
        name: np.bincount(part.labels, minlength=len(classes)).tolist()
        for name, part in sources.items()
    }
    verdict = make_verdict(scored, baseline, mixed, gain, classes, counts, steps)
    _write(out, verdict, scored, counts["training"])
    _write_predictions(out / "predictions.parquet", pairs, predictions, splits)
    shutil.rmtree(out / _RUNS, ignore_errors=True)
    _tell(tracker, verdict)
    return EvaluateSummary(
        decision=verdict["decision"],
        sentence=verdict["sentence"],
        best_baseline=verdict["best_baseline"],
        best_mixed=verdict["best_mixed"],
        winning_share=verdict["winning_share"],
        gain_points=verdict["gain_points"],
        interval_points=tuple(verdict["interval_points"]),
    )


def check_separation(rows: Samples, synthetic: Samples) -> None:
    """Refuse data in which a validation or test row is synthetic or is also trained on.

    Raises:
        StageError: names the row.
    """
    trained = {
        identity: "real training"
        for identity, split in zip(rows.ids, rows.splits, strict=True)
        if split == "train"
    }
    trained |= dict.fromkeys(synthetic.ids, "synthetic")
    for identity, split, origin in zip(rows.ids, rows.splits, rows.origins, strict=True):
        if origin != "real":
            raise StageError(
                f"prepare/dataset: row {identity[:12]} of the {split} split is {origin}; the "
                "prepared data must be real. Run prepare again on real images"
            )
        if split != "train" and identity in trained:
            raise StageError(
                f"row {identity[:12]} of the {split} split is also a {trained[identity]} row: the "
                "comparison would be worthless. Run prepare again with the duplicates removed"
            )
    for identity, split, origin in zip(
        synthetic.ids, synthetic.splits, synthetic.origins, strict=True
    ):
        if split != "train" or origin != "synthetic":
            raise StageError(
                f"synthesize/accepted: row {identity[:12]} is {origin} in the {split} split; only "
                "synthetic train rows may stand there. Run synthesize again"
            )


def _score(
    arm: str,
    split: Literal["validation", "test"],
    splits: Mapping[str, Samples],
    predictions: Mapping[tuple[str, int], Predictions],
    seeds: int,
    classes: int,
) -> tuple[Scores, ...]:
    labels = splits[split].labels
    return tuple(
        score(labels, getattr(predictions[arm, seed], split), classes) for seed in range(seeds)
    )


def _mask(rows: Samples, split: str) -> Any:
    return np.asarray(rows.splits, dtype=object) == split


def _write(
    out: Path, verdict: Mapping[str, Any], scored: Sequence[ArmScores], training: Sequence[int]
) -> None:
    write_json(out / "verdict.json", verdict)
    write_json(out / "metrics.json", _headline(verdict))
    write_bytes(
        out / "arms.csv",
        _csv(
            {
                "arm": arm["name"],
                "role": arm["role"],
                "share": "" if arm["share"] is None else arm["share"],
                **_means(arm),
            }
            for arm in verdict["arms"]
        ),
    )
    names = {"name": "class"}
    write_bytes(
        out / "per_class.csv",
        _csv({names.get(k, k): v for k, v in row.items()} for row in verdict["per_class"]),
    )
    tail = tail_classes(training)
    write_bytes(
        out / "runs.csv",
        _csv(
            {
                "arm": arm.arm.name,
                "seed": seed,
                "validation_balanced_accuracy": arm.validation[seed].balanced_accuracy,
                "test_balanced_accuracy": arm.test[seed].balanced_accuracy,
                "test_macro_f1": arm.test[seed].macro_f1,
                "tail_recall": tail_recall(arm.test[seed], tail),
            }
            for arm in scored
            for seed in range(len(arm.test))
        ),
    )


def _headline(verdict: Mapping[str, Any]) -> dict[str, float]:
    accuracy = {arm["name"]: arm["test_balanced_accuracy"]["mean"] for arm in verdict["arms"]}
    return {
        "gain_points": verdict["gain_points"],
        "gain_low_points": verdict["interval_points"][0],
        "gain_high_points": verdict["interval_points"][1],
        "tail_gain_points": verdict["tail_gain_points"],
        "use": int(verdict["decision"] == "use"),
        "best_baseline_balanced_accuracy": accuracy[verdict["best_baseline"]],
        "best_mixed_balanced_accuracy": accuracy[verdict["best_mixed"]],
    }


def _means(arm: Mapping[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, spread in arm.items():
        if isinstance(spread, dict):
            values[name] = spread["mean"]
            values[f"{name}_sd"] = spread["sd"]
    return values


def _tell(tracker: Tracker, verdict: Mapping[str, Any]) -> None:
    for arm in verdict["arms"]:
        described = {"role": arm["role"], "share": arm["share"], "steps": verdict["steps"]}
        tracker.arm(arm["name"], described, _means(arm))
    tracker.metrics({f"evaluate/{name}": value for name, value in _headline(verdict).items()})
    tracker.tags({"decision": verdict["decision"]})
    tracker.note(verdict["sentence"])


def _csv(rows: Any) -> bytes:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})
    return buffer.getvalue().encode()


def _write_predictions(
    path: Path,
    pairs: Sequence[Pair],
    predictions: Mapping[tuple[str, int], Predictions],
    splits: Mapping[str, Samples],
) -> None:
    tables = []
    for arm, seed in sorted(pairs, key=lambda pair: (pair[0].name, pair[1])):
        for name in ("validation", "test"):
            n = len(splits[name])
            columns = {
                "arm": pa.array([arm.name] * n, pa.string()),
                "seed": pa.array(np.full(n, seed), pa.int32()),
                "split": pa.array([name] * n, pa.string()),
                "id": pa.array(splits[name].ids, pa.string()),
                "label": pa.array(splits[name].labels, pa.int64()),
                "predicted": pa.array(getattr(predictions[arm.name, seed], name), pa.int64()),
            }
            tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")
