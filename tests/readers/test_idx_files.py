import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.readers.idx_files import find_idx, read_idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def idx_bytes(shape: tuple[int, ...], data: bytes, magic: int | None = None) -> bytes:
    first = 0x0800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", first, *shape) + data


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_round_trip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a-idx3-ubyte{ending}"
    data = idx_bytes(ARRAY.shape, ARRAY.tobytes())
    path.write_bytes(gzip.compress(data) if ending else data)
    assert np.array_equal(read_idx(path, 3), ARRAY)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx_bytes((2, 3, 4), bytes(24), magic=0x0801), "begins with 0x00000801, not with 0x0000"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "begins with 0x89504e47"),
        (b"", "begins with 0x, not with"),
        (idx_bytes((2, 3, 4), b"")[:9], "ends within its header of 16 bytes"),
        (idx_bytes((2, 3, 4), bytes(23)), "declares 2 x 3 x 4 = 24 bytes and holds only 23"),
        (idx_bytes((2, 3, 4), bytes(25)), "declares 2 x 3 x 4 = 24 bytes and holds more"),
        (idx_bytes((2**32 - 1,) * 3, bytes(24)), "between 1 and 2147483648 are read"),
        (idx_bytes((60_000, 28, 28), bytes(24)), "= 47040000 bytes and holds only 24"),
        (idx_bytes((0, 28, 28), b""), "declares 0 x 28 x 28"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: bytes, message: str, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "download the file again" in str(caught.value)


def test_a_gzip_bomb_is_read_no_further_than_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes((2, 3, 4), bytes(50_000_000)), compresslevel=1))
    asked: list[int] = []
    read = gzip.GzipFile.read

    def watched(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", watched)
    with pytest.raises(InputError, match="holds more"):
        read_idx(path, 3)
    assert min(asked) > 0
    assert sum(asked) == 16 + 25


@pytest.mark.parametrize("cut", [-5, 12])
def test_a_cut_or_false_gzip_is_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes(ARRAY.shape, ARRAY.tobytes()))[:cut])
    with pytest.raises(InputError, match="damaged gzip file"):
        read_idx(path, 3)
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match="damaged gzip file"):
        read_idx(path, 3)


def test_the_usual_names_are_found_and_plain_ones_first(tmp_path: Path) -> None:
    assert find_idx(tmp_path, "train", "images", 3) is None
    zipped = tmp_path / "train-images-idx3-ubyte.gz"
    zipped.touch()
    assert find_idx(tmp_path, "train", "images", 3) == zipped
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.touch()
    assert find_idx(tmp_path, "train", "images", 3) == plain
    (tmp_path / "t10k-labels.idx1-ubyte").touch()
    assert find_idx(tmp_path, "t10k", "labels", 1) == tmp_path / "t10k-labels.idx1-ubyte"
