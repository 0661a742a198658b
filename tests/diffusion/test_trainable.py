import copy

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.diffusion.trainable import choose_trainable, count_trained, merge_adapters
from pipeline.errors import InputError
from pipeline.seeds import seeded_initialisers


@pytest.fixture
def model():
    with seeded_initialisers(0, "test"):
        return UNet2DModel(
            sample_size=8,
            block_out_channels=[8, 16],
            layers_per_block=1,
            down_block_types=["DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D"],
            norm_num_groups=8,
            num_class_embeds=3,
        )


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def run(model):
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return model.eval()(images, 9, class_labels=torch.tensor([0, 2])).sample


def train(model, steps=3):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=0.01)
    for _ in range(steps):
        model(torch.ones(2, 3, 8, 8), 3, class_labels=torch.tensor([0, 1])).sample.sum().backward()
        optimiser.step()
        optimiser.zero_grad()


def test_all_trains_every_weight(model):
    model.requires_grad_(False)
    choose_trainable(model, "all", (), 4, seed=0)
    assert count_trained(model) == sum(weight.numel() for weight in model.parameters())


def test_inner_leaves_the_outer_blocks_but_for_what_starts_afresh(model):
    choose_trainable(model, "inner", ("conv_in.weight",), 4, seed=0)
    names = trained(model)
    frozen = {name for name, _ in model.named_parameters()} - names
    assert {name.split(".")[0] for name in frozen} == {
        "conv_in", "down_blocks", "up_blocks", "conv_norm_out", "conv_out",
    }  # fmt: skip
    assert {n[:13] for n in frozen if n.startswith("down_blocks")} == {"down_blocks.0"}
    assert {n[:11] for n in frozen if n.startswith("up_blocks")} == {"up_blocks.1"}
    assert {"conv_in.weight", "class_embedding.weight"} <= names
    assert "conv_in.bias" in frozen


def test_lora_trains_adapters_classes_and_what_starts_afresh(model):
    plain = run(model)
    always = (
        "conv_in.weight",
        "mid_block.resnets.0.conv1.weight",
        "mid_block.attentions.0.to_q.bias",
    )
    total = count_trained(model)
    choose_trainable(model, "lora", always, 2, seed=0)
    names = trained(model)
    adapters = {name for name in names if ".lora_" in name}
    # The layer that starts afresh is trained itself; one with a fresh bias has an adapter as well.
    assert names - adapters == {
        "class_embedding.weight",
        "conv_in.weight",
        "mid_block.resnets.0.conv1.weight",
        "mid_block.attentions.0.to_q.base_layer.bias",
    }
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name in adapters}
    assert {layer.split(".", 2)[-1] for layer in layers} >= {"conv1", "conv2", "time_emb_proj"}
    assert any(layer.endswith("to_out.0") for layer in layers)
    assert not any("shortcut" in layer or "sampler" in layer for layer in layers)
    assert not any(name.startswith("mid_block.resnets.0.conv1.") for name in adapters)
    assert count_trained(model) < total / 2
    assert torch.equal(run(model), plain)  # B starts as zeros


def test_adapters_depend_on_the_seed_and_leave_the_global_generator_alone(model):
    before = torch.random.get_rng_state()
    copies = [copy.deepcopy(model) for _ in range(3)]
    for one, seed in zip(copies, (0, 0, 1), strict=True):
        choose_trainable(one, "lora", (), 2, seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    one, two, other = (dict(c.named_parameters()) for c in copies)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_merged_adapters_leave_a_plain_network_that_does_the_same(model, tmp_path):
    names = list(model.state_dict())
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    choose_trainable(model, "lora", ("conv_out.weight",), 2, seed=0)
    train(model)
    follower = copy.deepcopy(model)
    expected = run(model)
    for one in (model, follower):
        merge_adapters(one)
        assert type(one) is UNet2DModel
        assert list(one.state_dict()) == names
        assert torch.allclose(run(one), expected, atol=1e-5)
    state = model.state_dict()
    moved = {name for name in names if not torch.equal(state[name], plain[name])}
    for part in ("resnets.0.conv1", "resnets.0.time_emb_proj", "attentions.0.to_out.0"):
        assert f"mid_block.{part}.weight" in moved
    assert "conv_out.weight" in moved
    assert not any("norm" in name or "shortcut" in name for name in moved)
    model.save_pretrained(tmp_path, safe_serialization=True)
    loaded = UNet2DModel.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True)
    assert torch.equal(run(loaded), run(model))


def test_a_plain_network_is_merged_as_it_is(model):
    before = run(model)
    merge_adapters(model)
    assert torch.equal(run(model), before)


def test_a_copy_merged_does_not_touch_the_one_in_training(model):
    choose_trainable(model, "lora", (), 2, seed=0)
    train(model, 1)
    merge_adapters(copy.deepcopy(model))
    assert any(".lora_" in name for name in trained(model))
    train(model, 1)


def test_unknown_names_and_nothing_left_to_adapt(model):
    with pytest.raises(ValueError, match="no weight of this network: conv_of_mine"):
        choose_trainable(model, "inner", ("conv_of_mine",), 2, seed=0)
    every = [name for name, _ in model.named_parameters()]
    with pytest.raises(InputError, match="no layer of this base is left to adapt; choose all or"):
        choose_trainable(model, "lora", every, 2, seed=0)
