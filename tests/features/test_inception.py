import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.features.inception import _build, inception_encoder

CPU = torch.device("cpu")


def random_weights(path: Path) -> None:
    """Write weights with which an image's features neither vanish nor explode."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in _build().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue  # as in a file that was made before torch counted batches
        if tensor.ndim > 1:
            fan_in = tensor[0].numel()
            value = torch.randn(tensor.shape, generator=random) * (2 / fan_in) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            value = torch.ones_like(tensor)
        else:
            value = torch.zeros_like(tensor)
        tensors[name] = value
    save_file(tensors, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    random_weights(path)
    return path


@pytest.mark.slow
def test_features_equal_those_of_torch_fidelity(weights, tmp_path) -> None:
    from safetensors.torch import load_file
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(load_file(weights), tmp_path / "same.pth")
    oracle = FeatureExtractorInceptionV3("oracle", ["2048"], str(tmp_path / "same.pth"))
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    found = inception_encoder(weights, CPU, batch_images=1).embed(images)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).repeat(3, axis=1))
    expected = oracle(pixels)[0].numpy()
    assert found.shape == (2, 2048)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_digest_is_of_the_weights(weights, tmp_path) -> None:
    from safetensors.torch import load_file

    first, again = inception_encoder(weights, CPU), inception_encoder(weights, CPU)
    tensors = load_file(weights)
    tensors["fc.bias"][0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    other = inception_encoder(tmp_path / "other.safetensors", CPU)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert first.width == 2048


def test_weights_that_do_not_fit_are_named_with_their_file(weights, tmp_path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "mine.safetensors"
    tensors = load_file(weights)
    tensors["fc.weight"] = torch.zeros(1000, 2048)
    tensors["extra"] = torch.zeros(1)
    del tensors["Mixed_5b.branch1x1.conv.weight"]
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"mine\.safetensors: weights of another network") as error:
        inception_encoder(path, CPU)
    assert "1 missing (Mixed_5b.branch1x1.conv.weight)" in str(error.value)
    assert "1 unknown (extra)" in str(error.value)
    assert "fc.weight (1000, 2048) for (1008, 2048)" in str(error.value)


def test_values_that_are_not_finite_or_no_floats_are_refused(tmp_path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"fc.bias": torch.full((1008,), torch.nan)}, path)
    with pytest.raises(InputError, match=r"mine\.safetensors: fc\.bias holds non-finite"):
        inception_encoder(path, CPU)
    save_file({"fc.bias": torch.zeros(1008, dtype=torch.int8)}, path)
    with pytest.raises(InputError, match=r"fc\.bias is torch\.int8, not a float"):
        inception_encoder(path, CPU)


def test_a_pickle_is_refused_and_the_way_round_is_said(tmp_path) -> None:
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: pickles are never opened.*docs/encoders"):
        inception_encoder(tmp_path / "weights.pth", CPU)
    with pytest.raises(InputError, match="no such file"):
        inception_encoder(tmp_path / "absent.safetensors", CPU)


def test_the_users_weights_never_meet_torch_load(weights, monkeypatch) -> None:
    loaded = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loaded.append(real(*a, **k)) or loaded[-1])
    inception_encoder(weights, CPU)
    assert loaded == [{}]


def test_building_draws_from_no_global_generator(weights) -> None:
    state = torch.get_rng_state()
    inception_encoder(weights, CPU)
    assert torch.equal(state, torch.get_rng_state())


def test_without_torch_fidelity_the_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r'pip install "replenish\[encoders\]"'):
        inception_encoder(tmp_path / "any.safetensors", CPU)
