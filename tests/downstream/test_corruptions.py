import numpy as np
import pytest

from pipeline.downstream.corruptions import CORRUPTIONS, corrupt
from pipeline.errors import StageError


def textured(count=6, side=28, channels=1, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, side, side, channels)).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 3), (128, 3)])
def test_each_keeps_shape_type_and_input_and_changes_something(name, side, channels) -> None:
    images = textured(2, side, channels)
    before = images.copy()
    worse = corrupt(images, name, 0)
    assert (worse.shape, worse.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    assert (worse != images).mean() > 0.3
    np.testing.assert_array_equal(corrupt(images, name, 0), worse)


def test_noise_has_its_deviation_and_follows_the_seed() -> None:
    grey = np.full((4, 64, 64, 1), 128, dtype=np.uint8)
    worse = corrupt(grey, "gaussian_noise", 3)
    assert worse.astype(float).std() == pytest.approx(25.5, rel=0.03)
    assert (corrupt(grey, "gaussian_noise", 4) != worse).any()


def test_an_image_has_its_noise_whatever_comes_after_it() -> None:
    images = textured(300, 8)
    first = corrupt(images[:256], "gaussian_noise", 1)
    np.testing.assert_array_equal(corrupt(images, "gaussian_noise", 1)[:256], first)


def test_blur_keeps_the_mean_and_takes_detail_within_an_image_and_channel_only() -> None:
    images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    images[0, 16, 16, 0] = 255
    worse = corrupt(images, "blur", 0)
    assert worse[0, 16, 16, 0] < 128
    assert worse[0, 16, 17, 0] > 0
    assert worse[0, :, :, 1:].max() == 0
    assert worse[1].max() == 0
    assert corrupt(textured(1, 32), "blur", 0).std() < 0.5 * textured(1, 32).std()


def test_a_larger_image_is_blurred_by_as_much_of_its_side() -> None:
    def dot(side):
        image = np.zeros((1, side, side, 1), dtype=np.uint8)
        image[:, side // 2 - side // 8 : side // 2 + side // 8] = 255
        return corrupt(image, "blur", 0)[0, :, side // 2, 0] / 255

    np.testing.assert_allclose(dot(128)[::2].mean(), dot(64).mean(), atol=0.02)
    assert np.abs(dot(128).reshape(64, 2).mean(axis=1) - dot(64)).max() < 0.12


def test_brightness_adds_and_is_clipped() -> None:
    images = np.array([0, 100, 250], dtype=np.uint8).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(corrupt(images, "brightness", 0).ravel(), [64, 164, 255])


def test_contrast_shrinks_towards_the_mean_of_the_image() -> None:
    images = np.array([0, 200], dtype=np.uint8).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(corrupt(images, "contrast", 0).ravel(), [60, 140])


def test_an_empty_set_stays_empty() -> None:
    assert corrupt(textured(0), "blur", 0).shape == (0, 28, 28, 1)


def test_what_cannot_be_corrupted_is_refused() -> None:
    with pytest.raises(StageError, match="no corruption is called fog; there are gaussian_noise"):
        corrupt(textured(), "fog", 0)
    with pytest.raises(StageError, match="images are float64"):
        corrupt(textured().astype(np.float64), "blur", 0)
    with pytest.raises(StageError, match=r"must be uint8 of shape \(N, H, W, C\)"):
        corrupt(textured()[0], "blur", 0)
