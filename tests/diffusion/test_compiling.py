import shutil

import pytest
import torch

from pipeline.diffusion.compiling import compile_network
from pipeline.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def model():
    return torch.nn.Linear(2, 2)


def compiled(network):
    return hasattr(network, "_orig_mod")


@pytest.mark.parametrize(
    ("choice", "steps", "device"),
    [
        ("never", 1_000_000, CPU),
        ("never", 1_000_000, CUDA),
        ("auto", 1_000_000, CPU),
        ("auto", 1999, CUDA),
    ],
)
def test_the_model_itself_where_compiling_does_not_pay(model, choice, steps, device):
    assert compile_network(model, choice, steps, device) is model


@pytest.mark.parametrize(
    ("choice", "steps", "device"), [("auto", 2000, CUDA), ("always", 1, CUDA), ("always", 1, CPU)]
)
def test_a_compiled_network_shares_the_weights(monkeypatch, model, choice, steps, device):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    network = compile_network(model, choice, steps, device)  # compiles at its first call
    assert compiled(network)
    assert network is not model
    assert [id(w) for w in network.parameters()] == [id(w) for w in model.parameters()]


def test_always_needs_a_compiler_on_a_processor(monkeypatch, model):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        InputError, match=r"train.compile = always needs a C\+\+ compiler .* train.compile = auto"
    ):
        compile_network(model, "always", 10, CPU)
    assert compile_network(model, "auto", 10, CPU) is model
    assert compiled(compile_network(model, "always", 10, CUDA))  # Triton brings its own


@pytest.mark.parametrize("name", ["g++", "clang++", "c++"])
def test_any_compiler_does(monkeypatch, model, name):
    monkeypatch.setattr(shutil, "which", lambda wanted: wanted if wanted == name else None)
    assert compiled(compile_network(model, "always", 10, CPU))
