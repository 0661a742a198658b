import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from readers.reading import LIMITS, reasons

from pipeline.errors import InputError
from pipeline.readers.arrays import from_arrays, write_arrays
from pipeline.readers.npz import read_npz
from pipeline.readers.source import Pixels

IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = np.asarray([0, 1, 0, 1, 0, 1])


def header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_arrays_written_by_us_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    splits = ["train", "train", "validation", "test", "test", None]
    written = write_arrays(path, IMAGES, LABELS, ["cat", "dog"], splits, ["a", "a", *[None] * 4])
    source = read_npz(path, LIMITS)
    assert source.classes == written.classes == ("cat", "dog")
    assert source.given == written.given == ("train", "train", "validation", "test", "test", None)
    assert source.groups == ("a", "a", None, None, None, None)
    assert isinstance(source.contents, Pixels)
    assert np.array_equal(source.contents.images[:, :, :, 0], IMAGES)
    with pytest.raises(InputError, match="exists already"):
        write_arrays(path, IMAGES, LABELS)


@pytest.mark.parametrize(
    ("images", "conversion"),
    [
        (IMAGES.astype(np.float32) / 255, "floats 0 to 1 scaled to 0 to 255"),
        (IMAGES.astype(np.float64) + 0.25, "floats 0 to 255 rounded"),
        (IMAGES.astype(np.uint16) * 257, "16-bit to 8-bit, divided by 257"),
        (IMAGES[:, None], "channels moved from first to last"),
    ],
)
def test_conversions_are_stated_and_exact(images: np.ndarray, conversion: str) -> None:
    source = from_arrays(images, LABELS)
    assert source.conversions == {conversion: 6}
    assert isinstance(source.contents, Pixels)
    assert np.array_equal(source.contents.images[:, :, :, 0], IMAGES)


def test_whole_numbers_and_truth_values_become_bytes() -> None:
    assert from_arrays(IMAGES.astype(np.int64), LABELS).conversions == {}
    source = from_arrays(IMAGES > 40, LABELS)
    assert isinstance(source.contents, Pixels)
    assert set(np.unique(source.contents.images)) == {0, 255}


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((6, 4, 4), np.nan), LABELS, "from nan to nan"),
        (np.full((6, 4, 4), -1), LABELS, "from -1 to -1"),
        (np.full((6, 4, 4), "x"), LABELS, "images of type <U1"),
        (np.zeros((6, 4, 4, 4), np.uint8), LABELS, r"images of shape \(6, 4, 4, 4\)"),
        (np.zeros((6, 0, 4), np.uint8), LABELS, "none of them 0"),
        (IMAGES, LABELS[:5], "6 images and 5 labels"),
        (IMAGES, np.zeros((6, 3), int), "one label an image is read, not several"),
        (IMAGES, LABELS / 2, "labels of type float64"),
        (IMAGES, np.zeros(6, int), "only the class '0'"),
        (IMAGES, np.full(6, -1), "no usable item; set aside: 6 no label"),
    ],
)
def test_arrays_of_no_use_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(images, labels)


def test_a_bad_label_sets_its_row_aside_and_the_images_keep_their_rows() -> None:
    source = from_arrays(IMAGES, [0, -1, 1, 7, 0, 1], ["cat", "dog"])
    assert reasons(source) == {"0000001": "no label", "0000003": "unknown label"}
    assert source.names == ("0000000", "0000002", "0000004", "0000005")
    assert isinstance(source.contents, Pixels)
    assert np.array_equal(source.contents.images[:, :, :, 0], IMAGES[[0, 2, 4, 5]])


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "boom",))

    path = archive(
        tmp_path / "x.npz",
        images=header("(6,)", "'|O'") + pickle.dumps([Bomb()] * 6),
        labels=npy(LABELS),
    )
    with pytest.raises(InputError, match="images of shape|never unpickled"):
        read_npz(path, LIMITS)
    archive(path, images=npy(IMAGES), labels=header("(6,)", "'|O'") + pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="Python objects are never unpickled"):
        read_npz(path, LIMITS)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (header("(10000000, 1000, 1000)"), "at most 5000000 are read"),
        (header("(1000000, 1000, 1000)"), "declares 1000000000000 bytes; at most 16777216"),
        (header("(6, 100000, 100000)"), "at most 50000000 pixels"),
        (header("(6, 4, 4)"), "do not agree"),
        (header("(6, 4, 4)") + bytes(1 << 20), "do not agree"),
        (header("(-6, -4, 4)"), "damaged"),
        (header("(6, 4, 4)", "[('a', '|u1')]"), "values of type"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"junk", "damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 0xFFFF, "damaged"),
    ],
)
def test_hostile_headers_are_refused_before_there_is_memory(
    tmp_path: Path, images: bytes, message: str
) -> None:
    path = archive(tmp_path / "x.npz", images=images, labels=npy(LABELS))
    with pytest.raises(InputError, match=message):
        read_npz(path, LIMITS)


def test_a_bomb_behind_a_modest_zip_entry_is_refused(tmp_path: Path) -> None:
    whole = npy(np.zeros((1000, 100, 100), np.uint8))
    path = archive(tmp_path / "x.npz", images=whole, labels=npy(np.arange(1000) % 2))
    data = path.read_bytes()
    small = len(header("(6, 4, 4)")) + 96
    # The archive claims a small member; what it unpacks to is 10 MB.
    path.write_bytes(data.replace(len(whole).to_bytes(4, "little"), small.to_bytes(4, "little")))
    with pytest.raises(InputError, match="Bad CRC|do not agree"):
        read_npz(path, LIMITS)
    path.write_bytes(data)
    with pytest.raises(InputError, match="declares 10000000 bytes; at most 1000000"):
        read_npz(path, replace(LIMITS, max_array_bytes=1_000_000))


def test_other_files_and_keys(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", weights=npy(IMAGES))
    with pytest.raises(InputError, match=r"none of the keys .*; it has weights\.npy"):
        read_npz(path, LIMITS)
    archive(path, images=npy(IMAGES))
    with pytest.raises(InputError, match="has no key labels"):
        read_npz(path, LIMITS)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match="damaged .npz"):
        read_npz(path, LIMITS)
    archive(
        path, train_images=npy(IMAGES), train_labels=npy(LABELS), test_images=npy(IMAGES[:, 1:])
    )
    with pytest.raises(InputError, match="another size"):
        read_npz(path, LIMITS)


def test_kerass_keys_give_the_test_rows(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "mnist.npz",
        x_train=npy(IMAGES),
        y_train=npy(LABELS),
        x_test=npy(IMAGES[:2]),
        y_test=npy(LABELS[:2]),
    )
    assert read_npz(path, LIMITS).given == (None,) * 6 + ("test",) * 2
