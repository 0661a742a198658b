import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.features.timm_encoder import timm_encoder

CPU = torch.device("cpu")
SIDE_PX = 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def vit():
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=7, img_size=SIDE_PX).eval()


@pytest.fixture
def folder(vit, tmp_path: Path) -> Path:
    """What timm saves for the hub: a config, and weights with the classifier's."""
    return write_folder(tmp_path / "model", vit)


def write_folder(path: Path, network, **changes) -> Path:
    path.mkdir()
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "model_args": {"img_size": SIDE_PX},
        "pretrained_cfg": {"input_size": [3, SIDE_PX, SIDE_PX], "mean": MEAN, "std": STD},
    }
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(network.state_dict(), path / "model.safetensors")
    return path


def noise(n: int, side_px: int = SIDE_PX, channels: int = 3) -> np.ndarray:
    shape = (n, side_px, side_px, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_hand(vit, images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    if x.shape[1] == 1:
        x = x.repeat(1, 3, 1, 1)
    if x.shape[-1] != SIDE_PX:
        x = functional.interpolate(x, (SIDE_PX, SIDE_PX), mode="bicubic", antialias=True)
        x = x.clamp(0, 1)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.inference_mode():
        return vit.forward_head(vit.forward_features(x), pre_logits=True).numpy()


@pytest.mark.parametrize(("side_px", "channels"), [(SIDE_PX, 3), (20, 3), (50, 1)])
def test_features_are_those_before_the_classifier(vit, folder, side_px, channels) -> None:
    encoder = timm_encoder(CPU, path=folder, batch_images=2)
    images = noise(3, side_px, channels)
    found = encoder.embed(images)
    assert found.shape == (3, encoder.width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(vit, images), atol=1e-4)


def test_the_digest_tells_weights_and_preprocessing_apart(vit, folder, tmp_path) -> None:
    settings = {"input_size": [3, SIDE_PX, SIDE_PX], "mean": STD, "std": STD}
    other_mean = write_folder(tmp_path / "mean", vit, pretrained_cfg=settings)
    other_weights = write_folder(tmp_path / "weights", vit)
    tensors = {name: value.clone() for name, value in vit.state_dict().items()}
    tensors["norm.bias"][0] += 1
    save_file(tensors, other_weights / "model.safetensors")
    first, again, *others = (
        timm_encoder(CPU, path=path).digest for path in (folder, folder, other_mean, other_weights)
    )
    assert first == again
    assert len({first, *others}) == 3


def test_building_draws_from_no_global_generator(folder) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    timm_encoder(CPU, path=folder)
    assert torch.equal(state, torch.get_rng_state())


def test_a_file_beside_the_name_of_its_model(tmp_path) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=5).eval()
    path = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), path)
    encoder = timm_encoder(CPU, path=path, model="test_resnet.r160_in1k", image_size_px=64)
    assert encoder.embed(noise(2)).shape == (2, network.num_features)
    with pytest.raises(InputError, match=r"mine\.safetensors: no model is named"):
        timm_encoder(CPU, path=path)


def test_another_input_size_resamples_the_positions(folder) -> None:
    own, larger = (timm_encoder(CPU, path=folder, image_size_px=px) for px in (None, 64))
    assert larger.width == own.width
    assert larger.digest != own.digest
    assert np.isfinite(larger.embed(noise(1))).all()


def test_an_unknown_model_comes_with_a_suggestion(folder) -> None:
    weights = folder / "model.safetensors"
    with pytest.raises(InputError, match=r"no model 'resnt18'; did you mean .*resnet18"):
        timm_encoder(CPU, path=weights, model="resnt18")
    with pytest.raises(InputError, match=r"no model 'zzzzzzzz'; timm\.list_models\(\)"):
        timm_encoder(CPU, path=weights, model="zzzzzzzz")


def test_weights_of_another_model_are_refused(folder) -> None:
    weights = folder / "model.safetensors"
    with pytest.raises(InputError, match=r"model\.safetensors: weights of another network"):
        timm_encoder(CPU, path=weights, model="test_vit2", image_size_px=SIDE_PX)


def test_a_missing_weight_is_not_left_random(vit, folder) -> None:
    tensors = dict(vit.state_dict())
    del tensors["blocks.0.mlp.fc1.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"1 missing \(blocks\.0\.mlp\.fc1\.weight\)"):
        timm_encoder(CPU, path=folder)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth"])
def test_pickles_are_refused_unopened(folder, tmp_path, name) -> None:
    sprung = tmp_path / "sprung"
    (folder / "model.safetensors").unlink()
    torch.save(Trap(sprung), folder / name)
    message = rf"{name}: pickles are never opened.*weights_only=True.*save_file"
    with pytest.raises(InputError, match=message):
        timm_encoder(CPU, path=folder)
    with pytest.raises(InputError, match=message):
        timm_encoder(CPU, path=folder / name, model="test_vit")
    (folder / name).rename(folder / "model.safetensors")
    with pytest.raises(InputError, match="corrupt, or no safetensors file"):
        timm_encoder(CPU, path=folder)
    assert not sprung.exists()


def test_the_conversion_in_the_guide_makes_what_is_read(vit, folder, monkeypatch) -> None:
    expected = timm_encoder(CPU, path=folder).digest
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": vit.state_dict()}, folder / "pytorch_model.bin")
    guide = Path(__file__).parents[2] / "docs" / "encoders.md"
    (snippet,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(snippet, str(guide), "exec"), {})
    assert timm_encoder(CPU, path=folder).digest == expected


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "num_classes"])
def test_a_config_cannot_open_other_files(vit, tmp_path, name) -> None:
    path = write_folder(tmp_path / "model", vit, model_args={name: "x.pth"})
    with pytest.raises(InputError, match=f"sets {name} in model_args"):
        timm_encoder(CPU, path=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "names no timm architecture"),
        ({"architecture": "hf-hub:timm/x"}, "timm has no model"),
        ({"model_args": {"depth": "deep"}}, "timm cannot build test_vit"),
        ({"model_args": {"unheard_of": 1}}, "timm cannot build test_vit"),
        ({"pretrained_cfg": {"input_size": [1, 9, 9]}}, "only networks of 3 channels"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "only networks of 3 channels"),
        (
            {
                "model_args": {"img_size": SIDE_PX, "dynamic_img_size": False},
                "pretrained_cfg": {"input_size": [3, 48, 48]},
            },
            "fails on an image of 48 x 48 px",
        ),
    ],
)
def test_configs_that_cannot_be_used_are_named(vit, tmp_path, changes, message) -> None:
    path = write_folder(tmp_path / "model", vit, **changes)
    with pytest.raises(InputError, match=f"model: .*{message}"):
        timm_encoder(CPU, path=path)


def test_a_folder_without_a_config_needs_the_name(folder) -> None:
    with_config = timm_encoder(CPU, path=folder, model="test_vit.r160_in1k")
    assert with_config.digest == timm_encoder(CPU, path=folder).digest
    with pytest.raises(InputError, match=r"named is test_vit2 and that of its config\.json is"):
        timm_encoder(CPU, path=folder, model="test_vit2")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json; fetch it too, or name the model"):
        timm_encoder(CPU, path=folder)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    named = timm_encoder(CPU, path=folder, model="test_vit", image_size_px=SIDE_PX)
    assert named.width == with_config.width


def test_a_folder_without_weights_or_with_several_is_named(folder) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").touch()
    with pytest.raises(InputError, match=r"2 \*\.safetensors files and none is model"):
        timm_encoder(CPU, path=folder)
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").unlink()
    with pytest.raises(InputError, match=r"0 \*\.safetensors files"):
        timm_encoder(CPU, path=folder)
    with pytest.raises(InputError, match=r"absent\.safetensors: no such file"):
        timm_encoder(CPU, path=folder / "absent.safetensors", model="test_vit")


def test_a_link_does_not_lead_out_of_the_folder(folder, tmp_path) -> None:
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InputError, match="a link leads out of"):
        timm_encoder(CPU, path=folder)


def test_a_hub_id_is_downloaded(folder, monkeypatch) -> None:
    asked = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    encoder = timm_encoder(CPU, hub_id="timm/test_vit.mine@v2")
    assert asked == [
        ("timm/test_vit.mine", "config.json", "v2"),
        ("timm/test_vit.mine", "model.safetensors", "v2"),
    ]
    assert encoder.digest == timm_encoder(CPU, path=folder).digest
    for wrong in ("test_vit", "../x/y", "a/b/c"):
        with pytest.raises(InputError, match="not a hub id"):
            timm_encoder(CPU, hub_id=wrong)


def test_a_hub_out_of_reach_is_said_with_the_way_round(monkeypatch) -> None:
    def download(name: str, file: str, revision: str | None) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputError, match=r"a/b: .*no route.*--local-dir FOLDER"):
        timm_encoder(CPU, hub_id="a/b")


def test_a_path_never_touches_the_network(folder, monkeypatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert timm_encoder(CPU, path=folder).width > 0


def test_one_source_must_be_given() -> None:
    for both in ({}, {"path": Path("a"), "hub_id": "b/c"}):
        with pytest.raises(InputError, match="either a path or a hub id"):
            timm_encoder(CPU, **both)


def test_without_timm_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r'pip install "replenish\[encoders\]"'):
        timm_encoder(CPU, hub_id="a/b")
