import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from pipeline.data.store import (
    UNLABELLED,
    Samples,
    concatenate,
    make_samples,
    read_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.downstream import training
from pipeline.errors import InputError, StageError
from pipeline.features.classifier import predict
from pipeline.features.networks import load_network
from pipeline.folders import WORK, read_manifest, write_manifest
from pipeline.params import EvaluateParams, Execution
from pipeline.stages.evaluate import base_images, check_separation, run

NEEDED = ("prepare", "pretrain", "train", "synthesize")
CLASSES = ("left", "middle", "right")
SIDE = 8
ARMS = ("real", "real_balanced", "real_augmented", "mixed", "pretrained", "synthetic_only")
SMALL = {
    "arms": ARMS,
    "steps": 5,
    "seeds": 2,
    "search_seeds": 0,
    "curve_fractions": (),
    "batch_images": 8,
    "base_channels": 4,
    "bootstrap_resamples": 100,
}
RUNS = 2 * len(ARMS)


def bars(label: int, n: int, random: np.random.Generator, noise: int = 60) -> np.ndarray:
    """Noisy images with a bright bar at the left, in the middle or at the right."""
    images = random.integers(0, noise, (n, SIDE, SIDE, 1), dtype=np.uint8)
    images[:, :, 1 + 2 * label : 3 + 2 * label] += 90
    return images


def rows_of(split: str, sizes: tuple[int, ...], seed: int, origin: str = "real") -> Samples:
    random = np.random.default_rng(seed)
    images = np.concatenate([bars(k, n, random) for k, n in enumerate(sizes)])
    return make_samples(images, np.repeat(np.arange(len(sizes)), sizes), split, origin)


def finish(folder: Path, stage: str) -> None:
    write_manifest(folder, stage, "key", {}, {})


def make_inputs(
    root: Path, real: Samples | None = None, synthetic: Samples | None = None
) -> dict[str, Path]:
    if real is None:
        real = concatenate(
            [rows_of("train", (8, 5, 2), 1), rows_of("validation", (4, 4, 4), 2)]
            + [rows_of("test", (6, 6, 6), 3)]
        )
    if synthetic is None:
        synthetic = rows_of("train", (0, 3, 6), 4, "synthetic")
    write_store(root / "prepare" / "dataset", real, CLASSES, SIDE, "L")
    write_store(root / "synthesize" / "accepted", synthetic, CLASSES, SIDE, "L")
    write_base(root)
    return finish_all(root)


def write_base(
    root: Path,
    rows: Samples | None = None,
    classes: tuple[str, ...] = (),
    sources: dict[str, str] | None = None,
) -> None:
    """Write what the stages pretrain and train leave of a base's images; nothing by default."""
    none = rows_of("train", (0,), 0) if rows is None else rows
    write_store(root / "pretrain" / "base_images", none, classes, SIDE, "L")
    (root / "train").mkdir(exist_ok=True)
    (root / "train" / "class_sources.json").write_text(json.dumps(sources or {}))


def finish_all(root: Path) -> dict[str, Path]:
    for stage in NEEDED:
        finish(root / stage, stage)
    return {stage: root / stage for stage in NEEDED}


def params(workers: int = 1, **changes) -> EvaluateParams:
    execution = Execution(device="cpu", workers=workers)
    return EvaluateParams(execution=execution, **{**SMALL, **changes})


def digest(out: Path) -> str:
    manifest = read_manifest(out)
    assert manifest is not None
    return manifest.digest


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_stage_writes_the_contract(tmp_path: Path, recording_tracker) -> None:
    out = tmp_path / "evaluate"
    summary = run(params(), make_inputs(tmp_path), out, recording_tracker)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "verdict.json",
        "metrics.json",
        "arms.csv",
        "per_class.csv",
        "runs.csv",
        "predictions.parquet",
        "classifiers/baseline/network.json",
        "classifiers/baseline/network.safetensors",
        "classifiers/synthetic/network.json",
        "classifiers/synthetic/network.safetensors",
        "summary.json",
        "manifest.json",
    }
    verdict = json.loads((out / "verdict.json").read_text())
    assert [arm["name"] for arm in verdict["arms"]] == list(ARMS)
    assert verdict["tail_classes"] == ["right", "middle"]
    assert verdict["n"] == {
        "training": 15,
        "validation": 12,
        "test": 18,
        "synthetic": 9,
        "base_images": 0,
        "seeds": 2,
        "splits": 1,
        "bootstrap_resamples": 100,
    }
    assert verdict["best_baseline"] in ARMS[:3]
    assert verdict["best_synthetic"] in ARMS[3:5]
    assert verdict["winning_share"] == 0.5
    assert verdict["synthetic_available"]
    assert verdict["learning_curve"] is None
    assert verdict["power"]["minimum_detectable_points"] > 0
    assert summary.sentence == verdict["sentence"]
    assert [row["arm"] for row in table(out / "arms.csv")] == list(ARMS)
    assert [row["class"] for row in table(out / "per_class.csv")] == list(CLASSES)
    assert len(table(out / "runs.csv")) == RUNS
    kept = json.loads((out / "classifiers" / "synthetic" / "network.json").read_text())
    assert kept["arm"] == verdict["best_synthetic"]
    assert kept["classes"] == list(CLASSES)


def test_kept_classifiers_say_what_was_scored(tmp_path: Path, recording_tracker) -> None:
    inputs = make_inputs(tmp_path)
    out = tmp_path / "evaluate"
    summary = run(params(), inputs, out, recording_tracker)
    test = read_samples(inputs["prepare"] / "dataset", ("test",))
    for side, arm in (("baseline", summary.best_baseline), ("synthetic", summary.best_synthetic)):
        model = load_network(out / "classifiers" / side)
        wanted = [
            row["predicted"]
            for row in pq.read_table(out / "predictions.parquet").to_pylist()
            if (row["arm"], row["seed"], row["split"]) == (arm, 0, "test")
        ]
        assert predict(model, test.images).argmax(axis=1).tolist() == wanted


def test_the_search_tries_as_much_for_every_arm_and_keeps_the_best(
    tmp_path: Path, recording_tracker
) -> None:
    out = tmp_path / "evaluate"
    settings = params(
        arms=("real_augmented", "focal", "mixed"), learning_rates=(1e-2, 1e-4), search_seeds=1
    )
    run(settings, make_inputs(tmp_path), out, recording_tracker)
    rows = table(out / "search.csv")
    tried = {name: [row for row in rows if row["arm"] == name] for name in settings.arms}
    assert [len(tried[name]) for name in settings.arms] == [2, 4, 4]
    for name, found in tried.items():
        (chosen,) = [row for row in found if row["chosen"] == "1"]
        best = max(float(row["validation_balanced_accuracy"]) for row in found)
        assert float(chosen["validation_balanced_accuracy"]) == best
        (arm,) = [row for row in table(out / "arms.csv") if row["arm"] == name]
        assert arm["learning_rate"] == chosen["learning_rate"]
        assert arm["share"] == chosen["share"]


def test_rivals_of_the_pool_take_part_where_there_is_one(tmp_path: Path, recording_tracker) -> None:
    names = (
        "real_augmented",
        "smote",
        "pseudo_labels",
        "pseudo_labels_soft",
        "retrieval",
        "mixed",
        "mixed_cutmix",
        "mixed_pool",
    )
    settings = params(arms=names, pseudo_confidence=0.0)
    inputs = make_inputs(tmp_path / "without")
    run(settings, inputs, tmp_path / "without" / "evaluate", recording_tracker)
    verdict = json.loads((tmp_path / "without" / "evaluate" / "verdict.json").read_text())
    assert [arm["name"] for arm in verdict["arms"]] == [
        "real_augmented",
        "smote",
        "mixed",
        "mixed_cutmix",
    ]
    pool = make_samples(
        bars(1, 9, np.random.default_rng(7)), np.full(9, UNLABELLED), "pool", "real"
    )
    rows = read_samples(inputs["prepare"] / "dataset")
    inputs = make_inputs(tmp_path / "with", concatenate([rows, pool]))
    run(settings, inputs, tmp_path / "with" / "evaluate", recording_tracker)
    verdict = json.loads((tmp_path / "with" / "evaluate" / "verdict.json").read_text())
    assert [arm["name"] for arm in verdict["arms"]] == list(names)
    described = verdict["arms"][-1]["description"]
    assert "25 % of the draws unlabelled images with the probabilities" in described


def test_the_images_of_the_base_are_a_baseline_where_they_are_at_hand(
    tmp_path: Path, recording_tracker
) -> None:
    names = ("real_augmented", "base_images", "mixed", "mixed_base")
    inputs = make_inputs(tmp_path)
    run(params(arms=names), inputs, tmp_path / "evaluate", recording_tracker)
    verdict = json.loads((tmp_path / "evaluate" / "verdict.json").read_text())
    assert [arm["name"] for arm in verdict["arms"]] == ["real_augmented", "mixed"]

    write_base(tmp_path, rows_of("train", (9, 9, 9), 8), CLASSES, {k: k for k in CLASSES})
    finish_all(tmp_path)
    run(params(arms=names), inputs, tmp_path / "evaluate", recording_tracker)
    verdict = json.loads((tmp_path / "evaluate" / "verdict.json").read_text())
    assert [arm["name"] for arm in verdict["arms"]] == list(names)
    (arm,) = (one for one in verdict["arms"] if one["name"] == "base_images")
    assert (arm["role"], arm["share"]) == ("baseline", 0.5)
    assert "50 % of the draws the images that the base was trained on" in arm["description"]
    (best,) = (one for one in verdict["arms"] if one["name"] == "mixed_base")
    assert (best["role"], best["share"]) == ("synthetic", 0.5)
    assert verdict["n"]["base_images"] == 27
    told = [(name, rows, context) for name, _, rows, context in recording_tracker.datasets]
    assert ("base_images", 27, "training") in told


def test_images_of_the_base_have_our_labels_and_are_none_of_ours(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    ours = read_samples(inputs["prepare"] / "dataset")
    ours = ours.take([ours.splits.index(split) for split in ("train", "validation", "test")])
    theirs = rows_of("train", (2, 3, 4, 5), 8)
    leaked = replace(ours, splits=("train",) * 3)
    # Their first class is our third; ours of the first two both start from their second.
    names = ("r", "bar", "none", "left")
    sources = {"right": "r", "left": "bar", "middle": "bar"}
    write_base(tmp_path, concatenate([theirs, leaked]), names, sources)
    found = base_images(tmp_path / "pretrain", tmp_path / "train", inputs["prepare"] / "dataset")
    assert found is not None
    assert found.labels.tolist() == [2, 2]
    assert np.array_equal(found.images, theirs.images[:2])
    assert not set(found.ids) & set(ours.ids)


def test_images_of_the_base_that_do_not_fit_are_named(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    folders = (tmp_path / "pretrain", tmp_path / "train", inputs["prepare"] / "dataset")
    small = replace(rows_of("train", (2,), 8), images=np.zeros((2, 4, 4, 1), dtype=np.uint8))
    write_store(tmp_path / "pretrain" / "base_images", small, ("left",), 4, "L")
    with pytest.raises(StageError, match="another size or mode; run `replenish pretrain` again"):
        base_images(*folders)
    (tmp_path / "train" / "class_sources.json").unlink()
    with pytest.raises(StageError, match=r"older Replenish .*class_sources\.json\); run"):
        base_images(*folders)


def test_class_sources_of_another_training_are_named(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    write_base(tmp_path, rows_of("train", (2,), 8), ("left",), {"top": "left"})
    with pytest.raises(StageError, match=r"class_sources\.json: 'top' is no class .*train again"):
        base_images(tmp_path / "pretrain", tmp_path / "train", inputs["prepare"] / "dataset")


def test_a_curve_says_what_the_images_are_worth(tmp_path: Path, recording_tracker) -> None:
    out = tmp_path / "evaluate"
    settings = params(curve_fractions=(0.3, 0.6))
    run(settings, make_inputs(tmp_path), out, recording_tracker)
    curve = json.loads((out / "verdict.json").read_text())["learning_curve"]
    assert [point["real_images"] for point in curve["points"]] == [5, 9, 15]
    assert curve["sentence"]


def test_seeds_are_added_until_the_interval_is_decided(tmp_path: Path, recording_tracker) -> None:
    out = tmp_path / "evaluate"
    settings = params(arms=("real", "mixed"), seeds=2, max_seeds=4, steps=1)
    run(settings, make_inputs(tmp_path), out, recording_tracker)
    verdict = json.loads((out / "verdict.json").read_text())
    seeds = [look["seeds"] for look in verdict["looks"]]
    assert seeds in ([2], [2, 4])
    assert verdict["n"]["seeds"] == seeds[-1]
    assert verdict["looks"][-1]["decided"] or seeds[-1] == 4
    assert verdict["level"] >= verdict["confidence"]


def test_numbers_of_all_files_follow_from_the_predictions(
    tmp_path: Path, recording_tracker
) -> None:
    out = tmp_path / "evaluate"
    run(params(), make_inputs(tmp_path), out, recording_tracker)
    verdict = json.loads((out / "verdict.json").read_text())
    metrics = json.loads((out / "metrics.json").read_text())
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert len(rows) == RUNS * (12 + 18)

    def recall(arm: str, name: str) -> float:
        found = [
            row["predicted"] == row["label"]
            for row in rows
            if (row["arm"], row["split"]) == (arm, "test") and CLASSES[row["label"]] == name
        ]
        return float(np.mean(found))  # both seeds have the same number of rows a class

    best = verdict["best_baseline"], verdict["best_synthetic"]
    accuracy = [np.mean([recall(arm, name) for name in CLASSES]) for arm in best]
    assert metrics["best_baseline_balanced_accuracy"] == pytest.approx(accuracy[0])
    assert metrics["best_synthetic_balanced_accuracy"] == pytest.approx(accuracy[1])
    assert metrics["gain_points"] == pytest.approx(100 * (accuracy[1] - accuracy[0]))
    for row in verdict["per_class"]:
        gain = 100 * (recall(best[1], row["name"]) - recall(best[0], row["name"]))
        assert row["gain_points"] == pytest.approx(gain)
        assert row["synthetic_recall"] == pytest.approx(recall(best[1], row["name"]))


def test_the_tracker_is_told(tmp_path: Path, recording_tracker) -> None:
    inputs = make_inputs(tmp_path)
    summary = run(params(), inputs, tmp_path / "evaluate", recording_tracker)
    assert recording_tracker.stages == ["evaluate"]
    assert summary.sentence in recording_tracker.notes
    progress = [c for c in recording_tracker.progress_calls if c[0] == "classifiers"]
    assert progress == [("classifiers", done, RUNS, "runs") for done in range(2, RUNS + 1)]
    assert len(recording_tracker.arms) == len(ARMS)
    name, settings, metrics = recording_tracker.arms[3]
    assert (name, settings["share"]) == ("mixed", 0.5)
    assert set(metrics) >= {
        f"{score}{suffix}"
        for score in (
            "validation_balanced_accuracy",
            "test_balanced_accuracy",
            "test_macro_f1",
            "tail_recall",
        )
        for suffix in ("", "_sd")
    }
    assert recording_tracker.last_metric("evaluate/gain_points") == summary.gain_points
    assert recording_tracker.last_metric("evaluate/use") == (summary.decision == "use")
    contexts = {(name, rows, context) for name, _, rows, context in recording_tracker.datasets}
    assert contexts == {
        ("train", 15, "training"),
        ("synthetic", 9, "training"),
        ("test", 18, "evaluation"),
    }


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_digest(tmp_path: Path, recording_tracker) -> None:
    inputs = make_inputs(tmp_path)
    run(params(workers=1), inputs, tmp_path / "one" / "evaluate", recording_tracker)
    run(params(workers=2), inputs, tmp_path / "two" / "evaluate", recording_tracker)
    assert digest(tmp_path / "one" / "evaluate") == digest(tmp_path / "two" / "evaluate")
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [line for line in children if "spawn_main" in line]


def test_an_interrupted_run_goes_on_and_redoes_what_is_damaged(
    tmp_path: Path, recording_tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(tmp_path)
    run(params(), inputs, tmp_path / "whole" / "evaluate", recording_tracker)
    fit_pair, trained = training.fit_pair, []

    def until_the_sixth(bench, settings, pair, *others):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append((pair[0].name, pair[1]))
        return fit_pair(bench, settings, pair, *others)

    out = tmp_path / "broken" / "evaluate"
    monkeypatch.setattr(training, "fit_pair", until_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(params(), inputs, out, recording_tracker)
    assert not out.exists()
    (runs,) = (tmp_path / "broken" / WORK / "evaluate").glob("*/runs")
    assert len(list(runs.glob("*.npz"))) == 5
    (half,) = runs.glob("real-*-0.npz")
    half.write_bytes(b"PK\x03\x04 half a file")
    (damaged,) = runs.glob("real_balanced-*-0.npz")
    with np.load(damaged) as file:
        fields = dict(file)
    np.savez(damaged, **{**fields, "test": np.full(18, 3)})  # no such class
    before = list(trained)
    trained.clear()

    def counted(bench, settings, pair, *others):
        trained.append((pair[0].name, pair[1]))
        return fit_pair(bench, settings, pair, *others)

    monkeypatch.setattr(training, "fit_pair", counted)
    run(params(), inputs, out, recording_tracker)
    assert ("real", 0) in trained
    assert ("real_balanced", 0) in trained
    assert len(set(before) & set(trained)) == 2
    assert len(trained) == RUNS - 3
    assert digest(out) == digest(tmp_path / "whole" / "evaluate")


def test_nothing_accepted_is_no_crash(tmp_path: Path, recording_tracker) -> None:
    inputs = make_inputs(tmp_path, synthetic=rows_of("train", (0, 0, 0), 4, "synthetic"))
    summary = run(params(), inputs, tmp_path / "evaluate", recording_tracker)
    assert summary.decision == "do_not_use"
    assert "none was accepted" in summary.sentence
    verdict = json.loads((tmp_path / "evaluate" / "verdict.json").read_text())
    assert not verdict["synthetic_available"]
    scores = {arm["name"]: arm["test_balanced_accuracy"] for arm in verdict["arms"]}
    assert "synthetic_only" not in scores
    assert scores["mixed"] == scores["real_augmented"]


def test_two_classes_are_enough(tmp_path: Path, recording_tracker) -> None:
    real = concatenate(
        [rows_of("train", (6, 2), 1), rows_of("validation", (3, 3), 2), rows_of("test", (4, 4), 3)]
    )
    for stage, rows in (
        ("prepare", real),
        ("synthesize", rows_of("train", (0, 4), 4, "synthetic")),
    ):
        store = tmp_path / stage / ("dataset" if stage == "prepare" else "accepted")
        write_store(store, rows, CLASSES[:2], SIDE, "L")
    write_base(tmp_path)
    inputs = finish_all(tmp_path)
    run(params(arms=("real", "mixed")), inputs, tmp_path / "evaluate", recording_tracker)
    verdict = json.loads((tmp_path / "evaluate" / "verdict.json").read_text())
    assert verdict["tail_classes"] == ["middle"]


def test_a_class_without_test_images_is_named(tmp_path: Path, recording_tracker) -> None:
    real = concatenate(
        [rows_of("train", (4, 4, 4), 1), rows_of("validation", (2, 2, 2), 2)]
        + [rows_of("test", (3, 0, 3), 3)]
    )
    with pytest.raises(InputError, match="test split has no image of middle"):
        run(params(), make_inputs(tmp_path, real), tmp_path / "evaluate", recording_tracker)


def test_stores_of_different_classes_are_refused(tmp_path: Path, recording_tracker) -> None:
    inputs = make_inputs(tmp_path)
    accepted = rows_of("train", (1, 1, 1), 4, "synthetic")
    names = ("left", "right", "middle")
    write_store(tmp_path / "synthesize" / "accepted", accepted, names, SIDE, "L")
    with pytest.raises(StageError, match="`classes` differs from that of .*; run all stages anew"):
        run(params(), inputs, tmp_path / "evaluate", recording_tracker)


def test_a_test_row_among_the_training_rows_is_refused(tmp_path: Path, recording_tracker) -> None:
    test = rows_of("test", (2, 2, 2), 3)
    leaked = make_samples(test.images[:1], test.labels[:1], "train", "real")
    real = concatenate(
        [rows_of("train", (4, 4, 4), 1), leaked, rows_of("validation", (2, 2, 2), 2), test]
    )
    with pytest.raises(StageError, match="of the test split is also a real training row"):
        run(params(), make_inputs(tmp_path, real), tmp_path / "evaluate", recording_tracker)


def test_a_validation_row_among_the_synthetic_rows_is_refused(tmp_path: Path) -> None:
    validation = rows_of("validation", (2, 2, 2), 2)
    copied = make_samples(validation.images[:1], validation.labels[:1], "train", "synthetic")
    with pytest.raises(StageError, match="of the validation split is also a synthetic row"):
        check_separation(validation, copied)


def test_a_synthetic_row_in_a_real_split_is_refused() -> None:
    synthetic = rows_of("test", (1, 1, 1), 2, "synthetic")
    with pytest.raises(StageError, match="of the test split is synthetic"):
        check_separation(synthetic, rows_of("train", (0, 0, 0), 1, "synthetic"))


def test_a_real_row_among_the_synthetic_rows_is_refused() -> None:
    with pytest.raises(StageError, match="accepted: row .* is real in the train split"):
        check_separation(rows_of("train", (1, 1, 1), 1), rows_of("train", (1, 1, 1), 2))


def digits(sizes: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images and labels of the digits 3, 8 and 9: the first rows, the next rows, ..."""
    data = load_digits()
    images = (data.images * 15).astype(np.uint8)[..., None]
    used = [0, 0, 0]
    for part in sizes:
        rows = []
        for label, n in enumerate(part):
            found = np.flatnonzero(data.target == (3, 8, 9)[label])
            rows.append(found[used[label] : used[label] + n])
            used[label] += n
        yield images[np.concatenate(rows)], np.repeat(np.arange(3), part)


def control(tmp_path: Path, tracker, shuffle: bool, training: tuple[int, int, int]):
    """Run the stage on digits, with further real images in the place of synthetic ones."""
    sizes = (training, (25, 25, 25), (80, 80, 80), (0, 40, 0) if not shuffle else (20, 20, 20))
    train, validation, test, (images, labels) = digits(sizes)
    if shuffle:
        labels = np.random.default_rng(0).permutation(labels)
    real = concatenate(
        [
            make_samples(*part, split, "real")
            for part, split in ((train, "train"), (validation, "validation"), (test, "test"))
        ]
    )
    inputs = make_inputs(tmp_path, real, make_samples(images, labels, "train", "synthetic"))
    settings = params(
        arms=("real", "real_balanced", "mixed"),
        mixed_shares=(0.5,),
        steps=60,
        seeds=4,
        batch_images=32,
        base_channels=8,
        bootstrap_resamples=1000,
    )
    return run(settings, inputs, tmp_path / "evaluate", tracker)


def test_held_out_real_rows_of_a_class_with_one_image_help(
    tmp_path: Path, recording_tracker
) -> None:
    summary = control(tmp_path, recording_tracker, shuffle=False, training=(40, 1, 40))
    assert summary.decision == "use", summary.sentence
    assert summary.gain_points > 5
    assert summary.sentence.startswith(
        "Use the synthetic images: the best way to use them (mixed) raised"
    )
    verdict = json.loads((tmp_path / "evaluate" / "verdict.json").read_text())
    assert verdict["per_class"][1]["gain_points"] > 30
    assert verdict["tail_classes"][0] == CLASSES[1]


def test_rows_with_shuffled_labels_are_not_used(tmp_path: Path, recording_tracker) -> None:
    summary = control(tmp_path, recording_tracker, shuffle=True, training=(20, 20, 10))
    assert summary.decision == "do_not_use", summary.sentence
    assert summary.gain_points < 0


_SCRIPT = """
import sys
from pathlib import Path
from pipeline.params import EvaluateParams, Execution
from pipeline.stages.evaluate import run
from pipeline.tracking.tracker import NullTracker

class Tell(NullTracker):
    def progress(self, task, done, total, unit):
        if task == "classifiers":
            sys.stdout.write(f"{done}\\n")
            sys.stdout.flush()

if __name__ == "__main__":
    root = Path(sys.argv[1])
    params = EvaluateParams(
        execution=Execution(device="cpu", workers=2), steps=int(sys.argv[2]), seeds=2,
        batch_images=8, base_channels=4, bootstrap_resamples=100, search_seeds=0,
        curve_fractions=(),
        arms=("real", "real_balanced", "real_augmented", "mixed", "pretrained", "synthetic_only"),
    )
    stages = ("prepare", "pretrain", "train", "synthesize")
    run(params, {stage: root / stage for stage in stages}, root / "evaluate", Tell())
"""


def started(root: Path, steps: int = 60) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start the stage in a process of its own and wait for its first finished classifiers."""
    script = root / "script.py"
    script.write_text(_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 2:  # the pilot has done two
            break
    return process, psutil.Process(process.pid).children(recursive=True)


def all_gone(children: list[psutil.Process], seconds: float = 20) -> bool:
    _, alive = psutil.wait_procs(children, timeout=seconds)
    return not alive


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_worker_outlives_the_run(tmp_path: Path, how: str) -> None:
    make_inputs(tmp_path)
    process, children = started(tmp_path, steps=250)  # nine of twelve classifiers are to come
    assert children
    if how == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    assert all_gone(children)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not (tmp_path / "evaluate").exists()


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_worker_is_explained_and_the_next_run_goes_on(
    tmp_path: Path, recording_tracker
) -> None:
    inputs = make_inputs(tmp_path)
    process, children = started(tmp_path)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert "StageError: evaluate: a worker process died" in errors
    assert "execution.workers" in errors
    assert all_gone(children)
    kept = len(list((tmp_path / WORK / "evaluate").glob("*/runs/*.npz")))
    assert 2 <= kept < RUNS
    run(params(steps=60), inputs, tmp_path / "evaluate", recording_tracker)
    first = [c for c in recording_tracker.progress_calls if c[0] == "classifiers"][0]
    assert first == ("classifiers", kept, RUNS, "runs")
