import json
import pickle
from dataclasses import replace

import pytest
import torch

from pipeline.diffusion.checkpoints import (
    GeneratorSpec,
    TrainingState,
    drop_state,
    load_generator,
    load_snapshot,
    load_state,
    save_generator,
    save_snapshot,
    save_state,
)
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError

CPU = torch.device("cpu")
SPEC = GeneratorSpec(
    classes=("a", "b"),
    image_size_px=8,
    image_mode="L",
    schedule="cosine",
    prediction="velocity",
    zero_terminal_snr=False,
    training_rows_digest="f00",
    base_digest=None,
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def network(seed=0):
    return build_unet(8, "L", 2, Preset(8, 1), seed)


@pytest.fixture
def saved(tmp_path):
    model = network()
    return tmp_path, save_generator(tmp_path, SPEC, model), model


def test_a_generator_comes_back_as_it_was(saved):
    folder, digest, model = saved
    generator = load_generator(folder, CPU)
    assert generator.spec == SPEC
    assert generator.digest == digest
    for one, other in zip(model.parameters(), generator.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not other.requires_grad
    assert not generator.model.training


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "lognormal", "prediction": "edm"},
        {"schedule": "linear", "zero_terminal_snr": True},
        {"base_digest": "ba5e", "training_rows_digest": ""},
        {"classes": ()},
        {"null_class_trained": False},
    ],
)
def test_every_field_of_a_generator_comes_back_and_counts_in_its_digest(saved, tmp_path, changes):
    folder, digest, model = saved
    spec = replace(SPEC, **changes)
    assert save_generator(tmp_path / "other", spec, model) != digest
    found = load_generator(tmp_path / "other", CPU).spec
    assert found == spec
    assert found.process == NoiseProcess(spec.schedule, spec.prediction, spec.zero_terminal_snr)


def test_a_weaker_network_comes_back_and_counts_in_the_digest(saved, tmp_path):
    folder, digest, model = saved
    assert load_generator(folder, CPU).weaker is None
    both = tmp_path / "both"
    with_it = save_generator(both, SPEC, model, network(seed=1))
    assert with_it != digest
    found = load_generator(both, CPU)
    assert found.digest == with_it
    assert torch.equal(found.model.conv_in.weight, model.conv_in.weight)
    assert torch.equal(found.weaker.conv_in.weight, network(seed=1).conv_in.weight)
    assert not found.weaker.training
    assert not any(weight.requires_grad for weight in found.weaker.parameters())
    assert save_generator(both, SPEC, model, network(seed=2)) != with_it
    # Written again without it, none is left.
    assert save_generator(both, SPEC, model) == digest
    assert load_generator(both, CPU).weaker is None


def test_a_damaged_weaker_network_is_an_input_error(saved, tmp_path):
    save_generator(tmp_path / "both", SPEC, saved[2], network(seed=1))
    path = tmp_path / "both" / "guide" / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable generator"):
        load_generator(tmp_path / "both", CPU)


def test_the_digest_follows_the_weights(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    assert save_generator(other, SPEC, network(seed=1)) != saved[1]
    again = tmp_path_factory.mktemp("again")
    assert save_generator(again, SPEC, network(seed=0)) == saved[1]


@pytest.mark.parametrize(
    "missing", ["zero_terminal_snr", "base_digest", "prediction", "schedule", "classes"]
)
def test_a_folder_of_an_older_kind_is_an_input_error(saved, missing):
    path = saved[0] / "generator.json"
    data = json.loads(path.read_text())
    del data[missing]
    path.write_text(json.dumps(data))
    with pytest.raises(
        InputError, match=f"not a readable generator .*{missing}.*; run `replenish train --force`"
    ):
        load_generator(saved[0], CPU)


def test_a_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not a readable generator"):
        load_generator(tmp_path / "nowhere", CPU)


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
    assert load_state(tmp_path) is None
    save_state(tmp_path, state)
    found = load_state(tmp_path)
    assert torch.equal(found.tensors["w"], state.tensors["w"])
    assert found.numbers == state.numbers
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert load_state(tmp_path) is None


def test_snapshots_come_back_step_by_step(tmp_path):
    tensors = {"0.w": torch.arange(6.0).view(2, 3).T, "1.w": torch.nn.Parameter(torch.ones(1))}
    save_snapshot(tmp_path, 100, tensors)
    save_snapshot(tmp_path, 200, {"0.w": torch.zeros(1)})
    found = load_snapshot(tmp_path, 100)
    assert found.keys() == tensors.keys()
    for name, value in found.items():
        assert torch.equal(value, tensors[name])
        assert not value.requires_grad
    assert load_snapshot(tmp_path, 200).keys() == {"0.w"}


def test_missing_and_damaged_snapshots_are_stage_errors(tmp_path):
    with pytest.raises(StageError, match=r"step-00000100.*not readable .* with --force"):
        load_snapshot(tmp_path, 100)
    save_snapshot(tmp_path, 100, {"0.w": torch.ones(9)})
    (path,) = (tmp_path / "snapshots").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StageError, match=r"step-00000100.*not readable .* with --force"):
        load_snapshot(tmp_path, 100)


def test_the_state_of_a_training_that_ended_is_removed_with_its_snapshots(tmp_path):
    (tmp_path / "curve.csv").write_text("step\n")
    save_state(tmp_path, TrainingState({"w": torch.ones(1)}, {}))
    for step in (1, 2):
        save_snapshot(tmp_path, step, {"0.w": torch.ones(1)})
    drop_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]
    drop_state(tmp_path)  # nothing left to remove
