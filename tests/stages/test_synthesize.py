"""The stage synthesize on a tiny store of two kinds of stripes."""

import json

import pytest
from tiny_store import parts, run_pretrain, run_train, stripes, write_prepare

from pipeline.data.store import read_samples
from pipeline.errors import InputError
from pipeline.folders import read_manifest, write_manifest
from pipeline.params import Execution, SynthesizeParams
from pipeline.stages import synthesize


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
    root = tmp_path_factory.mktemp("trained")
    write_prepare(root / "prepare", parts())
    run_pretrain(root)
    return root, run_train(root)


def run_synthesize(root, out, tracker, **changes):
    inputs = {"prepare": root / "prepare", "train": root / "train"}
    return synthesize.run(synthesize_params(**changes), inputs, out, tracker)


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


def test_a_missing_input_names_the_stage_to_run(trained, tmp_path, recording_tracker):
    inputs = {"prepare": trained[0] / "prepare"}
    with pytest.raises(InputError, match="run `replenish train` first"):
        synthesize.run(synthesize_params(), inputs, tmp_path / "s", recording_tracker)
