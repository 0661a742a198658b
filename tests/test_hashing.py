import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.hashing import (
    digest_bytes,
    digest_file,
    digest_folder,
    digest_json,
    digest_lines,
    digest_pixels,
    digest_sorted,
)


def test_parts_do_not_run_together() -> None:
    assert digest_bytes(b"ab", b"c") != digest_bytes(b"a", b"bc")
    assert digest_bytes(b"abc") != digest_bytes(b"abc", b"")
    assert len(digest_bytes()) == 64


def test_json_ignores_the_order_of_keys_alone() -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert len({digest_json(value) for value in ([1, 2], [2, 1], "12", 12, None, [12])}) == 6


def test_lines_ignore_their_order() -> None:
    assert digest_lines(["b", "a"]) == digest_lines(["a", "b"])
    assert digest_lines(["a", "a"]) != digest_lines(["a"])


@pytest.mark.parametrize("count", [0, 1, 2, 40_000])
def test_packed_digests_give_the_digest_of_their_lines(count: int) -> None:
    packed = np.random.default_rng(0).bytes(32 * count)
    # Zero bytes at an end, where they are easily lost, and the same line twice.
    rows = [packed[i : i + 32] for i in range(0, len(packed), 32)]
    rows = [row[:30] + bytes(2) if i % 3 else row for i, row in enumerate(rows)] + rows[-1:]
    assert digest_sorted(b"".join(rows)) == digest_lines(row.hex() for row in rows)


def test_pixels_know_their_shape_and_not_their_layout_in_memory() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 6, 1)
    assert digest_pixels(pixels) != digest_pixels(pixels.reshape(6, 2, 1))
    turned = np.asfortranarray(pixels)
    assert digest_pixels(turned) == digest_pixels(pixels)
    other = pixels.copy()
    other[1, 5] += 1
    assert digest_pixels(other) != digest_pixels(pixels)


def test_files_hash_as_sha256sum_does(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one chunk
    (tmp_path / "a").write_bytes(data)
    assert digest_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_folder_lists_every_file_by_relative_name(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "d").write_text("x")
    (tmp_path / "a").write_text("x")
    found = digest_folder(tmp_path)
    assert list(found) == ["a", "b/c/d"]
    assert found["a"] == found["b/c/d"] == hashlib.sha256(b"x").hexdigest()
