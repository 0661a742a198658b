import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.features.classifier import Batch, FitSettings, fit_classifier, predict
from pipeline.features.networks import (
    NETWORK_FILES,
    NetworkSpec,
    SmallResNet,
    add_facts,
    build_network,
    load_network,
    read_spec,
    save_network,
)

SMALL = NetworkSpec("small_cnn", None, None, 1, 3, 8, 4)
RESNET = replace(SMALL, kind="resnet")
PIXELS = replace(SMALL, kind="linear")
TIMM = replace(SMALL, kind="timm", model="test_resnet.r160_in1k", image_size_px=32)
SETTINGS = FitSettings(steps=3, learning_rate=1.0e-2, weight_decay=0.01, seed=0)


def images(spec: NetworkSpec, n: int = 4) -> np.ndarray:
    side = spec.image_size_px
    drawn = np.random.default_rng(0).integers(0, 256, (n, side, side, spec.channels))
    return drawn.astype(np.uint8)


def tensor(spec: NetworkSpec, n: int = 2) -> torch.Tensor:
    side = spec.image_size_px
    return (
        torch.rand((n, spec.channels, side, side), generator=torch.Generator().manual_seed(0))
        .mul_(2)
        .sub_(1)
    )


def train(model, spec: NetworkSpec, settings: FitSettings = SETTINGS) -> None:
    batch = Batch(tensor(spec, 6), torch.arange(6) % spec.classes)
    fit_classifier(model, lambda step: batch, settings)


def bits(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder as timm saves one for the hub, of a tiny network."""
    import timm

    folder = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = timm.create_model("test_resnet", num_classes=7)
    config = {
        "architecture": "test_resnet",
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["small_cnn", "resnet", "linear"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side_px", [8, 16, 28, 32, 64])
def test_shapes_at_every_size(kind, channels: int, side_px: int) -> None:
    spec = replace(SMALL, kind=kind, channels=channels, image_size_px=side_px)
    model = build_network(spec, 0)
    x = tensor(spec)
    features = model.features(x)
    assert features.dtype == torch.float32
    assert features.shape == (2, model.head.in_features)
    assert model(x).shape == (2, spec.classes)
    torch.testing.assert_close(model(x), model.head(model.features(x)))


@pytest.mark.parametrize(
    ("side_px", "map_px"), [(5, 5), (8, 4), (16, 4), (28, 7), (47, 12), (64, 8), (96, 6), (128, 8)]
)
def test_the_residual_network_keeps_a_map_of_a_few_pixels(side_px: int, map_px: int) -> None:
    model = SmallResNet(1, 3, 4, side_px)
    assert model.body(torch.zeros(1, 1, side_px, side_px)).shape == (1, 16, map_px, map_px)


@pytest.mark.parametrize("spec", [SMALL, RESNET, TIMM], ids=lambda spec: spec.kind)
def test_weights_depend_on_the_arguments_and_on_no_global_generator(spec: NetworkSpec) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = bits(build_network(spec, 7))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = bits(build_network(spec, 7)), bits(build_network(spec, 8))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("spec", [SMALL, RESNET, PIXELS, TIMM], ids=lambda spec: spec.kind)
def test_an_untrained_network_prefers_no_class_and_training_changes_that(spec) -> None:
    model = build_network(spec, 0)
    assert not predict(model, images(spec)).any()
    train(model, spec)
    assert predict(model, images(spec)).any()
    assert not model.training


def test_a_residual_block_starts_as_its_shortcut() -> None:
    model = build_network(RESNET, 0)
    block = model.body[3]  # after the stem, equal in shape, so its shortcut is the identity
    x = torch.rand(2, 4, 8, 8)
    model.eval()
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("spec", [SMALL, RESNET, PIXELS, TIMM], ids=lambda spec: spec.kind)
def test_a_saved_network_comes_back_with_equal_logits(spec, tmp_path: Path) -> None:
    model = build_network(spec, 3)
    train(model, spec)
    save_network(model, spec, tmp_path, {"arm": "real"})
    add_facts(tmp_path, {"classes": ["a", "b", "c"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NETWORK_FILES)
    assert read_spec(tmp_path) == spec
    found = load_network(tmp_path)
    assert not found.training
    assert equal(bits(model), bits(found))
    np.testing.assert_array_equal(predict(model, images(spec)), predict(found, images(spec)))
    described = json.loads((tmp_path / "network.json").read_text())
    assert (described["arm"], described["classes"]) == ("real", ["a", "b", "c"])


def test_the_formats_own_keys_are_not_overwritten(tmp_path: Path) -> None:
    model = build_network(PIXELS, 0)
    with pytest.raises(ValueError, match="spec is a key"):
        save_network(model, PIXELS, tmp_path, {"spec": 1})
    save_network(model, PIXELS, tmp_path, {})
    with pytest.raises(ValueError, match="format is a key"):
        add_facts(tmp_path, {"format": 1})


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("channels", [1, 3])
def test_timm_networks_from_scratch_take_small_images(model: str, channels: int) -> None:
    spec = replace(TIMM, model=model, channels=channels, image_size_px=28)
    network = build_network(spec, 0)
    assert network(tensor(spec)).shape == (2, 3)
    assert network.body.side_px in (32, 160)


def test_training_a_network_with_dropout_repeats_to_the_bit(weights, tmp_path) -> None:
    config = json.loads((weights / "config.json").read_text())
    config["model_args"] = {"drop_rate": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    spec = replace(TIMM, model=None, pretrained=str(tmp_path))
    found = []
    for noise, seed in ((1, 0), (2, 0), (3, 1)):
        torch.manual_seed(noise)
        model = build_network(spec, 0)
        train(model, spec, replace(SETTINGS, seed=seed))
        found.append(bits(model))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["timm", "linear"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_pretrained_weights_from_disk(kind, form: str, weights: Path) -> None:
    path = weights if form == "folder" else weights / "model.safetensors"
    model = "test_resnet" if form == "file" else None
    spec = replace(TIMM, kind=kind, model=model, pretrained=str(path))
    network = build_network(spec, 0)
    assert network.body.side_px == (64 if form == "folder" else 160)
    assert equal(bits(network), bits(build_network(spec, 1)))
    stored = load_file(weights / "model.safetensors")
    assert torch.equal(network.network.conv1[0].weight, stored["conv1.0.weight"])


def test_a_linear_probe_keeps_the_bits_of_its_network(weights: Path, tmp_path: Path) -> None:
    spec = replace(TIMM, kind="linear", model=None, pretrained=str(weights))
    probe = build_network(spec, 0)
    before = bits(probe)
    train(probe, spec)
    after = bits(probe)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    save_network(probe, spec, tmp_path, {})
    found = load_network(tmp_path)
    assert equal(after, bits(found))
    train(found, spec)
    assert torch.equal(found.network.conv1[0].weight, before["network.conv1.0.weight"])


def test_fine_tuning_changes_the_network(weights: Path) -> None:
    spec = replace(TIMM, model=None, pretrained=str(weights))
    network = build_network(spec, 0)
    before = bits(network)
    train(network, spec)
    assert not torch.equal(before["network.conv1.0.weight"], network.network.conv1[0].weight)


def test_images_reach_the_network_as_it_expects_them(weights: Path) -> None:
    network = build_network(replace(TIMM, model=None, pretrained=str(weights)), 0)
    black = network._prepared(torch.full((1, 1, 32, 32), -1.0))
    assert black.shape == (1, 3, 64, 64)
    torch.testing.assert_close(black, torch.full_like(black, (0 - 0.5) / 0.25))


def test_a_saved_timm_network_needs_no_pretrained_files(weights, tmp_path, monkeypatch) -> None:
    copy = tmp_path / "hub"
    copy.mkdir()
    for path in weights.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    spec = replace(TIMM, model=None, pretrained=str(copy))
    network = build_network(spec, 0)
    save_network(network, spec, tmp_path / "saved", {})
    for path in copy.iterdir():
        path.unlink()
    x = images(spec)
    np.testing.assert_array_equal(predict(network, x), predict(load_network(tmp_path / "saved"), x))


def test_a_hub_id_is_asked_for_on_the_hub(monkeypatch) -> None:
    asked = []

    def absent(name: str, file: str, revision=None) -> str:
        asked.append((name, file, revision))
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    with pytest.raises(InputError, match="someone/network@main: .*cannot be downloaded"):
        build_network(replace(TIMM, pretrained="someone/network@main"), 0)
    assert asked[0] == ("someone/network", "config.json", "main")


@pytest.mark.parametrize("path", ["some/absent.safetensors", "/absent/folder"])
def test_a_path_never_reaches_the_hub(path: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(InputError, match="no such file"):
        build_network(replace(TIMM, pretrained=path), 0)


def test_without_timm_the_command_to_install_it_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r'timm.*pip install "replenish\[encoders\]"'):
        build_network(TIMM, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mlp"}, "kind 'mlp' is unknown; use one of small_cnn"),
        ({"classes": 1}, "classes is 1; give a whole number from 2"),
        ({"channels": 2}, "channels is 2"),
        ({"image_size_px": 100_000}, "image_size_px is 100000"),
        ({"base_channels": 0}, "base_channels is 0"),
        ({"base_channels": True}, "base_channels is True"),
        ({"model": "resnet18"}, "says nothing to kind small_cnn"),
        ({"kind": "linear", "model": "resnet18"}, "a linear probe on resnet18 without weights"),
        ({"kind": "timm"}, "no model is named"),
        ({"kind": "timm", "model": "resnt18"}, "did you mean .*resnet18"),
        ({"image_size_px": 2}, "takes 3 px and more"),
    ],
)
def test_impossible_specifications_are_named(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(replace(SMALL, **changes), 0)


def edit(folder: Path, **changes) -> None:
    path = folder / "network.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved network \(it has no network\.json\)"):
        load_network(tmp_path)
    save_network(build_network(RESNET, 0), RESNET, tmp_path, {})
    good = json.loads((tmp_path / "network.json").read_text())["spec"]
    for changes, message in (
        ({"format": "other"}, r"network\.json: format 'other'"),
        ({"spec": None}, r"network\.json: damaged"),
        ({"spec": {**good, "more": 1}}, r"network\.json: damaged .*more"),
        ({"spec": {**good, "classes": "many"}}, r"network\.json: network: classes is many"),
        ({"spec": {**good, "base_channels": 1024}}, r"too few weights for the network"),
        ({"spec": {**good, "base_channels": 2}}, r"weights of another network"),
        ({"spec": {**good, "kind": "timm"}}, r"no weights and description of a timm network|timm"),
    ):
        save_network(build_network(RESNET, 0), RESNET, tmp_path, {})
        edit(tmp_path, **changes)
        with pytest.raises(InputError, match=message):
            load_network(tmp_path)
    save_network(build_network(RESNET, 0), RESNET, tmp_path, {})
    (tmp_path / "network.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(InputError, match="corrupt, or no safetensors file"):
        load_network(tmp_path)
    (tmp_path / "network.safetensors").unlink()
    with pytest.raises(InputError, match=r"network\.safetensors: no such file"):
        load_network(tmp_path)
    (tmp_path / "network.json").write_text("{")
    with pytest.raises(InputError, match=r"network\.json: no JSON"):
        read_spec(tmp_path)


def test_a_saved_timm_description_cannot_open_other_files(tmp_path: Path) -> None:
    save_network(build_network(TIMM, 0), TIMM, tmp_path, {})
    body = json.loads((tmp_path / "network.json").read_text())["timm"]
    for changes, message in (
        ({"arguments": {"checkpoint_path": "x.pth"}}, "sets checkpoint_path"),
        ({"side_px": 10**6}, "impossible size"),
        ({"std": [0, 1, 1]}, "impossible size or std"),
        ({"mean": 3}, "damaged"),
        ({"architecture": "hf-hub:a/b"}, "cannot build hf-hub:a/b|has no model"),
    ):
        edit(tmp_path, timm={**body, **changes})
        with pytest.raises(InputError, match=message):
            load_network(tmp_path)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_network(build_network(PIXELS, 0), PIXELS, folder, {})
    (folder / "network.safetensors").rename(tmp_path / "elsewhere")
    (folder / "network.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link leads out"):
        load_network(folder)


@pytest.mark.parametrize("kind", ["small_cnn", "resnet"])
@pytest.mark.parametrize("side_px", [8, 28, 64, 128])
def test_networks_trained_channels_last_have_no_strided_point_convolution(kind, side_px) -> None:
    model = build_network(replace(SMALL, kind=kind, image_size_px=side_px), 0)
    assert model.channels_last
    convolutions = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
    assert all(one.kernel_size != (1, 1) or one.stride == (1, 1) for one in convolutions)


@pytest.mark.parametrize("kind", ["small_cnn", "resnet"])
def test_the_layout_of_training_leaves_no_trace(kind) -> None:
    model = build_network(replace(SMALL, kind=kind), 0)
    train(model, SMALL)
    assert all(value.is_contiguous() for value in model.state_dict().values())
