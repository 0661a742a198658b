import json
import os
from pathlib import Path

import pytest

from pipeline.errors import InputError, StageError
from pipeline.folders import (
    read_manifest,
    replace_folder,
    safe_join,
    write_bytes,
    write_json,
    write_manifest,
)
from pipeline.hashing import digest_file


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "a/../b", "../x", "a\0b", "..\\x", "C:\\x"]
)
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not a path inside .*without"):
        safe_join(tmp_path, name)


def test_plain_names_and_inner_links_are_joined(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert safe_join(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    assert safe_join(tmp_path, "link/x") == tmp_path / "link" / "x"
    assert safe_join(tmp_path, "..a/b..") == tmp_path / "..a" / "b.."


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "root-twin").mkdir()
    (root / "out").symlink_to(tmp_path / "root-twin")
    with pytest.raises(InputError, match="a link leads out of"):
        safe_join(root, "out/x")


def test_replace_moves_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for text in ("first", "second"):
        finished = tmp_path / "work" / "finished"
        finished.mkdir(parents=True)
        (finished / f"{text}.txt").write_text(text)
        replace_folder(finished, target)
        assert [path.name for path in target.iterdir()] == [f"{text}.txt"]
    assert list((tmp_path / "work").iterdir()) == []


def test_manifest_round_trip(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    manifest = write_manifest(tmp_path, "train", "k" * 64, {"steps": 3}, {"prepare": "d"})
    assert read_manifest(tmp_path) == manifest
    assert manifest.files == {"sub/a.txt": digest_file(tmp_path / "sub" / "a.txt")}
    again = write_manifest(tmp_path, "train", "k" * 64, {"steps": 3}, {"prepare": "d"})
    assert again == manifest
    (tmp_path / "sub" / "a.txt").write_text("b")
    assert write_manifest(tmp_path, "train", "k", {}, {}).digest != manifest.digest


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "absent") is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"stage": "train"}', '{"extra": 1}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StageError, match=r"manifest\.json: damaged manifest .*delete .* run again"):
        read_manifest(tmp_path)


def test_a_manifest_that_names_a_file_outside_is_damaged(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", "k", {}, {})
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text()) | {"files": {"../x": "0"}}
    path.write_text(json.dumps(data))
    with pytest.raises(StageError, match="damaged manifest"):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"b": 1, "a": [2.5]})
    text = (tmp_path / "a" / "x.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", float("nan"))
