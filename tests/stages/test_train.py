"""The stage train on a tiny store of two kinds of stripes, from nothing and from each base."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.numpy import load_file
from tiny_store import (
    parts,
    pool,
    run_pretrain,
    run_train,
    stripes,
    train_params,
    write_prepare,
    write_run,
)

from pipeline.data.store import read_ids, read_samples
from pipeline.diffusion.base_sources import import_run
from pipeline.diffusion.bases import read_base
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.starting import start_from
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest
from pipeline.stages import train
from pipeline.tracking.tracker import NullTracker
from pipeline.verification import verify

WEIGHTS = "generator/diffusion_pytorch_model.safetensors"
SHORT = {"steps": 6, "checks": 2, "check_images": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    write_prepare(root / "prepare", parts())
    run_pretrain(root)
    return root, run_train(root)


@pytest.fixture
def root(tmp_path):
    """Prepared, and without a base."""
    root = tmp_path / "root"
    write_prepare(root / "prepare", parts())
    run_pretrain(root)
    return root


@pytest.fixture(scope="module")
def spring(tmp_path_factory):
    """A finished run, from whose generator others start."""
    return write_run(tmp_path_factory.mktemp("runs") / "spring", **SHORT)


# What it leaves


def test_train_leaves_a_generator_curves_sheets_and_ids(trained):
    root, summary = trained
    folder = root / "train"
    names = set(read_manifest(folder).files)
    assert names >= {
        "generator/config.json",
        WEIGHTS,
        "generator/generator.json",
        "curve.csv",
        "checks.csv",
        "lengths.csv",
        "samples/step-000020.png",
        "samples/step-000040.png",
        "samples/step-000060.png",
        "training_ids.txt",
        "summary.json",
    }
    assert not any("state" in name or "snapshot" in name or "base" in name for name in names)
    rows = read_samples(root / "prepare" / "dataset", ("train",))
    assert (folder / "training_ids.txt").read_text().split() == sorted(rows.ids)
    weights = load_file(folder / WEIGHTS)
    assert sum(w.size for w in weights.values()) == summary.parameters
    assert summary.trained_parameters == summary.parameters
    assert summary.training_images == 15
    assert (summary.steps, summary.most_steps) == (60, 60)
    assert summary.kept_step in (20, 40, 60)
    assert (summary.base, summary.base_digest, summary.reinitialised) == (None, None, [])
    assert 0 <= summary.copy_share <= 1
    assert np.isfinite(summary.kernel_distance)
    assert 0 < summary.validation_loss < 1
    spec = load_generator(folder / "generator", torch.device("cpu")).spec
    assert (spec.classes, spec.base_digest) == (("rows", "columns"), None)
    assert f"best at step {summary.kept_step}" in summary.endurance


def test_train_gives_the_same_digest_twice(trained, root, recording_tracker):
    run_train(root, recording_tracker)
    assert read_manifest(root / "train") == read_manifest(trained[0] / "train")
    steps = [call for call in recording_tracker.progress_calls if call[0] == "train"]
    assert steps[-1] == ("train", 60, 60, "steps")
    assert recording_tracker.last_metric("train/loss") > 0


def test_an_interrupted_train_is_finished_with_the_same_digest(trained, root):
    class Killer(NullTracker):
        def progress(self, task, done, total, unit):
            if task == "train" and done == 47:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_train(root, Killer())
    assert list((root / ".work" / "train").rglob("state.safetensors"))
    run_train(root)
    assert read_manifest(root / "train") == read_manifest(trained[0] / "train")
    assert not list((root / ".work").rglob("state*"))


def test_it_stops_early_where_all_that_comes_copies(root, recording_tracker, monkeypatch):
    shares = iter([0.0, 0.5, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(train, "Probe", lambda *rest: lambda model: (next(shares), 1.0))
    summary = run_train(
        root, recording_tracker, steps=24, checks=8, copy_limit=0.1, patience_checks=2,
        ema_length=0.1, checkpoint_every_steps=100,
    )  # fmt: skip
    assert (summary.steps, summary.most_steps) == (9, 24)
    assert (summary.kept_step, summary.copies_from_step) == (3, 6)
    assert "best at step 3, copies from step 6" in summary.endurance
    assert any("9 steps made (stopped early, of 24)" in note for note in recording_tracker.notes)


def test_where_all_copies_it_says_so(root, recording_tracker, monkeypatch):
    monkeypatch.setattr(train, "Probe", lambda *rest: lambda model: (0.5, 1.0))
    summary = run_train(root, recording_tracker, steps=6, checks=2, copy_limit=0.1)
    assert summary.copy_share == 0.5
    notes = "\n".join(recording_tracker.notes)
    assert "every network that was looked at copies: 50.0% of the samples" in notes
    assert "start from a base (pretrain.base)" in notes


def test_augmentation_leaves_a_plain_network(root):
    summary = run_train(root, **SHORT, augment=("flip", "flip_vertical"), augment_probability=0.5)
    model = UNet2DModel.from_pretrained(root / "train" / "generator", use_safetensors=True)
    assert not any("augmentation" in name for name in model.state_dict())
    assert sum(w.numel() for w in model.parameters()) == summary.parameters


# What it refuses


def test_a_test_row_among_the_training_rows_is_a_hard_error(tmp_path):
    leaked = stripes([4, 4], "train", 2)
    write_prepare(tmp_path / "prepare", [*parts(), leaked])
    run_pretrain(tmp_path)
    with pytest.raises(StageError, match="8 test rows stand in the training split"):
        run_train(tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([12, 1], "train: class columns has 1 training images and needs at least 2; add images"),
        ([12, 0], "train: class columns has 0 training images and needs at least 2"),
        ([7, 2], "train: 9 training images in all; at least 10 are needed"),
    ],
)
def test_too_few_images_are_named(tmp_path, counts, message):
    rows = [stripes(counts, "train", 0), *parts()[1:]]
    write_prepare(tmp_path / "prepare", rows)
    run_pretrain(tmp_path)
    with pytest.raises(InputError, match=message):
        run_train(tmp_path)
    assert read_manifest(tmp_path / "train") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "lora"}, r"train\.trainable = lora is for fine-tuning, and there is no ba"),
        ({"trainable": "inner"}, r"train\.trainable = inner is for fine-tuning"),
        ({"class_map": {"rows": "r"}}, r"train\.class_map = .* set pretrain\.base"),
    ],
)
def test_fine_tuning_needs_a_base(root, changes, message):
    with pytest.raises(InputError, match=message):
        run_train(root, **changes)


@pytest.mark.parametrize("missing", ["prepare", "pretrain"])
def test_a_missing_input_names_the_stage_to_run(root, recording_tracker, missing):
    inputs = {"prepare": root / "prepare", "pretrain": root / "pretrain"}
    inputs.pop(missing)
    with pytest.raises(InputError, match=f"run `replenish {missing}` first"):
        train.run(train_params(), inputs, root / "train", recording_tracker)


# From a base


def spread(folder):
    return load_file(folder / "train" / WEIGHTS)


@pytest.fixture
def start(root, spring):
    """Return `start(kind)`: what pretrain is told to make a base of each kind."""

    def params(kind):
        if kind == "pool":
            write_prepare(root / "prepare", [*parts(), pool(40)])
            return {"base": "pool", "steps": 3}
        if kind == "folder":
            shutil.copytree(spring / "train" / "generator", root / "horses")
            (root / "horses" / "generator.json").unlink()
            return {"base": "folder", "path": str(root / "horses")}
        return {"base": "run", "path": str(spring)}

    return params


@pytest.mark.parametrize("what", ["all", "inner", "lora"])
@pytest.mark.parametrize("kind", ["pool", "folder", "run"])
def test_training_starts_from_each_base(root, start, recording_tracker, kind, what):
    based = run_pretrain(root, **start(kind))
    summary = run_train(root, recording_tracker, **SHORT, trainable=what, ema_length=0.1)
    assert summary.base == f"{kind}: {based.source}"
    assert summary.base_digest == based.base_digest
    assert summary.network == "the base's network"
    spec = load_generator(root / "train" / "generator", torch.device("cpu")).spec
    assert spec.base_digest == based.base_digest
    # The network that it began with.
    base = read_base(root / "pretrain" / "base")
    model, fit = start_from(
        base, image_size_px=8, image_mode="L", classes=("rows", "columns"), class_map={},
        dropout=0.1, seed=0,
    )  # fmt: skip
    assert summary.reinitialised == list(fit.reinitialised)
    began = {name: value.numpy() for name, value in model.state_dict().items()}
    ended = load_file(root / "train" / WEIGHTS)
    assert sorted(ended) == sorted(began)  # plain names: adapters are merged
    loaded = UNet2DModel.from_pretrained(root / "train" / "generator", use_safetensors=True)
    assert list(loaded.state_dict()) == list(model.state_dict())
    moved = {name for name in began if not np.array_equal(began[name], ended[name])}
    still = set(began) - moved
    outer = ("conv_in.", "down_blocks.0.", "up_blocks.1.", "conv_norm_out.", "conv_out.")
    always = {*fit.reinitialised, "class_embedding.weight"}
    assert "class_embedding.weight" in moved
    if what == "all":
        assert not still
        assert summary.trained_parameters == summary.parameters
    elif what == "inner":
        assert still == {name for name in began if name.startswith(outer)} - always
    else:
        adapted = ("conv1.", "conv2.", "time_emb_proj.", "to_q.", "to_k.", "to_v.", "to_out.0.")
        frozen = {n for n in began if not n.endswith(".weight") or not any(a in n for a in adapted)}
        assert still == frozen - always
    if what != "all":
        assert summary.trained_parameters < summary.parameters
    notes = "\n".join(recording_tracker.notes)
    assert f"starts from {based.source} ({kind}): {len(fit.loaded)} tensors loaded" in notes
    unknown = "which images the base has seen is not known" in notes
    assert unknown == (kind == "folder")
    ids = root / "train" / "base_ids.txt"
    assert ids.is_file() == (kind != "folder")
    if kind != "folder":
        assert ids.read_text().split() == list(base.training_ids)
    assert verify(root).problems == []


def test_starting_from_a_base_is_repeatable_and_resumes(root, start):
    class Killer(NullTracker):
        def progress(self, task, done, total, unit):
            if task == "train" and done == 5:
                raise KeyboardInterrupt

    run_pretrain(root, **start("run"))
    params = {**SHORT, "trainable": "lora", "checkpoint_every_steps": 2}
    run_train(root, out=root / "one" / "train", **params)
    with pytest.raises(KeyboardInterrupt):
        run_train(root, Killer(), out=root / "two" / "train", **params)
    run_train(root, out=root / "two" / "train", **params)
    one, two = (read_manifest(root / name / "train") for name in ("one", "two"))
    assert one == two


def train_classes(root, rows, classes, spring, tracker, **changes):
    write_prepare(root / "prepare", rows, classes)
    run_pretrain(root, base="run", path=str(spring))
    return run_train(root, tracker, **SHORT, **changes)


def three(names):
    rows = [stripes([8, 6, 5], "train", 20), stripes([3] * 3, "validation", 21)]
    return [*rows, stripes([3] * 3, "test", 22)], names


def test_classes_of_the_base_are_found_by_name_and_new_ones_told(root, spring, recording_tracker):
    rows, names = three(("columns", "dots", "rows"))
    train_classes(root, rows, names, spring, recording_tracker)
    assert any(
        "classes known to the base: columns, rows; new: dots" in note
        for note in recording_tracker.notes
    )


def test_renamed_classes_are_mapped(root, spring, recording_tracker):
    rows, names = three(("lines", "dots", "rows"))
    train_classes(root, rows, names, spring, recording_tracker, class_map={"lines": "columns"})
    notes = "\n".join(recording_tracker.notes)
    assert "classes known to the base: lines, rows; new: dots" in notes
    base = read_base(root / "pretrain" / "base")
    assert base.classes == ("rows", "columns")
    kept = json.loads((root / "train" / "class_sources.json").read_text())
    assert kept == {"lines": "columns", "rows": "rows"}


def test_classes_that_the_base_has_not_are_refused(root, spring, recording_tracker):
    rows, names = three(("a", "b", "c"))
    with pytest.raises(InputError, match="has none of our classes: its own are rows, columns"):
        train_classes(root, rows, names, spring, recording_tracker)
    with pytest.raises(InputError, match="class_map: 'stars' is no class of spring: rows, columns"):
        train_classes(root, rows, names, spring, recording_tracker, class_map={"a": "stars"})
    with pytest.raises(InputError, match="class_map: 'd' is none of our classes: a, b, c"):
        train_classes(root, rows, names, spring, recording_tracker, class_map={"d": "rows"})


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_run_that_saw_what_is_held_out_now_is_refused(root, spring, split):
    training = parts()[0]
    moved = replace(training.take([0, 12]), splits=(split,) * 2)
    rows = [training.take(np.delete(np.arange(15), [0, 12])), moved, stripes([0, 3], "train", 30)]
    write_prepare(root / "prepare", [*rows, *parts()[1:]])
    run_pretrain(root, base="run", path=str(spring))
    with pytest.raises(
        InputError, match=r"the base \(run: spring\) was trained on 2 images that are test or val"
    ):
        run_train(root, **SHORT)
    assert read_manifest(root / "train") is None


def test_a_later_generation_knows_all_that_those_before_it_saw(root, spring, tmp_path):
    # The first run saw its rows; the second starts from it, with other rows.
    summer = tmp_path / "summer"
    others = [stripes([6, 6], "train", 40), *parts()[1:]]
    write_run(summer, others, base={"base": "run", "path": str(spring)}, **SHORT)
    first = read_ids(spring / "prepare" / "dataset", ("train",))
    second = read_ids(summer / "prepare" / "dataset", ("train",))
    assert (summer / "train" / "base_ids.txt").read_text().split() == sorted(first)
    assert import_run(summer).training_ids == tuple(sorted({*first, *second}))
    # In the third, a row of the first is a test row: the second never had it, and still it counts.
    moved = replace(parts()[0].take([1]), splits=("test",))
    rows = [stripes([6, 6], "train", 50), moved, *parts()[1:]]
    write_prepare(root / "prepare", rows)
    run_pretrain(root, base="run", path=str(summer))
    with pytest.raises(InputError, match=r"\(run: summer\) was trained on 1 images that are test"):
        run_train(root, **SHORT)
    # Where the list was lost, it is said that nobody knows.
    copy = tmp_path / "copy"
    shutil.copytree(summer / "train", copy / "train")
    (copy / "train" / "base_ids.txt").unlink()
    assert import_run(copy).training_ids is None


def test_another_schedule_than_the_base_had_is_told(root, spring, recording_tracker):
    run_pretrain(root, base="run", path=str(spring))
    run_train(root, recording_tracker, **SHORT, schedule="linear", prediction="noise")
    notes = "\n".join(recording_tracker.notes)
    assert "the base was trained with schedule cosine, and train.schedule is linear" in notes
    assert "the base was trained with prediction velocity, and train.prediction is noise" in notes


def test_steps_follow_the_number_of_images_and_the_base():
    assert [train.auto_steps(n, False) for n in (10, 246, 10_000)] == [400, 615, 4000]
    assert [train.auto_steps(n, True) for n in (10, 246, 10_000)] == [200, 205, 1333]


# The weaker network of autoguidance

GUIDED = {"steps": 12, "checks": 6, "check_images": 0, "checkpoint_every_steps": 2}


def guided(root, out, tracker=None, **changes):
    return run_train(root, tracker, out=out, **{**GUIDED, **changes})


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """The same training with each guide."""
    root = tmp_path_factory.mktemp("guides")
    write_prepare(root / "prepare", parts())
    run_pretrain(root)
    kinds = ("none", "earlier", "smaller")
    return {kind: (root / kind, guided(root, root / kind, guide=kind)) for kind in kinds}


def test_a_guide_lies_in_the_generator_and_counts_in_its_digest(guides):
    plain, _ = guides["none"]
    device = torch.device("cpu")
    generator = load_generator(plain / "generator", device)
    assert (generator.weaker, guides["none"][1].guide) == (None, None)
    assert generator.spec.null_class_trained
    assert len({summary.generator_digest for _, summary in guides.values()}) == 3
    for kind in ("earlier", "smaller"):
        folder, summary = guides[kind]
        found = load_generator(folder / "generator", device)
        assert found.digest == summary.generator_digest
        assert not found.weaker.training
        # The network itself is the same with and without a guide.
        assert (folder / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
        names = {name for name in read_manifest(folder).files if name.startswith("g")}
        assert names == {
            f"generator/{inner}{file}"
            for inner in ("", "guide/")
            for file in ("config.json", WEIGHTS.rpartition("/")[2])
        } | {"generator/generator.json"}
        assert verify(folder).problems == []
        assert import_run(folder).digest == import_run(plain).digest


def test_the_earlier_guide_is_this_network_of_an_earlier_check(guides):
    folder, summary = guides["earlier"]
    found = load_generator(folder / "generator", torch.device("cpu"))
    kept = summary.kept_step
    assert kept > 2
    step = min(range(2, kept, 2), key=lambda one: abs(one - kept / 4))
    assert summary.guide == f"this network after {step} of the {kept} steps that were kept"
    assert found.weaker.config["block_out_channels"] == found.model.config["block_out_channels"]
    assert not torch.equal(found.weaker.conv_in.weight, found.model.conv_in.weight)


def test_the_smaller_guide_is_narrower_where_it_can_be(root, recording_tracker):
    summary = run_train(root, recording_tracker, **SHORT, guide="smaller", base_channels=32)
    found = load_generator(root / "train" / "generator", torch.device("cpu"))
    assert tuple(found.model.config["block_out_channels"]) == (32, 64)
    assert tuple(found.weaker.config["block_out_channels"]) == (16, 32)
    steps = max(1, round(summary.kept_step / 4))
    assert summary.guide == f"a network of widths 16, 32, trained for {steps} steps"
    assert f"train: guide: {summary.guide}" in recording_tracker.notes


@pytest.mark.parametrize(("kind", "task", "done"), [
    ("earlier", "train", 11), ("smaller", "train", 11), ("smaller", "guide", 2),
])  # fmt: skip
def test_a_killed_training_gives_the_same_generator_with_its_guide(
    guides, tmp_path, kind, task, done
):
    class Killer(NullTracker):
        def progress(self, current, reached, total, unit):
            if (current, reached) == (task, done):
                raise KeyboardInterrupt

    folder, _ = guides[kind]
    out = tmp_path / kind
    with pytest.raises(KeyboardInterrupt):
        guided(folder.parent, out, Killer(), guide=kind)
    assert not out.exists()
    guided(folder.parent, out, guide=kind)
    assert read_manifest(out) == read_manifest(folder)


def test_without_an_earlier_check_there_is_no_earlier_guide(root, recording_tracker):
    summary = run_train(root, recording_tracker, steps=6, checks=1, check_images=0, guide="earlier")
    assert summary.guide.startswith("none: no check lies before the kept step 6")
    assert "raise train.checks" in recording_tracker.notes[-1]
    assert load_generator(root / "train" / "generator", torch.device("cpu")).weaker is None


def test_adapters_are_folded_into_the_guide_as_well(root, spring):
    run_pretrain(root, base="run", path=str(spring))
    run_train(root, **SHORT, trainable="lora", lora_rank=2, guide="earlier", ema_length=0.1)
    found = load_generator(root / "train" / "generator", torch.device("cpu"))
    if found.weaker is not None:  # kept at the last of two checks
        own, other = found.model.state_dict(), found.weaker.state_dict()
        assert own.keys() == other.keys()
        assert torch.equal(own["conv_in.weight"], other["conv_in.weight"])


def test_a_null_class_that_was_not_trained_is_told_to_samplers(root):
    run_train(root, **SHORT, label_dropout=0.0)
    spec = load_generator(root / "train" / "generator", torch.device("cpu")).spec
    assert not spec.null_class_trained
