"""The stages train and synthesize on a tiny store of two kinds of stripes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.data.store import concatenate, make_samples, read_samples, write_store
from pipeline.downstream.training import classifier_steps
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest, write_manifest
from pipeline.params import Execution, SynthesizeParams, TrainParams
from pipeline.stages import synthesize, train


def stripes(counts, split, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (len(labels), 8, 8, 1))
    images[labels == 0, ::2] += 180
    images[labels == 1, :, ::2] += 180
    return make_samples(images.astype(np.uint8), labels, split, "real")


def write_prepare(folder, parts):
    write_store(folder / "dataset", concatenate(parts), ("rows", "columns"), 8, "L")
    write_manifest(folder, "prepare", "key", {}, {})


def parts():
    return [
        stripes([12, 3], "train", 0),
        stripes([6, 6], "validation", 1),
        stripes([4, 4], "test", 2),
    ]


def train_params(**changes):
    values = {
        "steps": 60,
        "batch_images": 16,
        "base_channels": 8,
        "learning_rate": 3.0e-3,
        "warmup_steps": 5,
        "ema_decay": 0.9,
        "checkpoint_every_steps": 20,
        "sheet_every_steps": 30,
        "sheet_images_per_class": 2,
    }
    return TrainParams(**{**values, **changes})


def synthesize_params(**changes):
    values = {
        "images_per_class": "fill",
        "sampler_steps": 6,
        "shard_images": 4,
        "judge_steps": 30,
        "confidence_quantile": 0.0,
    }
    return SynthesizeParams(**{**values, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from pipeline.tracking.tracker import NullTracker

    root = tmp_path_factory.mktemp("trained")
    write_prepare(root / "prepare", parts())
    summary = train.run(
        train_params(), {"prepare": root / "prepare"}, root / "train", NullTracker()
    )
    return root, summary


def run_synthesize(root, out, tracker, **changes):
    inputs = {"prepare": root / "prepare", "train": root / "train"}
    return synthesize.run(synthesize_params(**changes), inputs, out, tracker)


def test_train_leaves_a_generator_curves_sheets_and_ids(trained):
    root, summary = trained
    folder = root / "train"
    names = set(read_manifest(folder).files)
    assert names >= {
        "generator/config.json",
        "generator/diffusion_pytorch_model.safetensors",
        "generator/generator.json",
        "curve.csv",
        "heldout.csv",
        "samples/step-000030.png",
        "samples/step-000060.png",
        "training_ids.txt",
        "summary.json",
    }
    assert not any("state" in name for name in names)
    rows = read_samples(root / "prepare" / "dataset", ("train",))
    assert (folder / "training_ids.txt").read_text().split() == sorted(rows.ids)
    assert summary.training_images == 15
    weights = load_file(folder / "generator/diffusion_pytorch_model.safetensors")
    assert sum(w.size for w in weights.values()) == summary.parameters


def test_train_gives_the_same_digest_twice(trained, tmp_path, recording_tracker):
    root, _ = trained
    inputs = {"prepare": root / "prepare"}
    train.run(train_params(), inputs, tmp_path / "train", recording_tracker)
    assert read_manifest(tmp_path / "train") == read_manifest(root / "train")
    assert recording_tracker.progress_calls[-1] == ("train", 60, 60, "steps")
    assert recording_tracker.last_metric("train/loss") > 0


def test_a_test_row_among_the_training_rows_is_a_hard_error(tmp_path, recording_tracker):
    leaked = stripes([4, 4], "train", 2)
    write_prepare(tmp_path / "prepare", [*parts(), leaked])
    with pytest.raises(StageError, match="8 test rows stand in the training split"):
        train.run(
            train_params(), {"prepare": tmp_path / "prepare"}, tmp_path / "t", recording_tracker
        )


def test_synthesize_fills_the_thin_class_with_scored_rows(trained, tmp_path, recording_tracker):
    root, _ = trained
    summary = run_synthesize(root, tmp_path / "synthesize", recording_tracker, max_rounds=8)
    wanted = {one.name: one.wanted for one in summary.classes}
    assert wanted == {"rows": 0, "columns": 9}
    accepted = read_samples(tmp_path / "synthesize" / "accepted")
    assert set(accepted.labels.tolist()) <= {1}
    assert len(accepted) == summary.accepted == summary.classes[1].accepted
    assert set(accepted.origins) <= {"synthetic"}
    training = read_samples(root / "prepare" / "dataset", ("train",))
    for column in ("nearest_id", "feature_nearest_id"):
        assert set(accepted.extra[column]) <= set(training.ids)
    assert set(accepted.extra["generator"]) == {summary.generator_digest}
    assert set(accepted.extra["reason"]) == {"accepted"}
    rejected = read_samples(tmp_path / "synthesize" / "rejected")
    assert len(accepted) + len(rejected) == summary.candidates
    assert summary.judge_validation_accuracy > 0.9
    assert not (tmp_path / "synthesize" / "shards").exists()
    metrics = json.loads((tmp_path / "synthesize" / "metrics.json").read_text())
    assert metrics["accepted"] == summary.accepted


def test_workers_change_nothing(trained, tmp_path, recording_tracker):
    root, _ = trained
    digests = set()
    for workers in (1, 3):
        out = tmp_path / str(workers) / "synthesize"
        run_synthesize(root, out, recording_tracker, execution=Execution(workers=workers))
        digests.add(read_manifest(out).digest)
    assert len(digests) == 1


def test_a_shortfall_is_told(trained, tmp_path, recording_tracker):
    root, _ = trained
    summary = run_synthesize(
        root, tmp_path / "s", recording_tracker, max_rounds=1, copy_ratio=1.0, images_per_class=5
    )
    assert summary.accepted == 0
    assert {one.shortfall for one in summary.classes} == {5}
    assert any("class columns is 5 images short of 5" in n for n in recording_tracker.notes)
    assert summary.classes[0].reasons == {"copy_ratio": summary.classes[0].candidates}


def test_balanced_classes_need_nothing_and_are_told_so(tmp_path, recording_tracker, trained):
    root, _ = trained
    balanced = [stripes([5, 5], "train", 0), *parts()[1:]]
    write_prepare(tmp_path / "prepare", balanced)
    (tmp_path / "train").symlink_to(root / "train")
    summary = run_synthesize(tmp_path, tmp_path / "synthesize", recording_tracker)
    assert (summary.candidates, summary.accepted, summary.rounds) == (0, 0, 0)
    assert any("the plan asks for no image" in note for note in recording_tracker.notes)
    assert len(read_samples(tmp_path / "synthesize" / "accepted")) == 0


def test_a_missing_input_names_the_stage_to_run(tmp_path, recording_tracker):
    with pytest.raises(InputError, match="run `replenish prepare` first"):
        train.run(train_params(), {}, tmp_path / "train", recording_tracker)


def test_damaged_weights_are_an_input_error(trained, tmp_path, recording_tracker):
    root, _ = trained
    generator = tmp_path / "train" / "generator"
    generator.mkdir(parents=True)
    for path in (root / "train" / "generator").iterdir():
        (generator / path.name).write_bytes(path.read_bytes()[:50])
    write_manifest(tmp_path / "train", "train", "key", {}, {})
    inputs = {"prepare": root / "prepare", "train": tmp_path / "train"}
    with pytest.raises(InputError, match="not a readable generator"):
        synthesize.run(synthesize_params(), inputs, tmp_path / "s", recording_tracker)


def test_steps_follow_the_number_of_images_unless_they_are_given():
    assert [train.auto_steps(n) for n in (10, 246, 10_000)] == [400, 615, 4000]
    assert [classifier_steps(None, n) for n in (10, 400, 10_000)] == [250, 500, 2500]
    assert classifier_steps(7, 10_000) == 7
