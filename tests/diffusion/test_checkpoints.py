import pickle

import pytest
import torch

from pipeline.diffusion.checkpoints import (
    GeneratorSpec,
    TrainingState,
    load_generator,
    load_state,
    save_generator,
    save_state,
)
from pipeline.diffusion.unet import build_unet
from pipeline.errors import InputError

CPU = torch.device("cpu")
SPEC = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", "f00")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(tmp_path):
    model = build_unet(8, "L", 2, 8, seed=0)
    return tmp_path, save_generator(tmp_path, SPEC, model), model


def test_a_generator_comes_back_as_it_was(saved):
    folder, digest, model = saved
    generator = load_generator(folder, CPU)
    assert generator.spec == SPEC
    assert generator.digest == digest
    for one, other in zip(model.parameters(), generator.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_digest_follows_the_weights(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    assert save_generator(other, SPEC, build_unet(8, "L", 2, 8, seed=1)) != saved[1]
    again = tmp_path_factory.mktemp("again")
    assert save_generator(again, SPEC, build_unet(8, "L", 2, 8, seed=0)) == saved[1]


def test_damaged_weights_are_an_input_error(saved):
    path = saved[0] / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable .* run `replenish train --force`"):
        load_generator(saved[0], CPU)


def test_a_pickle_offered_as_weights_is_never_opened(saved):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (saved[0] / WEIGHTS).unlink()
    (saved[0] / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="not a readable generator"):
        load_generator(saved[0], CPU)


def test_a_state_comes_back_and_a_damaged_one_counts_as_none(tmp_path):
    state = TrainingState({"w": torch.arange(3.0)}, {"step": 4, "rows": [[1, 0.25]]})
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert torch.equal(found.tensors["w"], state.tensors["w"])
    assert found.numbers == state.numbers
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert load_state(tmp_path) is None
