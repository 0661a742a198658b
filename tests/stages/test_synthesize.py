"""The stage synthesize on a tiny store of two kinds of stripes."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_store import parts, run_pretrain, run_train, stripes, write_prepare

from pipeline.data.images import encode_png
from pipeline.data.store import read_info, read_samples
from pipeline.downstream import fitting
from pipeline.errors import InputError
from pipeline.folders import read_manifest, write_manifest
from pipeline.params import Execution, SynthesizeParams
from pipeline.stages import synthesize
from pipeline.synthesis.jobs import EngineWorker


def synthesize_params(**changes):
    values = {
        "images_per_class": "fill",
        "sampler_steps": 6,
        "shard_images": 4,
        "judge_steps": 30,
        "filter_share": 0.0,
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
    real = read_samples(root / "prepare" / "dataset", ("train",))
    for column in ("nearest_id", "near_id"):
        assert set(accepted.extra[column]) <= set(real.ids)
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
    for backend, workers in (("inline", 1), ("inline", 3), ("processes", 2)):
        out = tmp_path / f"{backend}-{workers}" / "synthesize"
        execution = Execution(workers=workers, backend=backend)
        run_synthesize(root, out, recording_tracker, execution=execution)
        digests.add(read_manifest(out).digest)
    assert len(digests) == 1


class _StopError(Exception):
    pass


def test_an_interrupted_run_goes_on_from_its_shards(
    trained, tmp_path, recording_tracker, monkeypatch
):
    root, _ = trained
    changes = {"images_per_class": 20, "max_rounds": 1, "execution": Execution(workers=1)}
    unbroken = tmp_path / "unbroken" / "synthesize"
    run_synthesize(root, unbroken, recording_tracker, **changes)
    sampled, sample = [], EngineWorker.sample

    def count(worker, shards):
        sampled.extend(shards)
        return sample(worker, shards)

    def stop(task, done, total, unit):
        if task == "sample" and done >= total / 2:
            raise _StopError

    monkeypatch.setattr(EngineWorker, "sample", count)
    out = tmp_path / "broken" / "synthesize"
    with monkeypatch.context() as patch:
        patch.setattr(recording_tracker, "progress", stop)
        with pytest.raises(_StopError):
            run_synthesize(root, out, recording_tracker, **changes)
    (work,) = (out.parent / ".work" / "synthesize").iterdir()
    assert len(list((work / "shards").glob("*.sha256"))) == len(sampled) > 2
    # As a kill would leave it: a store without its dataset.json, and a half-written file.
    stale = work / "accepted" / "data" / "train-00007-of-00008.parquet"
    stale.parent.mkdir(parents=True)
    for path in (stale, work / "shards" / ".x.tmp"):
        path.write_bytes(b"PAR1")
    run_synthesize(root, out, recording_tracker, **changes)
    assert read_manifest(out).digest == read_manifest(unbroken).digest
    assert len(sampled) == len(set(sampled))
    done = [(d, t) for task, d, t, _ in recording_tracker.progress_calls if task == "sample"]
    assert done[-1][0] == done[-1][1] == 4 * len(sampled)


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
    shutil.copy(root / "train" / "summary.json", tmp_path / "train")
    write_manifest(tmp_path / "train", "train", "key", {}, {})
    inputs = {"prepare": root / "prepare", "train": tmp_path / "train"}
    with pytest.raises(InputError, match="not a readable generator"):
        synthesize.run(synthesize_params(), inputs, tmp_path / "s", recording_tracker)


def test_a_missing_input_names_the_stage_to_run(trained, tmp_path, recording_tracker):
    inputs = {"prepare": trained[0] / "prepare"}
    with pytest.raises(InputError, match="run `replenish train` first"):
        synthesize.run(synthesize_params(), inputs, tmp_path / "s", recording_tracker)


@pytest.mark.parametrize("mode", ["edit", "cross_class", "inpaint"])
def test_edited_images_name_their_parent_and_are_not_copies_of_it(
    trained, tmp_path, recording_tracker, mode
):
    root, _ = trained
    summary = run_synthesize(
        root, tmp_path / "synthesize", recording_tracker, mode=mode, max_rounds=2
    )
    assert summary.mode == mode
    real = read_samples(root / "prepare" / "dataset", ("train",))
    label_of = dict(zip(real.ids, real.labels.tolist(), strict=True))
    limit = summary.thresholds["copy_distance"]
    kept = 0
    for name in ("accepted", "rejected"):
        rows = read_samples(tmp_path / "synthesize" / name)
        if not len(rows):
            continue
        parents = [label_of[parent] for parent in rows.extra["parent_id"]]
        other = mode == "cross_class"
        assert all((a != b) == other for a, b in zip(parents, rows.labels.tolist(), strict=True))
        for parent, nearest in zip(rows.extra["parent_id"], rows.extra["nearest_id"], strict=True):
            assert parent != nearest
        assert set(rows.extra["mode"]) <= {mode}
        strengths = {1.0} if mode == "inpaint" else {0.3, 0.5, 0.7}
        assert set(rows.extra["strength"]) <= strengths
        if name == "accepted":
            kept = len(rows)
            assert all(distance >= limit for distance in rows.extra["parent_distance"])
    assert kept == summary.accepted


def masked(rows, marked):
    """Return the rows with a mask of their own: what prepare stores of a manifest's."""
    masks = []
    for count in marked:
        mask = np.zeros((8, 8, 1), dtype=np.uint8)
        mask[:count] = 255
        masks.append(encode_png(mask) if count else None)
    return replace(rows, extra={"mask": masks})


def write_masked(folder, marked):
    train, validation, test = parts()
    held_out = [masked(rows, [0] * len(rows)) for rows in (validation, test)]
    write_prepare(folder, [masked(train, marked), *held_out])


def test_each_image_is_inpainted_within_its_own_mask(trained, tmp_path, recording_tracker):
    # The large class gets no image and needs no mask; of the thin one, one row has none.
    write_masked(tmp_path / "prepare", [0] * 12 + [0, 3, 6])
    (tmp_path / "train").symlink_to(trained[0] / "train")
    changes = {"mode": "inpaint", "mask": "own", "max_rounds": 2, "adapt_below": 0.0}
    summary = run_synthesize(tmp_path, tmp_path / "s", recording_tracker, **changes)
    assert any("2 of 15 training images have a mask" in note for note in recording_tracker.notes)
    assert [one.candidates > 0 for one in summary.classes] == [False, True]
    real = read_samples(tmp_path / "prepare" / "dataset", ("train",))
    number = {identity: row for row, identity in enumerate(real.ids)}
    parents = Counter()
    for name in ("accepted", "rejected"):
        rows = read_samples(tmp_path / "s" / name)
        for image, parent in zip(rows.images, rows.extra.get("parent_id", ()), strict=True):
            row = number[parent]
            parents[row] += 1
            drawn = {13: 3, 14: 6}[row]
            assert np.array_equal(image[drawn:], real.images[row][drawn:])
            assert not np.array_equal(image[:drawn], real.images[row][:drawn])
        assert set(rows.extra.get("mask", ())) <= {"own"}
    assert parents == {13: summary.candidates / 2, 14: summary.candidates / 2}


def test_other_masks_make_the_stage_stale(trained, tmp_path, recording_tracker):
    (tmp_path / "train").symlink_to(trained[0] / "train")
    inputs = {"prepare": tmp_path / "prepare", "train": tmp_path / "train"}
    params = synthesize_params(mode="inpaint", mask="own", images_per_class=1, max_rounds=1)
    digests = []
    for count in (3, 5):
        shutil.rmtree(tmp_path / "prepare", ignore_errors=True)
        write_masked(tmp_path / "prepare", [count] * 15)
        digests.append(read_info(tmp_path / "prepare" / "dataset").digest)
        assert not synthesize.run.is_current(params, inputs, tmp_path / "s")
        synthesize.run(params, inputs, tmp_path / "s", recording_tracker)
        assert synthesize.run.is_current(params, inputs, tmp_path / "s")
    assert digests[0] == digests[1]  # of pixels, labels and splits


def test_masks_of_their_own_that_are_missing_are_refused_before_any_work(
    trained, tmp_path, recording_tracker
):
    (tmp_path / "train").symlink_to(trained[0] / "train")
    changes = {"mode": "inpaint", "mask": "own"}
    with pytest.raises(InputError, match="no column `mask`"):
        run_synthesize(trained[0], tmp_path / "s", recording_tracker, **changes)
    write_masked(tmp_path / "prepare", [3] * 12 + [0, 8, 0])
    with pytest.raises(InputError, match="no training image of columns has a mask"):
        run_synthesize(tmp_path, tmp_path / "s", recording_tracker, **changes)
    assert not recording_tracker.progress_calls


def test_an_edit_of_strength_nought_is_rejected_as_a_repeat(trained, tmp_path, recording_tracker):
    root, _ = trained
    changes = {"mode": "edit", "strengths": (0.0,), "max_rounds": 1}
    summary = run_synthesize(root, tmp_path / "synthesize", recording_tracker, **changes)
    assert summary.accepted == 0
    assert set(summary.classes[1].reasons) == {"repeat"}


def test_the_plan_decides_how_many_are_kept(trained, tmp_path, recording_tracker, monkeypatch):
    monkeypatch.setattr(fitting, "classifier_steps", lambda wanted, images: 15)
    root, _ = trained
    out = tmp_path / "synthesize"
    changes = {"images_per_class": "planned", "pilot_images": 8, "plan_seeds": 2, "max_rounds": 6}
    summary = run_synthesize(root, out, recording_tracker, plan_margin_points=100.0, **changes)
    plan = summary.plan
    assert [one.wanted for one in summary.classes] == plan.images
    rows = read_samples(out / "accepted")
    assert len(rows) == summary.accepted <= sum(plan.images)
    assert summary.good >= summary.accepted
    assert (out / "plan.csv").read_text().count("\n") == 1 + 2 * 3
    assert any(plan.reason in note for note in recording_tracker.notes)
    none = run_synthesize(
        root, tmp_path / "none", recording_tracker, plan_budget_images=0, **changes
    )
    assert none.accepted == 0
    assert none.plan.images == [0, 0]


def test_the_kept_ones_are_chosen_for_variety_from_more_good_ones(
    trained, tmp_path, recording_tracker
):
    root, _ = trained
    changes = {"images_per_class": 4, "max_rounds": 6, "filters": ()}
    first = run_synthesize(root, tmp_path / "first", recording_tracker, **changes)
    varied = run_synthesize(
        root, tmp_path / "varied", recording_tracker, select="k_centre", select_from=3.0, **changes
    )
    assert first.accepted == varied.accepted == 8
    assert varied.good >= 24 > first.good
    ids = [set(read_samples(tmp_path / name / "accepted").ids) for name in ("first", "varied")]
    assert ids[0] != ids[1]


def test_a_class_that_is_mostly_rejected_goes_on_by_another_recipe(
    trained, tmp_path, recording_tracker
):
    root, _ = trained
    summary = run_synthesize(
        root, tmp_path / "s", recording_tracker, copy_ratio=1.0, images_per_class=9,
        shard_images=16, max_rounds=3, adapt_below=1.0,
    )  # fmt: skip
    assert summary.accepted == 0
    names = [one.name for one in summary.classes[0].recipes]
    assert names == ["as asked", "firmer guidance", "edits of training images"]
    assert all(one.candidates >= 32 for one in summary.classes[0].recipes)
    assert any("class rows tried as asked (0 of" in note for note in recording_tracker.notes)
    rows = read_samples(tmp_path / "s" / "rejected")
    assert {*rows.extra["mode"]} == {"generate", "edit"}
    for mode, distance in zip(rows.extra["mode"], rows.extra["parent_distance"], strict=True):
        assert (distance is None or distance != distance) == (mode == "generate")


def test_the_rules_are_accounted_for_and_the_images_measured(trained, tmp_path, recording_tracker):
    root, _ = trained
    out = tmp_path / "synthesize"
    summary = run_synthesize(
        root, out, recording_tracker, images_per_class=12, max_rounds=6, filter_share=0.1
    )
    assert [one.rule for one in summary.rules] == [
        "copies", "near_copies", "artefacts", "labels", "off_class", "repeats"
    ]  # fmt: skip
    fates = Counter()
    for one in summary.classes:
        fates.update(one.reasons)
        assert sum(one.reasons.values()) == one.candidates
    rejected = sum(n for name, n in fates.items() if name not in ("accepted", "surplus", "repeat"))
    assert sum(one.rejected for one in summary.rules) == rejected
    assert all(one.alone >= one.rejected for one in summary.rules)
    quality = {one.name: one for one in summary.quality}
    assert quality["frechet_distance"].n_fake > 0 or quality["frechet_distance"].refusal
    assert quality["membership_auc"].value is not None
    assert len((out / "quality.csv").read_text().splitlines()) == 1 + len(summary.quality)


def test_an_encoder_from_a_file_judges_and_measures(trained, tmp_path, recording_tracker):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0)
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    root, _ = trained
    changes = {"encoder": "timm", "encoder_image_px": 32, "images_per_class": 4}
    summary = run_synthesize(
        root, tmp_path / "s", recording_tracker, encoder_path=str(folder), **changes
    )
    assert "test_resnet" in summary.encoder
    assert summary.encoder in {one.encoder for one in summary.quality}
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        run_synthesize(root, tmp_path / "t", recording_tracker, encoder_path=str(folder), **changes)


def test_guidance_is_searched_for_and_the_choice_is_used(trained, tmp_path, recording_tracker):
    root, _ = trained
    summary = run_synthesize(
        root, tmp_path / "synthesize", recording_tracker, guidance="auto", search_images=32
    )
    (chosen,) = [row for row in summary.search if row.chosen]
    assert (summary.guidance, summary.guidance_weight) == (chosen.guidance, chosen.weight)
    rows = read_samples(tmp_path / "synthesize" / "rejected")
    accepted = read_samples(tmp_path / "synthesize" / "accepted")
    assert {*rows.extra["guidance"], *accepted.extra["guidance"]} == {chosen.weight}
    table = (tmp_path / "synthesize" / "search.csv").read_text().splitlines()
    assert len(table) == 1 + len(summary.search) > 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guide": "weaker", "guidance": 1.5}, "the generator has no weaker network"),
        ({"generator": "student"}, "train has made none"),
        ({"encoder": "inception", "encoder_path": "nowhere"}, "nowhere"),
        ({"mode": "inpaint", "mask": "user", "mask_path": "nowhere"}, r"no masks \(\*\.png\)"),
    ],
)
def test_what_the_generator_cannot_do_is_refused_before_any_work(
    trained, tmp_path, recording_tracker, changes, message
):
    root, _ = trained
    with pytest.raises(InputError, match=message):
        run_synthesize(root, tmp_path / "synthesize", recording_tracker, **changes)
    assert not recording_tracker.progress_calls
