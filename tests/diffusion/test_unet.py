import pytest
import torch

from pipeline.diffusion.unet import (
    PRESETS,
    Preset,
    build_unet,
    choose_dropout,
    choose_preset,
    level_sizes,
)

TINY = Preset(8, 1)


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        (8, [8, 4]),
        (12, [12, 6]),
        (20, [20, 10, 5]),
        (28, [28, 14, 7]),
        (64, [64, 32, 16, 8]),
        (100, [100, 50, 25]),
    ],
)
def test_levels_halve_down_to_8_px(side, sizes):
    assert level_sizes(side) == sizes


@pytest.mark.parametrize("side", range(8, 132, 4))
def test_every_allowed_size_has_a_network(side):
    sizes = level_sizes(side)
    assert all(large == 2 * small for large, small in zip(sizes, sizes[1:], strict=False))
    assert 2 <= len(sizes) <= 5


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("side", [8, 12, 16, 20, 28, 32, 44, 64, 100, 128])
def test_output_has_the_shape_of_the_input(side, mode):
    model = build_unet(side, mode, classes=3, preset=TINY, seed=0)
    images = torch.zeros(2, 1 if mode == "L" else 3, side, side)
    # Label 3 is the null class.
    with torch.no_grad():
        found = model(images, 5, class_labels=torch.tensor([0, 3])).sample
    assert found.shape == images.shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_have_the_width_and_depth_that_they_name(preset):
    model = build_unet(12, "L", 2, preset, seed=0)
    base = preset.base_channels
    assert model.config["block_out_channels"] == [base, 2 * base]
    assert [len(block.resnets) for block in model.down_blocks] == [preset.layers] * 2
    with torch.no_grad():
        found = model(torch.zeros(1, 1, 12, 12), 5, class_labels=torch.tensor([0])).sample
    assert found.shape == (1, 1, 12, 12)


def test_attention_is_at_the_coarsest_level_alone():
    model = build_unet(28, "L", 2, TINY, seed=0)
    plain, attentive = "DownBlock2D", "AttnDownBlock2D"
    assert [type(block).__name__ for block in model.down_blocks] == [plain, plain, attentive]
    assert [type(block).__name__ for block in model.up_blocks] == [
        "AttnUpBlock2D", "UpBlock2D", "UpBlock2D",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("side", "images", "name", "reason"),
    [
        (8, 50, "small", "50 images of 8 px: up to 32 px, below 100,000 images"),
        (32, 99_999, "small", "99,999 images of 32 px: up to 32 px, below 100,000 images"),
        (32, 100_000, "medium", "100,000 images of 32 px: from 100,000 images on"),
        (36, 199, "small", "199 images of 36 px: up to 64 px, below 200 images"),
        (64, 199, "small", "199 images of 64 px: up to 64 px, below 200 images"),
        (64, 200, "medium", "200 images of 64 px: above 32 px"),
        (64, 1_000_000, "medium", "1,000,000 images of 64 px: above 32 px"),
        (68, 10, "medium", "10 images of 68 px: above 32 px"),
        (128, 3_999, "medium", "3,999 images of 128 px: above 32 px"),
        (128, 4_000, "large", "4,000 images of 128 px: above 64 px, from 4,000 images on"),
    ],
)
def test_the_preset_follows_from_side_and_images_and_says_why(side, images, name, reason):
    assert choose_preset(side, images) == (name, reason)


@pytest.mark.parametrize(
    ("images", "dropout"),
    [(0, 0.25), (1, 0.25), (50, 0.2), (500, 0.1), (4999, 0.0), (5000, 0.0), (1_000_000, 0.0)],
)
def test_the_fewer_the_images_the_more_is_dropped(images, dropout):
    assert choose_dropout(images) == dropout


def test_dropout_is_in_the_network_and_off_when_it_is_not_trained():
    model = build_unet(8, "L", 2, TINY, seed=0, dropout=0.2)
    shares = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert 0.2 in shares
    arguments = torch.ones(1, 1, 8, 8), 500
    labels = torch.tensor([0])
    with torch.no_grad():
        quiet = [model.eval()(*arguments, class_labels=labels).sample for _ in range(2)]
        noisy = [model.train()(*arguments, class_labels=labels).sample for _ in range(2)]
    assert torch.equal(*quiet)
    assert not torch.equal(*noisy)
    undropped = build_unet(8, "L", 2, TINY, seed=0)
    for one, other in zip(model.parameters(), undropped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_depend_on_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (build_unet(8, "L", 2, TINY, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv_in.weight, same.conv_in.weight)
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)
