from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readers.fixtures import write_idx

from pipeline.errors import InputError
from pipeline.params import PrepareParams
from pipeline.readers.digits import read_digits
from pipeline.readers.read import read_source, source_digest
from pipeline.readers.source import Pixels

MakeImageFolder = Callable[..., Path]


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_idx(tmp_path, "train", random.integers(0, 256, (6, 4, 4), np.uint8), [0, 1, 2, 0, 1, 2])
    write_idx(tmp_path, "t10k", random.integers(0, 256, (3, 4, 4), np.uint8), [2, 1, 0])
    return tmp_path


def test_the_digest_follows_the_content(tmp_path: Path, make_image_folder: MakeImageFolder) -> None:
    make_image_folder(tmp_path, {"cat": 2, "dog": 2})
    params = PrepareParams(source="folder", path=str(tmp_path))
    seen = Counter([source_digest(params)])
    assert source_digest(params) in seen
    (tmp_path / "README.md").write_text("ignored")
    assert source_digest(params) in seen
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "000.png")
    seen[source_digest(params)] += 1
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / "009.png")
    seen[source_digest(params)] += 1
    (tmp_path / "stray.txt").write_text("x")
    seen[source_digest(params)] += 1
    assert len(seen) == 4


def test_the_digest_does_not_read_oversized_files_or_pipes(
    tmp_path: Path, make_image_folder: MakeImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    make_image_folder(tmp_path, {"cat": 1, "dog": 1})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    monkeypatch.setattr("pipeline.data.decoding.open", lambda *_, **__: 1 / 0, raising=False)
    params = PrepareParams(source="folder", path=str(tmp_path), max_file_bytes=64)
    assert len(source_digest(params)) == 64


def test_the_digest_does_not_depend_on_where_the_folder_is(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path / "a", {"cat": 1, "dog": 1})
    make_image_folder(tmp_path / "b", {"cat": 1, "dog": 1})
    a, b = (PrepareParams(source="folder", path=str(tmp_path / name)) for name in "ab")
    assert source_digest(a) == source_digest(b)


def test_the_digests_of_idx_and_digits(idx_folder: Path) -> None:
    params = PrepareParams(source="idx", path=str(idx_folder))
    before = source_digest(params)
    (idx_folder / "classes.txt").write_text("a\nb\nc\n")
    assert source_digest(params) != before
    assert source_digest(PrepareParams()) == source_digest(PrepareParams(seed=9))


@pytest.mark.parametrize("source", ["digits", "folder", "idx"])
def test_the_digest_follows_the_pool(
    tmp_path: Path, make_image_folder: MakeImageFolder, source: str
) -> None:
    raw = make_image_folder(tmp_path / "raw", {"cat": 1, "dog": 1})
    write_idx(raw, "train", np.zeros((3, 4, 4), np.uint8), [0, 1, 0])
    pool = tmp_path / "pool"
    params = PrepareParams(source=source, path=str(raw), pool_path=str(pool))
    missing = source_digest(params)
    pool.mkdir()
    (pool / "README.md").write_text("ignored")
    assert source_digest(params) == missing
    seen = {missing}
    Image.new("L", (4, 4)).save(pool / "a.png")
    seen.add(source_digest(params))
    Image.new("L", (4, 4), 9).save(pool / "a.png")
    seen.add(source_digest(params))
    (pool / "notes.txt").write_text("x")
    seen.add(source_digest(params))
    assert len(seen) == 4
    pool.rename(tmp_path / "elsewhere")
    moved = params.model_copy(update={"pool_path": str(tmp_path / "elsewhere")})
    assert source_digest(moved) in seen


def test_digits_are_real_and_scaled() -> None:
    source = read_digits()
    assert isinstance(source.contents, Pixels)
    assert source.contents.images.shape == (1797, 8, 8, 1)
    assert set(np.unique(source.contents.images)) == {round(v * 255 / 16 + 1e-9) for v in range(17)}
    assert source.classes == tuple("0123456789")
    assert source.names[12] == "digits/00012"
    assert np.bincount(source.labels).tolist()[:3] == [178, 182, 177]
    assert source.conversions == {"values 0 to 16 scaled to 0 to 255": 1797}


def test_read_source_follows_the_params(idx_folder: Path) -> None:
    assert read_source(PrepareParams()).names[0] == "digits/00000"
    idx = read_source(PrepareParams(source="idx", path=str(idx_folder)))
    assert idx.names[0] == "train/00000"
    with pytest.raises(InputError, match="found 0 class folders"):
        read_source(PrepareParams(source="folder", path=str(idx_folder)))
