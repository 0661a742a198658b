import errno
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.readers import (
    Source,
    read_digits,
    read_folder,
    read_idx_folder,
    read_pool,
    read_source,
    source_digest,
)
from pipeline.data.store import UNLABELLED
from pipeline.errors import InputError
from pipeline.params import PrepareParams

MakeImageFolder = Callable[..., Path]


def reasons(source: Source) -> dict[str, str]:
    return {item.file: item.reason for item in source.quarantine}


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: list[int]) -> None:
    head = struct.pack(">4I", 0x803, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">2I", 0x801, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(head + bytes(labels))


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_idx(tmp_path, "train", random.integers(0, 256, (6, 4, 4), np.uint8), [0, 1, 2, 0, 1, 2])
    write_idx(tmp_path, "t10k", random.integers(0, 256, (3, 4, 4), np.uint8), [2, 1, 0])
    return tmp_path


def test_digits_are_real_and_scaled() -> None:
    source = read_digits()
    assert source.pixels is not None
    assert source.pixels.shape == (1797, 8, 8, 1)
    assert set(np.unique(source.pixels)) == {round(v * 255 / 16 + 1e-9) for v in range(17)}
    assert source.classes == tuple("0123456789")
    assert source.names[12] == "digits/00012"
    assert np.bincount(source.labels).tolist()[:3] == [178, 182, 177]
    assert source.conversions == {"values 0 to 16 scaled to 0 to 255": 1797}


def test_folder_is_sorted_and_read_below(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"dog": 2, "cat": 2})
    (tmp_path / "cat" / "more" / "still").mkdir(parents=True)
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "cat" / "more" / "still" / "X.PNG")
    source = read_folder(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.names == (
        "cat/000.png",
        "cat/001.png",
        "cat/more/still/X.PNG",
        "dog/000.png",
        "dog/001.png",
    )
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.quarantine == ()


def test_hidden_files_and_the_readme_are_ignored_and_strays_are_named(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"cat": 1, "dog": 1})
    for name in (".gitignore", "README.md", ".DS_Store", "cat/.DS_Store", "notes.txt", "a.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "cat" / "labels.csv").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "cat" / ".thumbnails").mkdir()
    (tmp_path / "cat" / ".thumbnails" / "000.png").write_text("x")
    source = read_folder(tmp_path)
    assert len(source.names) == 2
    assert reasons(source) == {
        "notes.txt": "not in a class folder",
        "a.png": "not in a class folder",
        "cat/labels.csv": "not named as an image",
    }


def test_links_that_lead_out_are_never_read(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("L", (4, 4)).save(outside / "secret.png")
    root = make_image_folder(tmp_path / "root", {"cat": 1, "dog": 1})
    (root / "cat" / "out.png").symlink_to(outside / "secret.png")
    (root / "cat" / "climb.png").symlink_to("../../outside/secret.png")
    (root / "cat" / "in.png").symlink_to("../dog/000.png")
    (root / "cat" / "ring.png").symlink_to("ring.png")
    (root / "cat" / "folder").symlink_to(outside)
    (root / "cat" / "loop").symlink_to("..")
    (root / "bird").symlink_to(outside)
    (root / "cat" / "a\\..\\evil.png").write_text("x")
    source = read_folder(root)
    assert source.classes == ("cat", "dog")
    assert source.names == ("cat/000.png", "cat/in.png", "dog/000.png")
    assert reasons(source) == {
        "bird": "leads out of the folder",
        "cat/a\\..\\evil.png": "leads out of the folder",
        "cat/climb.png": "leads out of the folder",
        "cat/folder": "leads out of the folder",
        "cat/loop": "link to a folder",
        "cat/out.png": "leads out of the folder",
        "cat/ring.png": "leads out of the folder",
    }


def test_a_name_that_is_no_utf8_can_still_be_listed(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat" / "b\udcff.png").write_text("x")
    names = read_folder(tmp_path).names
    assert "cat/b\\xff.png" in names
    assert "".join(names).encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat\n", r"'cat\\n' holds the character '\\n'"),
        ("\x1b[31mred", r"holds the character '\\x1b'"),
        ("\u202egnp", r"holds the character '\\u202e'"),
        ("b\udcff", r"holds the character '\\udcff'"),
        (" ", "is blank"),
    ],
)
def test_hostile_class_names_are_refused(
    tmp_path: Path, make_image_folder: MakeImageFolder, name: str, shown: str
) -> None:
    make_image_folder(tmp_path, {"dog": 1, name: 1})
    with pytest.raises(InputError, match=shown + ".*rename the class"):
        read_folder(tmp_path)


def test_markup_in_a_class_name_is_only_text(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"<script>alert(1)<": 1, "dog": 1})
    assert read_folder(tmp_path).classes == ("<script>alert(1)<", "dog")


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such folder; put the images there.*digits"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        read_folder(tmp_path / "file")


def test_a_folder_without_classes_shows_the_layout(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"found 0 class folders.*for example cat/001\.png"):
        read_folder(tmp_path)


def test_one_class_and_1001_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(InputError, match="found 1 class folders, where 2 to 1000"):
        read_folder(tmp_path)
    for i in range(1000):
        (tmp_path / f"c{i}").mkdir()
    with pytest.raises(InputError, match="found 1001 class folders"):
        read_folder(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path, make_image_folder: MakeImageFolder) -> None:
    make_image_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / ".keep").touch()
    with pytest.raises(InputError, match=r"bird: the class folder holds no image file; add .*png"):
        read_folder(tmp_path)


def test_idx_rows_of_t10k_are_test(idx_folder: Path) -> None:
    source = read_idx_folder(idx_folder, 1000)
    assert source.pixels is not None
    assert source.pixels.shape == (9, 4, 4, 1)
    assert source.given == (None,) * 6 + ("test",) * 3
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert source.names[0] == "train/00000"
    assert source.names[-1] == "t10k/00002"
    assert source.classes == ("0", "1", "2")


def test_idx_without_t10k_gives_no_split(idx_folder: Path) -> None:
    for path in idx_folder.glob("t10k*"):
        path.unlink()
    assert set(read_idx_folder(idx_folder, 1000).given) == {None}


def test_idx_labels_that_start_at_one_make_no_empty_class(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", np.zeros((3, 4, 4), np.uint8), [1, 7, 1])
    source = read_idx_folder(tmp_path, 1000)
    assert source.classes == ("1", "7")
    assert source.labels.tolist() == [0, 1, 0]


def test_idx_class_names(idx_folder: Path) -> None:
    names = idx_folder / "classes.txt"
    names.write_bytes(b"shirt\r\nbag\r\nboot\r\n")
    assert read_idx_folder(idx_folder, 1000).classes == ("shirt", "bag", "boot")
    names.write_text("shirt\nbag\n")
    with pytest.raises(InputError, match=r"names 2 classes, and row 2 has the label 2; name every"):
        read_idx_folder(idx_folder, 1000)
    names.write_text("shirt\nbag\nbag\n")
    with pytest.raises(InputError, match="one class name a line, each once"):
        read_idx_folder(idx_folder, 1000)
    names.write_text("shirt\nbag\n\x1b[2J\n")
    with pytest.raises(InputError, match="holds the character"):
        read_idx_folder(idx_folder, 1000)
    names.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not readable as UTF-8"):
        read_idx_folder(idx_folder, 1000)


def test_idx_files_must_agree(idx_folder: Path) -> None:
    labels = idx_folder / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 0x801, 5) + bytes(5))
    with pytest.raises(InputError, match=r"holds 6 images and .* 5 labels; they must come from"):
        read_idx_folder(idx_folder, 1000)
    labels.unlink()
    with pytest.raises(InputError, match="has no file train-labels-idx1-ubyte"):
        read_idx_folder(idx_folder, 1000)


def test_idx_limits_and_missing_files(idx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images of 16 pixels; at most 15 are read"):
        read_idx_folder(idx_folder, 15)
    write_idx(idx_folder, "t10k", np.zeros((1, 5, 5), np.uint8), [0])
    with pytest.raises(InputError, match="another size than the training images"):
        read_idx_folder(idx_folder, 1000)
    with pytest.raises(InputError, match="absent: no such folder"):
        read_idx_folder(tmp_path / "absent", 1000)


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
    monkeypatch.setattr("pipeline.data.readers.digest_file", lambda path: 1 / 0)
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


def test_a_pool_is_read_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.png", "a/x.JPG", "a/deep/er/y.png", "z/README.png", "pool/p.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    for name in ("README.md", "a/readme", ".DS_Store", "a/.hidden.png", "a/notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "b.png").write_text("x")
    pool = read_pool(tmp_path)
    assert pool.names == (
        "pool/a/deep/er/y.png",
        "pool/a/x.JPG",
        "pool/b.png",
        "pool/pool/p.png",
        "pool/z/README.png",
    )
    assert [path.relative_to(tmp_path).as_posix() for path in pool.files] == [
        name.removeprefix("pool/") for name in pool.names
    ]
    assert pool.labels.tolist() == [UNLABELLED] * 5
    assert set(pool.given) == {"pool"}
    assert pool.classes == ()
    assert reasons(pool) == {"pool/a/notes.txt": "not named as an image"}


def test_a_pool_that_is_empty_or_missing_has_no_items(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        pool = read_pool(root)
        assert (pool.names, pool.files, pool.quarantine) == ((), (), ())
        assert pool.labels.shape == (0,)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"prepare\.pool_path = .*is a file, not a folder; put"):
        read_pool(tmp_path / "file")


def test_a_pool_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\); mend"):
        read_pool(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="cannot be listed .File name too long"):
        read_pool(tmp_path / ("x" * 300))


def test_links_that_lead_out_of_the_pool_are_never_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("L", (4, 4)).save(outside / "secret.png")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    Image.new("L", (4, 4)).save(root / "own.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "sub" / "climb.png").symlink_to("../../outside/secret.png")
    (root / "sub" / "in.png").symlink_to("../own.png")
    (root / "ring.png").symlink_to("ring.png")
    (root / "folder").symlink_to(outside)
    (root / "sub" / "loop").symlink_to("..")
    (root / "a\\..\\evil.png").write_text("x")
    pool = read_pool(root)
    assert pool.names == ("pool/own.png", "pool/sub/in.png")
    assert reasons(pool) == {
        "pool/a\\..\\evil.png": "leads out of the folder",
        "pool/folder": "leads out of the folder",
        "pool/out.png": "leads out of the folder",
        "pool/ring.png": "leads out of the folder",
        "pool/sub/climb.png": "leads out of the folder",
        "pool/sub/loop": "link to a folder",
    }


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


def test_read_source_follows_the_params(idx_folder: Path) -> None:
    assert read_source(PrepareParams()).names[0] == "digits/00000"
    idx = read_source(PrepareParams(source="idx", path=str(idx_folder)))
    assert idx.names[0] == "train/00000"
    with pytest.raises(InputError, match="found 0 class folders"):
        read_source(PrepareParams(source="folder", path=str(idx_folder)))
