import math

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.diffusion.augmentation import (
    VECTOR,
    Augmentation,
    LabelEmbedding,
    feed_augmentation,
    forget_augmentation,
)
from pipeline.diffusion.unet import Preset, build_unet

TRANSFORMS = ("flip", "flip_vertical", "translate", "rotate", "scale")
COLUMNS = {
    "flip": [0],
    "flip_vertical": [1],
    "scale": [2],
    "rotate": [3, 4],
    "translate": [5, 6],
}
NAMES = ("flip", "flip_vertical", "log2_scale", "cosine", "sine", "right", "down")
AUGMENTATION = Augmentation(TRANSFORMS, 0.5)


def random_images(count=3, side=8):
    return torch.rand((count, 2, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1


def vector_of(count=1, **values):
    row = torch.zeros(VECTOR)
    for name, value in values.items():
        row[NAMES.index(name)] = value - 1 if name == "cosine" else value
    return row.expand(count, VECTOR).clone()


def transform(images, **values):
    return AUGMENTATION.apply(images, vector_of(len(images), **values))


def draw(transforms=TRANSFORMS, probability=0.5, count=20_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Augmentation(transforms, probability).draw(count, generator)


@pytest.mark.parametrize("side", [8, 28, 37])
def test_untouched_images_keep_their_very_pixels_beside_changed_ones(side):
    images = random_images(side=side)
    vector = vector_of(3)
    assert torch.equal(AUGMENTATION.apply(images, vector), images)
    vector[1, 0] = 1
    found = AUGMENTATION.apply(images, vector)
    assert torch.equal(found[[0, 2]], images[[0, 2]])
    assert not torch.allclose(found[1], images[1], atol=0.1)


@pytest.mark.parametrize("side", [8, 9])
def test_flips_are_flips(side):
    images = random_images(side=side)
    assert torch.allclose(transform(images, flip=1), images.flip(3), atol=1e-5)
    assert torch.allclose(transform(images, flip_vertical=1), images.flip(2), atol=1e-5)
    both = transform(images, flip=1, flip_vertical=1)
    assert torch.allclose(both, images.flip(2, 3), atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, 3), (-1, 2)])
def test_a_shift_by_whole_pixels_moves_the_content_and_mirrors_what_comes_in(right, down):
    images = random_images()
    found = transform(images, right=right / 8, down=down / 8)

    def source(shift):
        rows = [i - shift for i in range(8)]  # mirrored about the outer edge of the outer pixel
        return [-1 - i if i < 0 else 15 - i if i > 7 else i for i in rows]

    expected = images[:, :, source(down)][:, :, :, source(right)]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_those_of_rot90_clockwise(turns):
    images, angle = random_images(), turns * math.pi / 2
    found = transform(images, cosine=math.cos(angle), sine=math.sin(angle))
    assert torch.allclose(found, torch.rot90(images, -turns, (2, 3)), atol=1e-4)


def test_scaling_is_about_the_centre():
    # Twice as large: the inner half of a ramp fills the image, at half its slope.
    centres = (torch.arange(16) + 0.5) / 8 - 1
    ramps = torch.stack([centres.expand(16, 16), centres[:, None].expand(16, 16)])[None]
    assert torch.allclose(transform(ramps, log2_scale=1.0), ramps / 2, atol=1e-5)
    half = transform(ramps, log2_scale=-1.0)
    inner = slice(5, 11)
    assert torch.allclose(half[..., inner, inner], 2 * ramps[..., inner, inner], atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_all_together_shift_then_flip_then_scale_and_turn(seed):
    """A blob is found where the steps, one after another, carry its centre."""
    generator = torch.Generator().manual_seed(seed)
    right, down, log2_scale, angle, x, y = (torch.rand(6, generator=generator) - 0.5).tolist()
    right, down, log2_scale, angle = 0.3 * right, 0.3 * down, log2_scale, 6 * angle
    flip, flip_vertical = seed % 2, seed // 2 % 2
    centres = (torch.arange(64) + 0.5) / 32 - 1
    across, along = centres.expand(64, 64), centres[:, None].expand(64, 64)
    blob = torch.exp(-((across - x / 2) ** 2 + (along - y / 2) ** 2) / (2 * 0.08**2))
    found = transform(
        blob[None, None],
        flip=flip,
        flip_vertical=flip_vertical,
        log2_scale=log2_scale,
        cosine=math.cos(angle),
        sine=math.sin(angle),
        right=right,
        down=down,
    )[0, 0]
    place = x / 2 + 2 * right, y / 2 + 2 * down
    place = (
        place[0] * (-1) ** flip * 2**log2_scale,
        place[1] * (-1) ** flip_vertical * 2**log2_scale,
    )
    cosine, sine = math.cos(angle), math.sin(angle)
    place = cosine * place[0] - sine * place[1], sine * place[0] + cosine * place[1]
    column, row = (int((one + 1) * 32) for one in place)
    assert min(column, row) >= 4
    assert max(column, row) < 60
    assert found[row, column] > 0.9
    assert (found > 0.5).float().mean() < 0.03  # a blob, and perhaps its mirror image


def test_probability_0_changes_nothing_and_1_everything():
    assert torch.equal(draw(probability=0.0), torch.zeros(20_000, VECTOR))
    always = draw(probability=1.0)
    assert torch.equal(always[:, :2], torch.ones(20_000, 2))
    assert (always[:, 2:] != 0).float().mean() > 0.999
    assert torch.equal(draw(transforms=(), probability=1.0), torch.zeros(20_000, VECTOR))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_only_the_chosen_transform_is_drawn_at_its_chance(name):
    vector = draw(transforms=(name,), probability=0.3)
    others = [i for i in range(VECTOR) if i not in COLUMNS[name]]
    assert (vector[:, others] == 0).all()
    for column in COLUMNS[name]:
        share = (vector[:, column] != 0).float().mean().item()
        assert share == pytest.approx(0.3, abs=0.015)


def test_transforms_are_drawn_independently_as_in_edm():
    vector = draw()
    chosen = torch.stack([vector[:, c].abs().sum(1) > 0 for c in COLUMNS.values()]).float()
    correlation = torch.corrcoef(chosen)
    assert (correlation - torch.eye(5)).abs().max() < 0.03
    always = draw(probability=1.0)
    # Karras et al. 2022, table 6.
    for column, spread in ((2, 0.2), (5, 0.125), (6, 0.125)):
        assert always[:, column].mean().item() == pytest.approx(0, abs=0.005)
        assert always[:, column].std().item() == pytest.approx(spread, rel=0.03)
    cosine, sine = always[:, 3] + 1, always[:, 4]
    assert torch.allclose(cosine**2 + sine**2, torch.ones(20_000), atol=1e-5)
    assert abs(cosine.mean().item()) < 0.02
    assert abs(sine.mean().item()) < 0.02


def test_draws_depend_on_the_generator_alone():
    assert torch.equal(draw(count=9), draw(count=9))
    assert not torch.equal(draw(count=9), draw(count=9, seed=1))


@pytest.fixture
def network():
    return build_unet(8, "L", 3, Preset(8, 1), seed=0).eval()


@torch.no_grad()
def run(model, condition):
    images = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return model(images, 9, class_labels=condition).sample


LABELS = torch.tensor([0, 1, 2, 3])


def test_noughts_ask_for_the_plain_embedding(network):
    plain = network.class_embedding(LABELS)
    embedding = LabelEmbedding(network.class_embedding)
    with torch.no_grad():
        embedding.augmentation.weight.normal_()
    assert torch.equal(embedding(LABELS), plain)
    assert torch.equal(embedding((LABELS, torch.zeros(4, VECTOR))), plain)
    moved = embedding((LABELS, vector_of(4, flip=1)))
    assert torch.allclose(moved - plain, embedding.augmentation.weight[:, 0].expand(4, -1))


def test_a_network_learns_of_augmentations_and_forgets_them(network, tmp_path):
    names, before = list(network.state_dict()), run(network, LABELS)
    feed_augmentation(network)
    assert torch.equal(run(network, LABELS), before)
    augmented = LABELS, vector_of(4, flip=1, right=0.2)
    assert torch.equal(run(network, augmented), before)  # the map starts as zeros
    with torch.no_grad():
        network.class_embedding.augmentation.weight.normal_()
        network.class_embedding.weight.add_(0.1)
    assert not torch.allclose(run(network, augmented), before, atol=1e-3)
    trained = run(network, LABELS)
    assert torch.equal(run(network, (LABELS, torch.zeros(4, VECTOR))), trained)
    forget_augmentation(network)
    assert type(network.class_embedding) is torch.nn.Embedding
    assert list(network.state_dict()) == names
    assert torch.equal(run(network, LABELS), trained)
    network.save_pretrained(tmp_path, safe_serialization=True)
    loaded = UNet2DModel.from_pretrained(tmp_path, use_safetensors=True, local_files_only=True)
    assert torch.equal(run(loaded.eval(), LABELS), trained)
    forget_augmentation(network)  # of a plain network: nothing to do
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("trained", [True, False])
def test_the_embedding_keeps_its_gradient_flag(network, trained):
    network.class_embedding.requires_grad_(trained)
    feed_augmentation(network)
    assert network.class_embedding.weight.requires_grad is trained
    assert network.class_embedding.augmentation.weight.requires_grad
    forget_augmentation(network)
    assert network.class_embedding.weight.requires_grad is trained
