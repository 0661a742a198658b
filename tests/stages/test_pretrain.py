"""The stage pretrain: each source of a base, what it writes, and when it is up to date."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file
from tiny_store import (
    NETWORK,
    parts,
    pool,
    pretrain_params,
    run_pretrain,
    stripes,
    write_prepare,
    write_run,
)

from pipeline.data.store import UNLABELLED, read_ids, read_info, read_samples
from pipeline.diffusion.base_files import WEIGHTS
from pipeline.diffusion.base_sources import import_folder
from pipeline.diffusion.bases import read_base
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest, write_manifest
from pipeline.hashing import digest_file, digest_json
from pipeline.recipe.settings import Settings, write_settings
from pipeline.seeds import seeded_initialisers
from pipeline.stages import pretrain
from pipeline.tracking.tracker import NullTracker

POOL = pool(40)


def save_network(folder, **changes):
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
    }
    with seeded_initialisers(0, "test"):
        UNet2DModel(**config | changes).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def root(tmp_path):
    write_prepare(tmp_path / "prepare", [*parts(), POOL])
    return tmp_path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrained")
    write_prepare(root / "prepare", [*parts(), POOL])
    return root, run_pretrain(root, base="pool")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run."""
    return write_run(tmp_path_factory.mktemp("runs") / "spring", steps=4, checks=1, check_images=0)


# No base


def test_none_leaves_no_base_and_says_so(root):
    summary = run_pretrain(root)
    assert summary.model_dump() == {
        "base": "none",
        "source": None,
        "base_digest": None,
        "images": 0,
        "steps": 0,
        "parameters": 0,
        "labelled_images": 0,
        "heldout_loss": None,
    }
    files = list(read_manifest(root / "pretrain").files)
    assert files == ["base_images/dataset.json", "summary.json"]
    assert read_base(root / "pretrain" / "base") is None


# What the recipe chose


@pytest.mark.parametrize("chosen", ["none", "pool"])
def test_auto_does_what_the_recipe_chose(tmp_path, pretrained, chosen):
    write_prepare(tmp_path / "prepare", [*parts(), POOL], settings=Settings(base=chosen))
    summary = run_pretrain(tmp_path, base="auto")
    assert summary.base == chosen
    if chosen == "pool":
        assert summary == pretrained[1]


def test_what_is_asked_for_goes_before_the_recipe(tmp_path):
    write_prepare(tmp_path / "prepare", [*parts(), POOL], settings=Settings(base="pool"))
    assert run_pretrain(tmp_path, base="none").base == "none"


def test_a_recipe_that_is_not_there_is_named(root):
    (root / "prepare" / "settings.json").unlink()
    with pytest.raises(InputError, match=r"settings\.json: missing; run `replenish prepare"):
        run_pretrain(root, base="auto")


def test_the_choice_makes_it_stale_and_its_reasons_do_not(root):
    run_pretrain(root, base="auto")
    assert is_current(root, base="auto")
    (root / "prepare" / "recipe.json").write_text("{}")
    write_manifest(root / "prepare", "prepare", "key", {}, {})
    assert is_current(root, base="auto")
    write_settings(root / "prepare", Settings(base="pool"))
    write_manifest(root / "prepare", "prepare", "key", {}, {})
    assert not is_current(root, base="auto")


# The pool


def test_the_pool_trains_a_base_without_labels(pretrained, root):
    folder, summary = pretrained[0] / "pretrain", pretrained[1]
    assert (summary.base, summary.source) == ("pool", "55 unlabelled images")
    assert (summary.images, summary.steps) == (15 + 40, 20)
    assert 0 < summary.heldout_loss < 2
    base = read_base(folder / "base")
    assert base.digest == summary.base_digest
    assert (base.schedule, base.prediction) == ("cosine", "velocity")
    assert (base.classes, base.null_label) == (None, 0)
    assert summary.parameters == sum(tensor.numel() for tensor in base.tensors.values())
    ids = read_ids(pretrained[0] / "prepare" / "dataset", ("train", "pool"))
    assert base.training_ids == tuple(sorted(ids))
    held = read_ids(pretrained[0] / "prepare" / "dataset", ("validation", "test"))
    assert not set(base.training_ids) & set(held)
    names = set(read_manifest(folder).files)
    assert names >= {
        "base/base.json",
        "base/config.json",
        f"base/{WEIGHTS}",
        "base/training_ids.txt",
        "checks.csv",
        "curve.csv",
        "lengths.csv",
        "samples/step-000020.png",
        "summary.json",
    }
    assert not any("state" in name or "snapshot" in name for name in names)
    model = UNet2DModel.from_pretrained(folder / "base", use_safetensors=True)
    assert model.config["num_class_embeds"] == 1


def test_the_base_is_not_what_it_started_from(pretrained, root):
    run_pretrain(root, base="pool", steps=1)
    first = load_file(root / "pretrain" / "base" / WEIGHTS)
    last = load_file(pretrained[0] / "pretrain" / "base" / WEIGHTS)
    assert first.keys() == last.keys()
    assert all(not torch.equal(first[name], last[name]) for name in first)


def test_the_same_pool_gives_the_same_digest(pretrained, root, recording_tracker):
    run_pretrain(root, recording_tracker, base="pool")
    assert read_manifest(root / "pretrain") == read_manifest(pretrained[0] / "pretrain")
    steps = [call for call in recording_tracker.progress_calls if call[0] == "pretrain"]
    assert steps[-1] == ("pretrain", 20, 20, "steps")
    assert recording_tracker.last_metric("pretrain/loss") > 0


def test_an_interrupted_base_is_finished_with_the_same_digest(pretrained, root):
    class Killer(NullTracker):
        def progress(self, task, done, total, unit):
            if done == 13:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pretrain(root, Killer(), base="pool", checkpoint_every_steps=6)
    assert list((root / ".work" / "pretrain").rglob("state.safetensors"))
    run_pretrain(root, base="pool", checkpoint_every_steps=6)
    found = read_manifest(root / "pretrain").files
    expected = read_manifest(pretrained[0] / "pretrain").files
    assert found == expected


@pytest.mark.parametrize(("count", "enough"), [(16, False), (17, True)])
def test_a_base_needs_images(tmp_path, count, enough):
    # 15 training images, and a repeated one that is no further image.
    repeat = parts()[0].take([0])
    write_prepare(tmp_path / "prepare", [*parts(), repeat, pool(count)])
    if enough:
        assert run_pretrain(tmp_path, base="pool", steps=1).images == 32
        return
    with pytest.raises(InputError, match=r"pretrain: 31 images .*at least 32; .*prepare.pool_path"):
        run_pretrain(tmp_path, base="pool", steps=1)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_held_out_image_in_the_pool_is_a_hard_error(tmp_path, split):
    leaked = parts()[{"validation": 1, "test": 2}[split]].take([0, 1, 2])
    rows = [*parts(), POOL, relabelled(leaked, "pool", UNLABELLED)]
    write_prepare(tmp_path / "prepare", rows)
    with pytest.raises(StageError, match="3 test or validation images among the unlabelled ones"):
        run_pretrain(tmp_path, base="pool")
    assert read_manifest(tmp_path / "pretrain") is None


def relabelled(rows, split, label):
    return replace(rows, splits=(split,) * len(rows), labels=rows.labels * 0 + label)


# Imports


def test_a_diffusers_folder_is_taken_over(root):
    folder = save_network(root / "horses")
    summary = run_pretrain(root, base="folder", path=str(folder))
    assert (summary.base, summary.source, summary.images) == ("folder", "horses", 0)
    found = load_file(root / "pretrain" / "base" / WEIGHTS)
    expected = load_file(folder / WEIGHTS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_base(root / "pretrain" / "base").training_ids is None


def test_the_labelled_images_of_a_run_come_along(root, tmp_path_factory, recording_tracker):
    folder = write_run(
        tmp_path_factory.mktemp("runs") / "autumn", steps=1, checks=1, check_images=0
    )
    summary = run_pretrain(root, recording_tracker, base="run", path=str(folder))
    assert summary.labelled_images == 15
    assert any(
        "15 labelled images of that run are at hand" in one for one in recording_tracker.notes
    )
    theirs, ours = (folder / "prepare" / "dataset", root / "pretrain" / "base_images")
    assert read_info(ours).classes == ("rows", "columns")
    found, expected = read_samples(ours), read_samples(theirs, ("train",))
    assert dict(zip(found.ids, found.labels, strict=True)) == dict(
        zip(expected.ids, expected.labels, strict=True)
    )
    # A run that is prepared anew has other images, and the stage is stale.
    assert is_current(root, base="run", path=str(folder))
    write_prepare(folder / "prepare", [stripes([3, 3], "train", 5)])
    assert not is_current(root, base="run", path=str(folder))
    # The weights alone say nothing.
    assert run_pretrain(root, base="run", path=str(folder / "train")).labelled_images == 0
    assert len(read_samples(ours)) == 0


def test_a_folder_that_a_run_left_brings_no_images(root, earlier, tmp_path):
    generator = earlier / "train" / "generator"
    assert run_pretrain(root, base="folder", path=str(generator)).labelled_images == 0
    run_pretrain(root, base="run", path=str(earlier))
    based = shutil.copytree(root / "pretrain" / "base", tmp_path / "base")
    summary = run_pretrain(root, base="folder", path=str(based))
    assert (summary.base, summary.labelled_images) == ("run", 0)


def test_the_generator_of_a_run_is_taken_over(root, earlier, recording_tracker):
    summary = run_pretrain(root, recording_tracker, base="run", path=str(earlier))
    assert (summary.base, summary.source) == ("run", "spring")
    base = read_base(root / "pretrain" / "base")
    assert base.classes == ("rows", "columns")
    assert base.training_ids == tuple(sorted(read_ids(earlier / "prepare" / "dataset", ("train",))))
    assert any("base spring (run)" in note for note in recording_tracker.notes)
    # Nothing on this machine's places goes into the folder, which may be given away.
    for path in (root / "pretrain").rglob("*.json"):
        if path.name != "manifest.json":
            assert str(earlier) not in path.read_text()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("folder", r"nowhere: not a folder; set pretrain.path to that of the base"),
        ("run", "nowhere: not a folder"),
    ],
)
def test_a_base_that_is_not_there(root, base, message):
    with pytest.raises(InputError, match=message):
        run_pretrain(root, base=base, path=str(root / "nowhere"))


def test_a_run_without_a_generator(root):
    with pytest.raises(InputError, match=r"no generator\.json in it; give the artifacts folder"):
        run_pretrain(root, base="run", path=str(root / "prepare"))


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "unet.pt"])
def test_a_pickle_is_never_opened(root, name):
    folder = save_network(root / "horses")
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"pickle.*convert them on a machine that trusts the file"):
        run_pretrain(root, base="folder", path=str(folder))
    assert read_manifest(root / "pretrain") is None


def test_the_hub_is_asked_for_the_id(root, monkeypatch):
    folder, asked = save_network(root / "horses"), []
    monkeypatch.setattr(
        pretrain, "import_hub", lambda hub_id: asked.append(hub_id) or import_folder(folder)
    )
    run_pretrain(root, base="hub", hub_id="some-one/horses@v1")
    assert asked == ["some-one/horses@v1"]


# When it is up to date


def is_current(root, **changes):
    params = pretrain_params(**{"base": "pool", **changes})
    return pretrain.run.is_current(params, {"prepare": root / "prepare"}, root / "pretrain")


def rewrite_prepare(root, rows, classes=("rows", "columns")):
    shutil.rmtree(root / "prepare")
    write_prepare(root / "prepare", rows, classes)


def test_new_labels_reuse_the_base_and_another_image_does_not(pretrained, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(pretrained[0], root)
    before = read_manifest(root / "prepare")
    assert is_current(root)
    training, validation, test = parts()
    swapped = relabelled(training.take(np.arange(15)[::-1]), "train", 0)
    swapped.labels[:4] = 1
    rewrite_prepare(root, [swapped, validation, test, POOL], ("striped", "lined"))
    assert read_manifest(root / "prepare").digest != before.digest
    assert is_current(root)
    # Half of the pool was labelled meanwhile: the same images all the same.
    named = relabelled(POOL.take(range(20)), "train", 1)
    rewrite_prepare(root, [training, named, validation, test, POOL.take(range(20, 40))])
    assert is_current(root)
    # So was one of another class moved to test: it is no longer among the unlabelled ones.
    moved = relabelled(training.take([0]), "test", 0)
    rewrite_prepare(root, [training.take(range(1, 15)), moved, validation, test, POOL])
    assert not is_current(root)
    rewrite_prepare(root, [training, validation, test, POOL, pool(2, seed=77)])
    assert not is_current(root)
    rewrite_prepare(root, parts())
    assert not is_current(root)


def test_the_same_images_under_other_labels_give_the_same_base(pretrained, tmp_path):
    training, validation, test = parts()
    shuffled = relabelled(training.take(list(range(15))[::-1]), "train", 1)
    write_prepare(tmp_path / "prepare", [shuffled, validation, test, POOL])
    run_pretrain(tmp_path, base="pool")
    found, expected = (read_manifest(root / "pretrain").files for root in (tmp_path, pretrained[0]))
    assert found == expected


def test_the_key_follows_the_params_and_the_inputs_are_ids_and_settings_alone(pretrained):
    root = pretrained[0]
    assert is_current(root)
    for changes in ({"steps": 21}, {"dropout": 0.2}, {"seed": 1}, {"base": "none"}):
        assert not is_current(root, **changes)
    manifest = read_manifest(root / "pretrain")
    assert manifest.inputs == {
        f"prepare/{name}": digest_file(root / "prepare" / name)
        for name in ("unlabelled_ids.txt", "settings.json")
    }


@pytest.mark.parametrize("base", ["folder", "run"])
def test_the_files_of_an_imported_base_are_part_of_the_key(root, earlier, base):
    path = root / "imported"
    if base == "run":
        shutil.copytree(earlier, path)
    else:
        save_network(path)
    run_pretrain(root, base=base, path=str(path))
    assert is_current(root, base=base, path=str(path))
    read = path if base == "folder" else next(path.rglob("generator.json")).parent
    if base == "run":  # what else that run writes, such as its report, is not read
        (read.parent / "more.txt").write_text("more")
        assert is_current(root, base=base, path=str(path))
    (read / "more.txt").write_text("more")
    assert not is_current(root, base=base, path=str(path))
    shutil.rmtree(path)
    assert not is_current(root, base=base, path=str(path))
    assert pretrain.base_files_digest(pretrain_params(base="pool", path=str(earlier))) == ""


def test_steps_follow_the_number_of_images():
    assert [pretrain.auto_pool_steps(n) for n in (32, 2_000, 100_000)] == [400, 800, 2000]


def test_base_json_is_written_last_and_holds_the_digest_of_the_files(pretrained):
    folder = pretrained[0] / "pretrain" / "base"
    facts = json.loads((folder / "base.json").read_text())
    files = {name: digest_file(folder / name) for name in ("config.json", WEIGHTS)}
    assert facts["digest"] == digest_json(files)
    assert facts["source"] == "55 unlabelled images"
    assert stripes([1], "train", 0).ids[0] in (folder / "training_ids.txt").read_text()


def test_a_base_of_the_pool_stops_when_it_stops_to_learn(root, recording_tracker, monkeypatch):
    # A rate of next to nothing: the averaged network is as good at the first check as at the last.
    monkeypatch.setattr("pipeline.diffusion.loop.fixed_loss", lambda *arguments: 1.0)
    summary = run_pretrain(root, recording_tracker, base="pool", **{**NETWORK, "steps": 30})
    assert summary.steps == 15  # ten checks, three steps apart, the fifth being the fourth in vain
    steps = [call for call in recording_tracker.progress_calls if call[0] == "pretrain"]
    assert steps[-1] == ("pretrain", 15, 15, "steps")
