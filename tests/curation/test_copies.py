import numpy as np
import pytest

from pipeline.curation.copies import NearIndex
from pipeline.curation.thumbs import mirror
from pipeline.errors import StageError

CHANGES = {
    "exact": lambda image: image,
    "moved": lambda image: np.roll(image, (1, -1), axis=(0, 1)),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "relit": lambda image: image * 0.7 + 30,
    "noisy": lambda image: image + np.random.default_rng(9).normal(0, 8, image.shape),
    "moved, mirrored, noisy": lambda image: (
        np.roll(image, 1, axis=0)[:, ::-1] + np.random.default_rng(9).normal(0, 8, image.shape)
    ),
}


@pytest.fixture(scope="module", params=[(8, 1), (27, 1), (28, 1), (32, 3), (63, 1), (64, 3)])
def rows(request, blobs):
    side, channels = request.param
    images = np.concatenate([blobs(40, seed, side=side).images for seed in range(channels)], axis=3)
    return images, NearIndex(images, np.arange(40))


@pytest.mark.parametrize("change", CHANGES)
def test_a_near_copy_is_traced_to_its_row_and_stands_out(rows, change):
    images, index = rows
    made = np.stack([CHANGES[change](image.astype(float)) for image in images[:10]])
    found = index.search(np.clip(np.round(made), 0, 255).astype(np.uint8))
    assert found.index.tolist() == list(range(10))
    assert found.closeness.max() < 0.12
    assert (found.residual < found.second).all()


def test_other_pictures_do_not_stand_out(rows, blobs):
    images, index = rows
    _, side, _, channels = images.shape
    fresh = np.concatenate(
        [blobs(20, 50 + seed, side=side).images for seed in range(channels)], axis=3
    )
    assert index.search(fresh).closeness.min() > 0.15


def test_a_copy_among_many_that_are_nearly_alike_is_traced_to_its_own_row():
    random = np.random.default_rng(0)
    half = np.kron(random.integers(60, 200, (1, 7, 4, 1)), np.ones((1, 4, 4, 1)))[:, :, :14]
    even = np.concatenate([half, half[:, :, ::-1]], axis=2)  # its own mirror image, nearly
    rows = np.clip(even + random.normal(0, 4, (200, 28, 28, 1)), 0, 255).astype(np.uint8)
    index = NearIndex(rows, np.arange(200))
    for kind in range(4):
        found = index.search(np.roll(mirror(rows[:40], kind), (1, -2), axis=(1, 2)))
        assert found.index.tolist() == list(range(40))
        assert found.residual.max() < 0.002


def test_a_row_left_out_with_its_group_is_not_found(blobs):
    images = blobs(6, 0).images
    index = NearIndex(images, np.array([0, 0, 1, 2, 3, 4]))
    found = index.search(images[:2], without=np.array([0, 0]))
    assert (found.index >= 2).all()
    assert found.residual.min() > 0.1


def test_the_second_row_is_of_another_group(blobs):
    images = blobs(4, 0).images
    twice = np.concatenate([images, images[:1]])
    together = NearIndex(twice, np.array([0, 1, 2, 3, 0])).search(images[:1])
    apart = NearIndex(twice, np.arange(5)).search(images[:1])
    assert together.second[0] > 0.1
    assert apart.second[0] == 0


def test_one_group_alone_has_no_second_and_leaves_nothing_once_it_is_left_out(blobs):
    images = blobs(2, 0).images
    index = NearIndex(images, np.zeros(2, dtype=np.int64))
    assert index.search(images).second.tolist() == [1, 1]
    alone = index.search(images, without=np.zeros(2, dtype=np.int64))
    assert alone.index.tolist() == [-1, -1]
    assert alone.closeness.tolist() == [1, 1]


def test_blocks_do_not_change_what_is_found(blobs, monkeypatch):
    index = NearIndex(blobs(30, 0).images, np.arange(30))
    images = blobs(25, 1).images
    whole = index.search(images)
    monkeypatch.setattr("pipeline.curation.copies._BLOCK_VALUES", 1000)
    parts = index.search(images)
    for name in ("index", "residual", "second"):
        assert (getattr(whole, name) == getattr(parts, name)).all()


def test_no_rows_is_refused_and_no_images_are_fine(blobs):
    images = blobs(3, 0).images
    with pytest.raises(StageError, match="0 training rows"):
        NearIndex(images[:0], np.zeros(0, dtype=np.int64))
    assert len(NearIndex(images, np.arange(3)).search(images[:0]).index) == 0
