import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from readers.reading import reasons

from pipeline.data.decoding import Rejected
from pipeline.data.store import UNLABELLED
from pipeline.errors import InputError
from pipeline.readers.folder import read_folder
from pipeline.readers.limits import ReadLimits
from pipeline.readers.read import read_pool

MakeImageFolder = Callable[..., Path]


def test_folder_is_sorted_and_read_below(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"dog": 2, "cat": 2})
    (tmp_path / "cat" / "more" / "still").mkdir(parents=True)
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "cat" / "more" / "still" / "X.PNG")
    source = read_folder(tmp_path, ReadLimits())
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
    source = read_folder(tmp_path, ReadLimits())
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
    source = read_folder(root, ReadLimits())
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
    names = read_folder(tmp_path, ReadLimits()).names
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
        read_folder(tmp_path, ReadLimits())


def test_markup_in_a_class_name_is_only_text(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"<script>alert(1)<": 1, "dog": 1})
    assert read_folder(tmp_path, ReadLimits()).classes == ("<script>alert(1)<", "dog")


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such folder; put the images there.*digits"):
        read_folder(tmp_path / "absent", ReadLimits())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        read_folder(tmp_path / "file", ReadLimits())


def test_a_folder_without_classes_shows_the_layout(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"found 0 class folders.*for example cat/001\.png"):
        read_folder(tmp_path, ReadLimits())


def test_one_class_and_1001_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(InputError, match="found 1 class folders, where 2 to 1000"):
        read_folder(tmp_path, ReadLimits())
    for i in range(1000):
        (tmp_path / f"c{i}").mkdir()
    with pytest.raises(InputError, match="found 1001 class folders"):
        read_folder(tmp_path, ReadLimits())


def test_an_empty_class_folder_is_named(tmp_path: Path, make_image_folder: MakeImageFolder) -> None:
    make_image_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / ".keep").touch()
    with pytest.raises(InputError, match=r"bird: the class folder holds no image file; add .*png"):
        read_folder(tmp_path, ReadLimits())


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
    assert list(pool.contents.paths) == [name.removeprefix("pool/") for name in pool.names]
    assert pool.labels.tolist() == [UNLABELLED] * 5
    assert set(pool.given) == {"pool"}
    assert pool.classes == ()
    assert reasons(pool) == {"pool/a/notes.txt": "not named as an image"}


def test_a_pool_that_is_empty_or_missing_has_no_items(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        pool = read_pool(root)
        assert (pool.names, pool.quarantine) == ((), ())
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


def test_a_level_of_splits_is_recognised_in_any_case(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path / "TRAIN", {"cat": 2, "dog": 1})
    make_image_folder(tmp_path / "Test", {"cat": 1})
    source = read_folder(tmp_path, ReadLimits())
    assert source.classes == ("cat", "dog")
    assert source.names[0] == "TRAIN/cat/000.png"
    # Validation rows have still to be drawn, from those that are said to be training rows.
    assert dict(zip(source.names, source.given, strict=True)) == {
        "TRAIN/cat/000.png": None,
        "TRAIN/cat/001.png": None,
        "TRAIN/dog/000.png": None,
        "Test/cat/000.png": "test",
    }
    make_image_folder(tmp_path / "valid", {"dog": 1})
    source = read_folder(tmp_path, ReadLimits())
    assert sorted(source.given) == ["test", "train", "train", "train", "validation"]


def test_two_folders_for_one_split_are_refused(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    for name in ("train", "val", "validation"):
        make_image_folder(tmp_path / name, {"cat": 1, "dog": 1})
    with pytest.raises(InputError, match="val and validation mean the same split"):
        read_folder(tmp_path, ReadLimits())


def test_classes_that_are_named_as_splits_stay_classes(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    make_image_folder(tmp_path, {"train": 1, "test": 1})
    assert read_folder(tmp_path, ReadLimits()).classes == ("test", "train")


def test_a_file_that_becomes_a_link_after_listing_is_not_opened(
    tmp_path: Path, make_image_folder: MakeImageFolder
) -> None:
    root = make_image_folder(tmp_path / "root", {"cat": 1, "dog": 1})
    outside = make_image_folder(tmp_path / "outside", {"cat": 1})
    source = read_folder(root, ReadLimits())
    (root / "cat" / "000.png").unlink()
    (root / "cat" / "000.png").symlink_to(outside / "cat" / "000.png")
    found = source.contents.fetch(0)
    assert isinstance(found, Rejected)
    assert found.reason == "leads out of the folder"
    shutil.rmtree(root / "dog")
    (root / "dog").symlink_to(outside / "cat")
    assert isinstance(source.contents.fetch(1), Rejected)
    assert source.contents.digest(1) == "leads out of the folder"
