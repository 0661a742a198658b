import pytest
import torch

from pipeline.diffusion.unet import build_unet, level_sizes


@pytest.mark.parametrize(
    ("side", "sizes"), [(8, [8, 4]), (12, [12, 6]), (28, [28, 14, 7]), (64, [64, 32, 16, 8])]
)
def test_levels_halve_down_to_8_px(side, sizes):
    assert level_sizes(side) == sizes


@pytest.mark.parametrize("side", range(8, 132, 4))
def test_every_allowed_size_has_a_network(side):
    sizes = level_sizes(side)
    assert all(large == 2 * small for large, small in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize(("side", "mode"), [(8, "L"), (20, "RGB")])
def test_output_has_the_shape_of_the_input(side, mode):
    model = build_unet(side, mode, classes=3, base_channels=8, seed=0)
    images = torch.zeros(2, 1 if mode == "L" else 3, side, side)
    # Label 3 is the null class.
    assert model(images, 5, class_labels=torch.tensor([0, 3])).sample.shape == images.shape


def test_weights_depend_on_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (build_unet(8, "L", 2, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv_in.weight, same.conv_in.weight)
    assert not torch.equal(one.conv_in.weight, other.conv_in.weight)
