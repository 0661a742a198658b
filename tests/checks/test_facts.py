from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from checks.sets import blobs

from pipeline.checks.facts import Facts, concatenate_facts, look, measure
from pipeline.data.images import Images


def facts_of(*images: Images) -> Facts:
    return measure([look(image) for image in images])


def one(image: Images) -> Any:
    facts = facts_of(image)
    return SimpleNamespace(**{n: getattr(facts, n)[0].item() for n in facts.__dataclass_fields__})


def assert_same(some: Facts, others: Facts) -> None:
    for name in some.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(some, name), getattr(others, name))


def bits(one: int, two: int) -> int:
    return (one ^ two).bit_count()


def test_plain_facts_of_a_known_image() -> None:
    image = np.zeros((4, 10, 1), dtype=np.uint8)
    image[:, 5:] = 200
    facts = one(image)
    assert (facts.width, facts.height) == (10, 4)
    assert facts.mean == pytest.approx(100)
    assert facts.std == pytest.approx(100)


def test_a_flat_image_has_no_content_and_no_bit() -> None:
    facts = one(np.full((28, 28, 3), 77, dtype=np.uint8))
    assert facts.mean == 77
    assert (facts.std, facts.sharpness, facts.wave_hash, facts.slope_hash) == (0.0, 0.0, 0, 0)


def test_grey_as_three_channels_has_the_facts_of_grey() -> None:
    grey = blobs(1)[0]
    assert one(grey.repeat(3, axis=2)) == one(grey)


def test_smoothing_lowers_sharpness_and_keeps_the_hashes_near() -> None:
    image = blobs(1, side=56)[0]
    smooth = image.astype(float)
    for axis in (0, 1):
        smooth = sum(np.roll(smooth, by, axis) for by in (-2, -1, 0, 1, 2)) / 5
    before, after = one(image), one(smooth.astype(np.uint8))
    assert after.sharpness < before.sharpness / 2
    assert bits(before.wave_hash, after.wave_hash) < 10


def test_hashes_tell_like_from_unlike() -> None:
    random = np.random.default_rng(1)
    images = blobs(30)
    noisy = np.clip(images + random.normal(0, 4, images.shape), 0, 255).astype(np.uint8)
    own = [one(image) for image in images]
    other = [one(image) for image in noisy]
    like = [bits(a.wave_hash, b.wave_hash) for a, b in zip(own, other, strict=True)]
    unlike = [bits(own[i].wave_hash, own[i - 1].wave_hash) for i in range(30)]
    assert max(like) < min(unlike)


def test_large_images_are_measured_at_a_fixed_size() -> None:
    image = blobs(1, side=56)[0]
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    assert bits(one(large).wave_hash, one(image).wave_hash) <= 4
    assert (one(large).width, one(large).height) == (224, 224)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 3), (300, 1, 1), (2, 3, 1)])
def test_every_shape_has_facts(shape: tuple[int, int, int]) -> None:
    facts = one(np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape))
    assert (facts.height, facts.width) == shape[:2]
    assert np.isfinite([facts.mean, facts.std, facts.sharpness]).all()


def test_columns_are_small_and_joined_in_order() -> None:
    facts = facts_of(*blobs(5))
    assert sum(getattr(facts, name)[:1].nbytes for name in facts.__dataclass_fields__) == 36
    joined = concatenate_facts([facts.take(np.arange(2)), facts.take(np.arange(2, 5))])
    assert_same(joined, facts)
    assert len(concatenate_facts([])) == len(measure([])) == 0


def test_facts_do_not_depend_on_what_is_measured_beside() -> None:
    images = [*blobs(9), *blobs(3, side=56), *blobs(2, side=84, channels=3), *blobs(4, seed=1)]
    alone = concatenate_facts([facts_of(image) for image in images])
    assert_same(facts_of(*images), alone)


@pytest.mark.parametrize("side", [28, 56, 112])
def test_moments_are_those_of_opencv(side: int) -> None:
    image = blobs(1, side=side)[0]
    grey = look(image).grey
    mean, deviation = cv2.meanStdDev(grey)
    laplacian = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1]
    facts = facts_of(image)
    assert facts.mean[0] == pytest.approx(mean[0, 0], rel=1e-6)
    assert facts.std[0] == pytest.approx(deviation[0, 0], rel=1e-6)
    assert facts.sharpness[0] == pytest.approx(laplacian[0, 0] ** 2, rel=1e-5)
