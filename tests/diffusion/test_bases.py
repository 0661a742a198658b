import dataclasses
import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file, save_file

from pipeline.diffusion.base_files import CONFIG, WEIGHTS
from pipeline.diffusion.base_sources import import_folder, import_hub, import_run
from pipeline.diffusion.bases import CLASS_ROWS, pool_base, read_base, save_base
from pipeline.diffusion.starting import start_from
from pipeline.errors import InputError
from pipeline.hashing import digest_lines
from pipeline.seeds import seeded_initialisers

INDEX = f"{WEIGHTS}.index.json"
OUTER = ("conv_in.weight", "conv_out.bias", "conv_out.weight")


def network(seed=0, **changes):
    config = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
    }
    with seeded_initialisers(seed, "test"):
        return UNet2DModel(**config | changes)


def save_network(folder, **changes):
    network(**changes).save_pretrained(folder, safe_serialization=True)
    return folder


def save_run(root, classes=("cat", "dog"), ids=("b1", "a0")):
    generator = root / "train" / "generator"
    save_network(generator, num_class_embeds=len(classes) + 1)
    spec = {
        "classes": list(classes),
        "image_size_px": 8,
        "schedule": "cosine",
        "prediction": "velocity",
        "training_rows_digest": digest_lines(ids),
        "something_of_tomorrow": 1,
    }
    (generator / "generator.json").write_text(json.dumps(spec))
    (generator.parent / "training_ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return root


def start(base, classes=("cat", "dog"), **changes):
    arguments = {"image_size_px": 8, "image_mode": "RGB", "class_map": {}, "dropout": 0.1}
    return start_from(base, classes=classes, **{**arguments, "seed": 3} | changes)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, folder / WEIGHTS, metadata={})


@pytest.fixture
def folder(tmp_path):
    return save_network(tmp_path / "horses")


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "spring")


@pytest.fixture
def pool():
    model = network(num_class_embeds=1)
    return pool_base(
        model, source="pool", schedule="cosine", prediction="velocity", training_ids=["b", "a", "b"]
    )


# Sources


def test_a_diffusers_folder_is_read_with_nothing_known_of_it(folder):
    base = import_folder(folder)
    assert (base.kind, base.source) == ("folder", "horses")
    assert (base.classes, base.null_label, base.schedule, base.prediction) == (None,) * 4
    assert base.training_ids is None
    state = network().state_dict()
    assert base.tensors.keys() == state.keys()
    assert all(torch.equal(base.tensors[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"beta_schedule": "linear"}, ("linear", "noise")),
        (
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
            ("cosine", "velocity"),
        ),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            ("scaled_linear betas, 0.00085 to 0.012, 1000 steps", "noise"),
        ),
        ({"beta_schedule": "linear", "trained_betas": [0.1]}, ("betas of its own", "noise")),
        ({"_class_name": "ScoreSdeVeScheduler"}, (None, None)),
    ],
)
def test_a_pipeline_folder_gives_its_unet_and_what_its_scheduler_says(
    tmp_path, scheduler, expected
):
    save_network(tmp_path / "pipe" / "unet")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "pipe" / "scheduler").mkdir()
    path = tmp_path / "pipe" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler))
    base = import_folder(tmp_path / "pipe")
    assert base.source == "pipe"
    assert (base.schedule, base.prediction) == expected
    path.write_text('{"beta_schedule": ["linear"]}')
    with pytest.raises(InputError, match=r"scheduler_config\.json: .* is no text"):
        import_folder(tmp_path / "pipe")


@pytest.mark.parametrize("inner", ["", "train", "train/generator"])
def test_a_run_is_found_from_any_of_its_folders(run, inner):
    base = import_run(run / inner)
    assert (base.kind, base.source) == ("run", "spring")
    assert (base.classes, base.null_label) == (("cat", "dog"), 2)
    assert (base.schedule, base.prediction) == ("cosine", "velocity")
    assert base.training_ids == ("a0", "b1")


def test_a_run_without_its_list_of_images_does_not_know_them(run):
    (run / "train" / "training_ids.txt").unlink()
    assert import_run(run).training_ids is None


def test_a_folder_that_replenish_wrote_keeps_what_is_known_of_it(run, pool, tmp_path):
    assert import_folder(run / "train" / "generator").kind == "run"
    save_base(tmp_path / "base", pool)
    base = import_folder(tmp_path / "base")
    assert (base.kind, base.training_ids, base.digest) == ("pool", ("a", "b"), pool.digest)


def test_the_hub_is_a_download_and_a_folder(folder, monkeypatch):
    asked = {}

    def download(repo, *, revision, local_dir, allow_patterns):
        asked.update(repo=repo, revision=revision, local_dir=local_dir, patterns=allow_patterns)
        for name in (CONFIG, WEIGHTS):
            Path(local_dir, name).write_bytes((folder / name).read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    base = import_hub("some-one/horses@v1.0")
    assert (asked["repo"], asked["revision"]) == ("some-one/horses", "v1.0")
    assert not Path(asked["local_dir"]).exists()
    assert (base.kind, base.source) == ("hub", "some-one/horses@v1.0")
    assert base.digest == import_folder(folder).digest
    assert not any(pattern.startswith("*") for pattern in asked["patterns"])
    # A fault of the files names the id, not the temporary folder that is gone.
    (folder / CONFIG).write_text("[]")
    with pytest.raises(InputError, match=r"^some-one/horses/config\.json: holds a list"):
        import_hub("some-one/horses")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("404: no such repository")])
def test_a_failed_download_says_how_to_do_without_a_network(monkeypatch, error):
    def download(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"^a/b: cannot be .*download it on a connected machine"):
        import_hub("a/b")


@pytest.mark.parametrize("name", ["horses", "a/b/c", "a/..", "https://x/y", "a/b@", "/a/b"])
def test_what_is_no_hub_id_is_not_asked_for(name):
    with pytest.raises(InputError, match="not a hub id; write owner/name"):
        import_hub(name)


def test_shards_are_put_together(folder):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    whole = import_folder(folder)
    for part in ("part-0.safetensors", "part-1.safetensors"):
        save_file({k: v for k, v in tensors.items() if places[k] == part}, folder / part)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert import_folder(folder).digest == whole.digest
    (folder / "part-1.safetensors").write_bytes((folder / "part-0.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"part-1\.safetensors: corrupt: .* occurs twice"):
        import_folder(folder)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"part-1\.safetensors: missing"):
        import_folder(folder)
    (folder / INDEX).write_text('{"weight_map": {"x": "../out.safetensors"}}')
    with pytest.raises(InputError, match="not a path inside"):
        import_folder(folder)
    (folder / INDEX).write_text('{"weight_map": ["x"]}')
    with pytest.raises(InputError, match=r"index\.json: no weight_map"):
        import_folder(folder)
    (folder / INDEX).write_text('{"weight_map": {"x": "weights.bin"}}')
    with pytest.raises(InputError, match=r"must list \*\.safetensors files alone"):
        import_folder(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(folder, dtype):
    rewrite_weights(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    base = import_folder(folder)
    assert {value.dtype for value in base.tensors.values()} == {torch.float32}
    assert torch.allclose(base.tensors["conv_in.weight"], network().conv_in.weight, atol=1e-2)


def test_the_attention_names_of_old_diffusers_are_understood(folder):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    digest = import_folder(folder).digest

    def rename(tensors):
        for name in list(tensors):
            value = tensors.pop(name)
            for new, before in old.items():
                name = name.replace(new, before)
            tensors[name] = value
        assert any(".proj_attn." in name for name in tensors)

    rewrite_weights(folder, rename)
    assert import_folder(folder).digest == digest


# The layout


def test_a_base_comes_back_as_it_was_in_the_same_bytes(run, pool, folder, tmp_path):
    for i, base in enumerate((import_run(run), pool, import_folder(folder))):
        one, two = tmp_path / f"{i}-one", tmp_path / f"{i}-two"
        save_base(one, base)
        save_base(two, base)
        found = read_base(one)
        assert found is not None
        for field in dataclasses.fields(base):
            if field.name != "tensors":
                assert getattr(found, field.name) == getattr(base, field.name)
        assert all(torch.equal(found.tensors[k], v) for k, v in base.tensors.items())
        files = sorted(path.name for path in one.iterdir())
        known = ["training_ids.txt"] * (base.training_ids is not None)
        assert files == sorted(["base.json", CONFIG, WEIGHTS, *known])
        assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
        UNet2DModel.from_pretrained(one, use_safetensors=True, local_files_only=True)


def test_no_base_json_is_no_base(folder, tmp_path):
    assert read_base(folder) is None
    assert read_base(tmp_path / "nowhere") is None


def test_the_digest_follows_the_weights_and_the_config(folder, tmp_path):
    digest = import_folder(folder).digest
    assert import_folder(save_network(tmp_path / "same")).digest == digest
    assert import_folder(save_network(tmp_path / "seed", seed=1)).digest != digest
    assert import_folder(save_network(tmp_path / "act", act_fn="relu")).digest != digest


def break_base(folder, name):
    if name == "weights":
        rewrite_weights(folder, lambda t: t["conv_in.bias"].add_(1))
    elif name == "list":
        (folder / "base.json").write_text("[1]")
    elif name == "large":
        (folder / "base.json").write_text(" " * (1 << 20) + "{}")
    elif name == "ids":
        (folder / "training_ids.txt").write_text("z\n")
    elif name == "no ids":
        (folder / "training_ids.txt").unlink()
    else:
        rewrite(folder / "base.json", **{name: {"kind": "magic", "null_label": 9}.get(name, 1)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights", "changed since base.json was written"),
        ("list", r"base\.json: damaged \(.*object"),
        ("large", r"base\.json: more than 1 MiB"),
        ("kind", r"base\.json: damaged \(kind: "),
        ("extra", r"base\.json: damaged \(extra: "),
        ("classes", r"base\.json: damaged \(classes: "),
        ("null_label", r"base\.json: damaged: its classes do not fit the 1 rows"),
        ("ids", r"training_ids\.txt: not the images that these weights saw"),
        ("no ids", r"no training_ids\.txt"),
    ],
)
def test_a_damaged_base_is_named(pool, tmp_path, name, message):
    save_base(tmp_path / "base", pool)
    break_base(tmp_path / "base", name)
    with pytest.raises(InputError, match=message):
        read_base(tmp_path / "base")


# What is refused


def test_no_folder_and_no_config(tmp_path):
    for reader in (import_folder, import_run):
        with pytest.raises(InputError, match=r"nowhere: not a folder; set pretrain.path"):
            reader(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json; give the folder that diffusers"):
        import_folder(tmp_path)
    with pytest.raises(InputError, match=r"no generator\.json in it; give the artifacts folder"):
        import_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, r"another architecture \(UNet2DConditionModel\)"),
        ({"_class_name": ["UNet2DModel"]}, "another architecture"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type fourier"),
        ({"layers_per_block": 10**9}, r"config\.json: diffusers cannot build it"),
        ({"layers_per_block": "two"}, r"config\.json: diffusers cannot build it"),
        ({"block_out_channels": 8}, r"config\.json: diffusers cannot build it"),
        ({"block_out_channels": ["8", "16"]}, r"config\.json: diffusers cannot build it \(Type"),
        ({"block_out_channels": [8]}, "same number of `block_out_channels`"),
        ({"down_block_types": {"a": 1}}, r"config\.json: diffusers cannot build it"),
        ({"act_fn": "bang"}, r"config\.json: diffusers cannot build it"),
        ({"norm_num_groups": 0}, r"config\.json: diffusers cannot build it"),
        ({"num_class_embeds": 10**9}, "billion parameters, more than 8 GiB"),
        ({"num_class_embeds": 10**30}, r"config\.json: diffusers cannot build it"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(folder, changes, message):
    rewrite(folder / CONFIG, **changes)
    with pytest.raises(InputError, match=message):
        import_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds a list where an object belongs"),
        ("{", "no JSON"),
        ('{"dropout": NaN}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\x00\udcff", "no JSON"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "more than 1 MiB"),
    ],
)
def test_hostile_json_is_an_input_error(folder, text, message):
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"config\.json: {message}"):
        import_folder(folder)


@pytest.mark.parametrize(
    "changes", [{"classes": "cat"}, {"classes": []}, {"classes": ["a"]}, {"classes": ["a", "a"]}]
)
def test_a_damaged_run_is_named(run, changes):
    rewrite(run / "train" / "generator" / "generator.json", **changes)
    with pytest.raises(InputError, match=r"generator\.json: damaged.*train that run again"):
        import_run(run)


def test_a_run_with_the_wrong_list_of_images_is_refused(run):
    (run / "train" / "training_ids.txt").write_bytes(b"a0\n\xff\n")
    with pytest.raises(InputError, match=r"training_ids\.txt: not the images"):
        import_run(run)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "x.pt", "x.pth", "x.ckpt"])
def test_weights_that_are_only_pickles_are_refused_unopened(folder, tmp_path, name):
    marker = tmp_path / "opened"
    pickle.loads(pickle.dumps(Bomb(marker)))
    marker.unlink()
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    message = rf"weights only as pickles \({name}\), never opened; .*safe_serialization=True"
    with pytest.raises(InputError, match=message):
        import_folder(folder)
    (folder / name).rename(folder / WEIGHTS)
    with pytest.raises(InputError, match=r"safetensors: corrupt, or no safetensors file"):
        import_folder(folder)
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\0" * 60, b"\xff" * 40])
def test_corrupt_weights_are_named(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors: corrupt"):
        import_folder(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors weights; convert"):
        import_folder(folder)


def test_one_file_of_another_name_will_do_but_not_two(folder):
    digest = import_folder(folder).digest
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    assert import_folder(folder).digest == digest
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(InputError, match="2 files of weights and none is diffusion_pytorch"):
        import_folder(folder)


def test_broken_numbers_are_refused(folder):
    rewrite_weights(folder, lambda t: t["conv_in.bias"].fill_(float("inf")))
    with pytest.raises(InputError, match=r"conv_in\.bias holds non-finite values"):
        import_folder(folder)
    rewrite_weights(folder, lambda t: t.update({"conv_in.bias": torch.ones(8, dtype=torch.int8)}))
    with pytest.raises(InputError, match=r"conv_in\.bias is torch\.int8, not a float"):
        import_folder(folder)


def test_weights_beyond_the_limit_are_not_read(folder, monkeypatch):
    monkeypatch.setattr("pipeline.diffusion.base_files.WEIGHTS_BYTES", 1 << 18)
    rewrite(folder / CONFIG, block_out_channels=[8, 8])
    rewrite_weights(folder, lambda t: t.update(large=torch.zeros(1 << 17)))
    with pytest.raises(InputError, match="GiB of weights, more than"):
        import_folder(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "blob")
    (folder / name).symlink_to(tmp_path / "blob")
    with pytest.raises(InputError, match="a link leads out of"):
        import_folder(folder)


# Where a network starts


def test_an_unconditional_base_is_its_old_self_at_first(folder):
    model, fit = start(import_folder(folder), dropout=0.0)
    assert fit.reinitialised == (CLASS_ROWS,)
    assert (fit.unused, fit.classes_mapped, fit.classes_new) == ((), {}, ("cat", "dog"))
    assert model.config.num_class_embeds == 3
    images, time = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 7
    with torch.no_grad():
        told = model(images, time, class_labels=torch.tensor([2])).sample
        assert torch.allclose(told, network()(images, time).sample, atol=1e-6)


def test_a_stranger_with_classes_gives_all_but_the_classes(tmp_path):
    save_network(tmp_path, num_class_embeds=10)
    model, fit = start(import_folder(tmp_path))
    assert fit.reinitialised == fit.unused == (CLASS_ROWS,)
    rows = model.class_embedding.weight.detach()
    assert not rows[-1].any()  # no class: the network that it was
    assert 0.6 < rows[:-1].std() < 1.5
    save_network(tmp_path / "identity", class_embed_type="timestep")
    model, fit = start(import_folder(tmp_path / "identity"))
    assert fit.reinitialised == (CLASS_ROWS,)
    assert all(name.startswith("class_embedding.linear") for name in fit.unused)
    assert model.config.class_embed_type is None


def test_another_size_and_mode_keep_all_that_fits(folder):
    model, fit = start(import_folder(folder), image_size_px=12, image_mode="L")
    assert fit.reinitialised == (CLASS_ROWS, *OUTER)
    assert fit.unused == OUTER
    assert (model.config.sample_size, model.config.in_channels, model.config.dropout) == (
        12,
        1,
        0.1,
    )
    images = torch.zeros(2, 1, 12, 12)
    assert model(images, 5, class_labels=torch.tensor([0, 2])).sample.shape == images.shape


def test_grey_to_colour(tmp_path):
    base = import_folder(save_network(tmp_path, in_channels=1, out_channels=1))
    model, fit = start(base)
    assert fit.unused == OUTER
    assert model(torch.zeros(1, 3, 8, 8), 0, class_labels=torch.tensor([0])).sample.shape[1] == 3


def test_a_pool_gives_every_class_its_null_row(pool):
    model, fit = start(pool)
    rows, null = model.class_embedding.weight.detach(), pool.tensors[CLASS_ROWS][0]
    assert CLASS_ROWS in fit.loaded
    assert (fit.reinitialised, fit.classes_new) == ((), ("cat", "dog"))
    assert torch.equal(rows[2], null)
    for row in rows[:2]:
        assert 0.6 < (row - null).std() < 1.5  # apart, or they would long be one class
    assert not torch.equal(rows[0], rows[1])


def test_classes_of_a_run_are_found_by_name(run):
    base = import_run(run)
    theirs = base.tensors[CLASS_ROWS]
    model, fit = start(base, ("hound", "cat", "owl"), class_map={"hound": "dog"})
    rows = model.class_embedding.weight.detach()
    assert torch.equal(rows[0], theirs[1])
    assert torch.equal(rows[1], theirs[0])
    assert 0.6 < (rows[2] - theirs[2]).std() < 1.5
    assert torch.equal(rows[3], theirs[2])
    assert fit.classes_mapped == {"cat": "cat", "hound": "dog"}
    assert fit.classes_new == ("owl",)
    assert fit.reinitialised == ()
    # A class that is gone, and one more that is new: the new one starts where it did.
    model, fit = start(base, ("owl", "cat", "ox"))
    assert torch.equal(model.class_embedding.weight[0], rows[2])
    assert fit.classes_new == ("owl", "ox")


def test_a_start_depends_on_the_seed_alone(folder):
    base = import_folder(folder)
    before = torch.random.get_rng_state()
    one, two, other = (start(base, image_mode="L", seed=s)[0].state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv_in.weight"], other["conv_in.weight"])
    assert not torch.equal(one[CLASS_ROWS], other[CLASS_ROWS])
    # The network owns its weights: training it leaves the base as it is.
    assert one["mid_block.resnets.0.conv1.weight"].data_ptr() != (
        base.tensors["mid_block.resnets.0.conv1.weight"].data_ptr()
    )


@pytest.mark.parametrize(
    ("classes", "class_map", "message"),
    [
        (("cat",), {"lynx": "dog"}, "class_map: 'lynx' is none of our classes: cat"),
        (("cat",), {"cat": "puma"}, "class_map: 'puma' is no class of spring: cat, dog"),
        (("a", "b"), {}, "spring has none of our classes: its own are cat, dog, ours a, b;"),
        (tuple("abcdefghijkl"), {}, "ours a, b, c, d, e, f, g, h, i, j and 2 more; say in class_m"),
    ],
)
def test_class_names_that_do_not_meet_are_named(run, classes, class_map, message):
    with pytest.raises(InputError, match=message):
        start(import_run(run), classes, class_map=class_map)


def test_a_class_map_needs_a_base_with_names(folder):
    with pytest.raises(InputError, match="horses does not know its classes by name"):
        start(import_folder(folder), class_map={"cat": "dog"})


def test_a_side_that_the_levels_do_not_divide_is_refused_with_those_near(tmp_path):
    save_network(
        tmp_path / "deep",
        block_out_channels=[8] * 3,
        down_block_types=["DownBlock2D"] * 3,
        up_block_types=["UpBlock2D"] * 3,
    )
    base = import_folder(tmp_path / "deep")
    with pytest.raises(InputError, match=r"deep: its 3 levels .* by 4, not 10 px; .* 8 or 12 px"):
        start(base, image_size_px=10)
    with pytest.raises(InputError, match=r"set the image size to 4 px"):
        start(base, image_size_px=2)


def test_weights_of_another_network_are_no_base(folder):
    rewrite_weights(
        folder,
        lambda t: t.update({k: torch.zeros(2) for k in t if not k.startswith("time_embedding")}),
    )
    with pytest.raises(InputError, match="horses: its weights fit 0% of the network"):
        start(import_folder(folder))


def test_a_network_that_builds_but_does_not_run_is_refused(tmp_path):
    # Its skip connections are made for colour alone.
    save_network(
        tmp_path / "skip",
        block_out_channels=[32, 32],
        down_block_types=["SkipDownBlock2D"] * 2,
        up_block_types=["SkipUpBlock2D"] * 2,
    )
    with pytest.raises(InputError, match="skip: its UNet2DModel does not run on 1 x 8 x 8 images"):
        start(import_folder(tmp_path / "skip"), image_mode="L")
