from pathlib import Path

import numpy as np
import pytest
from checks.sets import blobs

from pipeline.checks.facts import (
    concatenate_facts,
    gather,
    image_facts,
    load_facts,
    save_facts,
)
from pipeline.errors import StageError


def bits(one: int, two: int) -> int:
    return (one ^ two).bit_count()


def test_plain_facts_of_a_known_image() -> None:
    image = np.zeros((4, 10, 1), dtype=np.uint8)
    image[:, 5:] = 200
    facts = image_facts(image)
    assert (facts.width, facts.height) == (10, 4)
    assert facts.mean == pytest.approx(100)
    assert facts.std == pytest.approx(100)


def test_a_flat_image_has_no_content_and_no_bit() -> None:
    facts = image_facts(np.full((28, 28, 3), 77, dtype=np.uint8))
    assert facts[2:] == (pytest.approx(77), 0.0, 0.0, 0, 0)


def test_grey_as_three_channels_has_the_facts_of_grey() -> None:
    grey = blobs(1)[0]
    assert image_facts(grey.repeat(3, axis=2)) == image_facts(grey)


def test_smoothing_lowers_sharpness_and_keeps_the_hashes_near() -> None:
    image = blobs(1, side=56)[0]
    smooth = image.astype(float)
    for axis in (0, 1):
        smooth = sum(np.roll(smooth, by, axis) for by in (-2, -1, 0, 1, 2)) / 5
    before, after = image_facts(image), image_facts(smooth.astype(np.uint8))
    assert after.sharpness < before.sharpness / 2
    assert bits(before.wave_hash, after.wave_hash) < 10


def test_hashes_tell_like_from_unlike() -> None:
    random = np.random.default_rng(1)
    images = blobs(30)
    noisy = np.clip(images + random.normal(0, 4, images.shape), 0, 255).astype(np.uint8)
    own = [image_facts(image) for image in images]
    other = [image_facts(image) for image in noisy]
    like = [bits(a.wave_hash, b.wave_hash) for a, b in zip(own, other, strict=True)]
    unlike = [bits(own[i].wave_hash, own[i - 1].wave_hash) for i in range(30)]
    assert max(like) < min(unlike)


def test_large_images_are_measured_at_a_fixed_size() -> None:
    image = blobs(1, side=56)[0]
    large = image.repeat(4, axis=0).repeat(4, axis=1)
    assert bits(image_facts(large).wave_hash, image_facts(image).wave_hash) <= 4
    assert (image_facts(large).width, image_facts(large).height) == (224, 224)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 3), (300, 1, 1), (2, 3, 1)])
def test_every_shape_has_facts(shape: tuple[int, int, int]) -> None:
    facts = image_facts(np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape))
    assert (facts.height, facts.width) == shape[:2]
    assert np.isfinite(facts[2:5]).all()


def test_columns_are_small_and_go_through_a_file(tmp_path: Path) -> None:
    facts = gather([image_facts(image) for image in blobs(5)])
    assert sum(getattr(facts, name)[:1].nbytes for name in facts.__dataclass_fields__) == 36
    save_facts(tmp_path / "facts.npz", facts)
    read = load_facts(tmp_path / "facts.npz")
    joined = concatenate_facts([read.take(np.arange(2)), read.take(np.arange(2, 5))])
    for name in facts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name), getattr(facts, name))
    assert len(concatenate_facts([])) == len(gather([])) == 0


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.npz"
    with pytest.raises(StageError, match="not readable"):
        load_facts(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(StageError, match="not readable"):
        load_facts(path)
    np.savez(path, **{name: np.array([{}]) for name in gather([]).__dataclass_fields__})
    with pytest.raises(StageError, match="not readable"):  # objects are never unpickled
        load_facts(path)
    columns = {n: getattr(gather([]), n) for n in gather([]).__dataclass_fields__}
    np.savez(path, **{**columns, "mean": np.zeros(3, np.float32)})
    with pytest.raises(StageError, match="column mean is not"):
        load_facts(path)
