import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from readers.fixtures import add_member, pngs, webdataset
from readers.reading import LIMITS, reasons

from pipeline.data.decoding import Rejected
from pipeline.errors import InputError
from pipeline.readers.webdataset import read_webdataset

PNG = pngs()[0]


def shard(path: Path, members: Sequence[tuple[str, bytes]], **options: int) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            add_member(archive, name, data)
    return path


GOOD = [("a.png", PNG), ("a.cls", b"0"), ("b.png", pngs()[1]), ("b.cls", b"1")]


def test_json_text_and_class_names(tmp_path: Path) -> None:
    told = {"label": "cat", "group": "g", "time": 3, "split": "test", "text": "a cat"}
    members = [
        ("x/1.jpg", PNG),
        ("x/1.json", json.dumps(told).encode()),
        ("x/2.left.png", PNG),
        ("x/2.cls", b"1\n"),
        ("x/2.txt", b"a caption"),
        ("x/3.PNG", PNG),
        ("x/3.txt", b"cat"),
    ]
    shard(tmp_path / "train-000000.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = read_webdataset(tmp_path, LIMITS)
    assert source.names == tuple(f"train-000000.tar/x/{i}" for i in (1, 2, 3))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.given == ("test", None, None)
    assert source.groups == ("g", None, None)
    assert source.texts == ("a cat", "a caption", None)


def test_members_names_never_touch_the_disk(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    names = ("../../evil", "/etc/evil", "..\\evil", "C:/evil", "e\x1b[2Jvil")
    evil = [
        (f"{name}.{end}", PNG if end == "png" else b"0") for name in names for end in ("png", "cls")
    ]
    shard(root / "0.tar", [*evil, *GOOD])
    source = read_webdataset(root, LIMITS)
    assert len(source) == 6
    assert source.names[3] == "0.tar/e\\x1b[2Jvil"
    assert source.contents.fetch(0) == PNG
    assert all(name.isprintable() for name in source.names)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0.tar", "set"]


def test_each_bad_sample_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (
            *(("none.cls", b"0"), ("two.png", PNG), ("two.jpg", PNG), ("two.cls", b"0")),
            *(("blank.png", PNG), ("blank.cls", b"")),
            *(("minus.png", PNG), ("minus.cls", b"-1")),
            *(("bare.png", PNG), ("broken.png", PNG), ("broken.json", b"[" * 9_000)),
            *(("list.png", PNG), ("list.json", b'{"label": ["a"]}')),
            *(("huge.png", PNG), ("huge.cls", b"0" * 70_000)),
            *(("twice.png", PNG), ("twice.cls", b"0"), ("twice.cls", b"1")),
            *(("ansi.png", PNG), ("ansi.cls", b"\x1b[2J"), ("noending", PNG)),
            *GOOD,
            *(("a.png", PNG), ("a.cls", b"0")),
        ):
            add_member(archive, name, data)
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    source = read_webdataset(path, LIMITS)
    assert source.names == ("0.tar/a", "0.tar/b")
    assert reasons(source) == {
        "0.tar/none": "no image in the sample",
        "0.tar/two": "malformed row",
        "0.tar/blank": "no label",
        "0.tar/minus": "no label",
        "0.tar/bare": "no label",
        "0.tar/broken": "malformed row",
        "0.tar/list": "malformed row",
        "0.tar/huge": "malformed row",
        "0.tar/twice": "malformed row",
        "0.tar/ansi": "label that cannot be shown",
        "0.tar/noending": "malformed row",
        "0.tar/a": "listed more than once",
        "0.tar/link.png": "not a regular file",
        "0.tar/hard.png": "not a regular file",
    }


def test_a_truncated_or_compressed_shard_is_one_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", GOOD)
    data = path.read_bytes()
    path.write_bytes(data[:600])
    with pytest.raises(InputError, match="damaged or compressed tar file"):
        read_webdataset(path, LIMITS)
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match="damaged or compressed tar file"):
        read_webdataset(path, LIMITS)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="damaged or compressed tar file|no usable item"):
        read_webdataset(path, LIMITS)
    path.unlink()
    with pytest.raises(InputError, match="no .tar file"):
        read_webdataset(tmp_path, LIMITS)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_claims_gigabytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("name")
    member.type, member.size = kind, 1 << 40
    block = member.tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "0.tar"
    path.write_bytes(block + b"x" * 4_096)
    with pytest.raises(InputError, match="a header of 1099511627776 bytes"):
        read_webdataset(path, LIMITS)


def test_sizes_that_lie_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 40
    out.write(member.tobuf(tarfile.GNU_FORMAT))
    out.write(b"\0" * 1_024)
    path = tmp_path / "0.tar"
    path.write_bytes(out.getvalue())
    with pytest.raises(InputError, match="damaged or compressed tar file"):
        read_webdataset(path, LIMITS)


def test_a_shard_that_shrinks_or_goes_rejects_its_images(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", GOOD)
    source = read_webdataset(path, LIMITS)
    path.write_bytes(path.read_bytes()[:520])
    found = source.contents.fetch(0)
    assert isinstance(found, Rejected)
    assert found.reason == "truncated"
    path.unlink()
    assert source.contents.digest(0) == "unreadable"


def test_limits(tmp_path: Path) -> None:
    root = webdataset(tmp_path / "set")
    source = read_webdataset(root, replace(LIMITS, max_file_bytes=10))
    found = source.contents.fetch(0)
    assert isinstance(found, Rejected)
    assert found.reason == "file too large"


def test_shards_that_are_links_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    shard(tmp_path / "outside.tar", GOOD)
    (tmp_path / "set" / "0.tar").symlink_to(tmp_path / "outside.tar")
    with pytest.raises(InputError, match="no .tar file"):
        read_webdataset(tmp_path / "set", LIMITS)
