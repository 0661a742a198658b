import struct
from pathlib import Path

import numpy as np
import pytest
from readers.fixtures import write_idx

from pipeline.errors import InputError
from pipeline.readers.idx import read_idx_folder
from pipeline.readers.limits import ReadLimits
from pipeline.readers.source import Pixels


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_idx(tmp_path, "train", random.integers(0, 256, (6, 4, 4), np.uint8), [0, 1, 2, 0, 1, 2])
    write_idx(tmp_path, "t10k", random.integers(0, 256, (3, 4, 4), np.uint8), [2, 1, 0])
    return tmp_path


def test_idx_rows_of_t10k_are_test(idx_folder: Path) -> None:
    source = read_idx_folder(idx_folder, ReadLimits())
    assert isinstance(source.contents, Pixels)
    assert source.contents.images.shape == (9, 4, 4, 1)
    assert source.given == (None,) * 6 + ("test",) * 3
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert source.names[0] == "train/00000"
    assert source.names[-1] == "t10k/00002"
    assert source.classes == ("0", "1", "2")


def test_idx_without_t10k_gives_no_split(idx_folder: Path) -> None:
    for path in idx_folder.glob("t10k*"):
        path.unlink()
    assert set(read_idx_folder(idx_folder, ReadLimits()).given) == {None}


def test_idx_labels_that_start_at_one_make_no_empty_class(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.zeros((3, 4, 4), np.uint8), [1, 7, 1])
    source = read_idx_folder(tmp_path, ReadLimits())
    assert source.classes == ("1", "7")
    assert source.labels.tolist() == [0, 1, 0]


def test_idx_class_names(idx_folder: Path) -> None:
    names = idx_folder / "classes.txt"
    names.write_bytes(b"shirt\r\nbag\r\nboot\r\n")
    assert read_idx_folder(idx_folder, ReadLimits()).classes == ("shirt", "bag", "boot")
    names.write_text("shirt\nbag\n")
    with pytest.raises(InputError, match=r"names 2 classes, and row 2 has the label 2; name every"):
        read_idx_folder(idx_folder, ReadLimits())
    names.write_text("shirt\nbag\nbag\n")
    with pytest.raises(InputError, match="one class name a line, each once"):
        read_idx_folder(idx_folder, ReadLimits())
    names.write_text("shirt\nbag\n\x1b[2J\n")
    with pytest.raises(InputError, match="holds the character"):
        read_idx_folder(idx_folder, ReadLimits())
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not readable as UTF-8"):
        read_idx_folder(idx_folder, ReadLimits())


def test_idx_files_must_agree(idx_folder: Path) -> None:
    labels = idx_folder / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 0x801, 5) + bytes(5))
    with pytest.raises(InputError, match=r"holds 6 images and .* 5 labels; they must come from"):
        read_idx_folder(idx_folder, ReadLimits())
    labels.unlink()
    with pytest.raises(InputError, match="has no file train-labels-idx1-ubyte"):
        read_idx_folder(idx_folder, ReadLimits())


def test_idx_limits_and_missing_files(idx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images of 16 pixels; at most 15 are read"):
        read_idx_folder(idx_folder, ReadLimits(max_image_pixels=15))
    write_idx(idx_folder, "t10k", np.zeros((1, 5, 5), np.uint8), [0])
    with pytest.raises(InputError, match="another size than the training images"):
        read_idx_folder(idx_folder, ReadLimits())
    with pytest.raises(InputError, match="absent: no such folder"):
        read_idx_folder(tmp_path / "absent", ReadLimits())
