import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.features import cache
from pipeline.features.cache import cached
from pipeline.features.frozen import Encoder
from pipeline.machine import cache_file

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


class Counting:
    """An encoder of two features that counts how often it is asked."""

    def __init__(self, digest: str = "one") -> None:
        self.calls = 0
        self.encoder = Encoder("counting", digest, 2, self._embed)

    def _embed(self, images: np.ndarray) -> np.ndarray:
        self.calls += 1
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([flat.mean(1), flat.std(1)], axis=1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def files() -> list[Path]:
    return sorted((cache_file().parent / "features").iterdir())


def test_the_second_time_is_read() -> None:
    one = Counting()
    first, second = cached(one.encoder, IMAGES), cached(one.encoder, IMAGES.copy())
    assert one.calls == 1
    np.testing.assert_array_equal(first, second)
    assert second.dtype == np.float32
    assert second.flags.writeable
    assert len(files()) == 1


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[::-1],
        IMAGES[:5],
        IMAGES.transpose(0, 2, 1, 3),
        IMAGES ^ 1,
        IMAGES.reshape(12, 2, 5, 3),
    ],
    ids=["order", "rows", "shape", "pixels", "cut"],
)
def test_other_images_are_computed(images) -> None:
    one = Counting()
    cached(one.encoder, IMAGES)
    found = cached(one.encoder, images)
    assert one.calls == 2
    np.testing.assert_array_equal(found, one.encoder.embed(images))


def test_another_encoder_is_computed() -> None:
    one, other = Counting("one"), Counting("other")
    cached(one.encoder, IMAGES)
    cached(other.encoder, IMAGES)
    assert other.calls == 1


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, empty])
def test_a_damaged_file_is_computed_again_and_mended(damage) -> None:
    one = Counting()
    first = cached(one.encoder, IMAGES)
    damage(files()[0])
    np.testing.assert_array_equal(cached(one.encoder, IMAGES), first)
    np.testing.assert_array_equal(cached(one.encoder, IMAGES), first)
    assert one.calls == 2


def test_what_was_used_longest_ago_is_removed_above_the_limit() -> None:
    one = Counting()
    cached(one.encoder, IMAGES[:1])
    size = files()[0].stat().st_size
    limit = 3 * size + 8  # the files differ by few bytes
    names = [files()[0]]
    for n in (2, 3):
        cached(one.encoder, IMAGES[:n], 10 * limit)
        names += [path for path in files() if path not in names]
    for age, path in enumerate(reversed(names)):
        os.utime(path, (1000 - age, 1000 - age))
    cached(one.encoder, IMAGES[:1])  # a hit: no longer the oldest
    cached(one.encoder, IMAGES[:4], limit)
    left = files()
    assert names[0] in left
    assert names[1] not in left
    assert sum(path.stat().st_size for path in left) <= limit


def test_a_set_larger_than_the_limit_is_not_kept() -> None:
    one = Counting()
    cached(one.encoder, IMAGES[:1])
    cached(one.encoder, IMAGES, limit_bytes=IMAGES[:, 0, 0, 0].size * 2 * 4 - 1)
    assert len(files()) == 1


def test_a_folder_that_cannot_be_written_costs_a_computation(monkeypatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(cache, "write_bytes", full)
    one = Counting()
    first = cached(one.encoder, IMAGES)
    np.testing.assert_array_equal(first, cached(one.encoder, IMAGES))
    assert one.calls == 2


def test_no_images_and_wrong_ones() -> None:
    one = Counting()
    assert cached(one.encoder, IMAGES[:0]).shape == (0, 2)
    with pytest.raises(InputError, match=r"counting: images of shape \(6, 4, 5\)"):
        cached(one.encoder, IMAGES[:, :, :, 0])
