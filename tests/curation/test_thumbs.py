import numpy as np
import pytest

from pipeline.curation.thumbs import (
    descriptors,
    lengths_of,
    likeness,
    mirror,
    moved_descriptors,
    thumbs,
)


@pytest.mark.parametrize("side", [8, 28, 32])
def test_small_images_are_their_own_thumbs(side):
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    assert thumbs(images) is images


@pytest.mark.parametrize("side", [36, 63, 64, 68, 76, 95, 96, 127, 128])
def test_thumbs_of_mirrored_images_are_mirrored_thumbs(side):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 1)).astype(np.uint8)
    small = thumbs(images)
    assert small.shape[1] <= 32
    for kind in range(4):
        gap = np.abs(thumbs(mirror(images, kind)).astype(int) - mirror(small, kind))
        assert gap.max() <= 1  # by the order of the sums


def test_a_thumb_is_the_smoothed_mean_of_blocks():
    image = np.zeros((1, 64, 64, 1), dtype=np.uint8)
    image[0, 20:22, 30:32] = 160
    small = thumbs(image)[0, :, :, 0]
    assert small.shape == (32, 32)
    assert small[9:12, 14:17].tolist() == [[10, 20, 10], [20, 40, 20], [10, 20, 10]]
    assert small.sum() == 160


def test_descriptors_forget_brightness_and_contrast_and_blank_ones_are_zero():
    image = np.random.default_rng(0).integers(60, 160, (1, 28, 28, 3)).astype(np.int64)
    one, brighter, softer, blank = (
        descriptors(values.astype(np.uint8)).astype(float)[0]
        for values in (image, image + 50, image // 2, image * 0 + 9)
    )
    assert np.abs(one - brighter).max() <= 1
    assert one @ softer / np.linalg.norm(one) / np.linalg.norm(softer) > 0.99
    assert not blank.any()


@pytest.mark.parametrize("side", [9, 25, 27, 31, 32])
def test_descriptors_of_mirrored_images_are_mirrored_ones_whatever_the_side(side):
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 1)).astype(np.uint8)
    for kind in range(4):
        changed = moved_descriptors(mirror(images, kind), reach_px=0)[kind][0]
        assert np.abs(changed.astype(int) - descriptors(images)).max() <= 1


def test_nothing_is_more_alike_than_the_same_descriptor():
    # Pictures that differ by a few grey levels: their lengths differ by more than their directions.
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (1, 28, 28, 1))
    images = np.clip(base + random.normal(0, 3, (200, 28, 28, 1)), 0, 255).astype(np.uint8)
    rows = descriptors(images)
    columns, lengths = rows.astype(np.float32).T, lengths_of(rows)
    alike = likeness([rows], columns, lengths)
    assert alike.argmax(axis=1).tolist() == list(range(200))
    assert alike.diagonal() == pytest.approx(1, abs=1e-6)
    assert (rows.astype(np.float32) @ columns).argmax(axis=1).tolist() != list(range(200))


def test_a_blank_row_is_like_nothing():
    rows = descriptors(np.full((1, 28, 28, 1), 9, dtype=np.uint8))
    assert likeness([rows], rows.astype(np.float32).T, lengths_of(rows))[0, 0] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_moved_and_mirrored_image_has_the_descriptor_of_the_original_among_its_own(channels):
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, channels)).astype(np.uint8)
    changed = mirror(np.roll(image, (2, -1), axis=(1, 2)), 1)
    versions = moved_descriptors(changed)
    assert [len(kind) for kind in versions] == [25] * 4
    found = [kind for kind in range(4) for v in versions[kind] if (v == descriptors(image)).all()]
    assert found == [1]
