"""Tar shards: members that climb, link, lie of their size or are no files, and damaged archives."""

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

from corpus.case import Case, Outcome
from corpus.places import png
from corpus.tables import damaged
from readers.fixtures import add_member

from pipeline.readers.naming import printable

SHARD = "000001.tar"
Member = tuple[str, bytes]


def cases() -> list[Case]:
    return [*_samples(), *_odd_members(), *_shards()]


def _samples() -> list[Case]:
    samples: dict[str, tuple[str, dict[str, bytes], Outcome, str]] = {
        "no label": ("s/a", {"png": png(500)}, "quarantine", "no label"),
        "no image": ("s/b", {"cls": b"0"}, "quarantine", "no image in the sample"),
        "two images": ("s/c", {"png": png(501), "jpg": png(502), "cls": b"0"}, "quarantine", ""),
        "two labels": (
            "s/d",
            {"png": png(503), "cls": b"0", "CLS": b"1"},
            "quarantine",
            "malformed row",
        ),
        "an image of nothing": ("s/e", {"png": b"", "cls": b"0"}, "quarantine", "empty file"),
        "an image of text": ("s/f", {"png": b"text", "cls": b"0"}, "quarantine", "not an image"),
        "an image of 2 MB": (
            "s/g",
            {"png": bytes(2 << 20), "cls": b"0"},
            "quarantine",
            "too large",
        ),
        "a label with escape": (
            "s/h",
            {"png": png(504), "cls": b"\x1b[2J"},
            "quarantine",
            "label that",
        ),
        "a label of no text": (
            "s/i",
            {"png": png(505), "cls": b"\xff\xfe"},
            "quarantine",
            "label that",
        ),
        "a label below 0": ("s/j", {"png": png(506), "cls": b"-7"}, "quarantine", "no label"),
        "a label of 100 kB": (
            "s/k",
            {"png": png(507), "cls": b"x" * 100_000},
            "quarantine",
            "malformed",
        ),
        "json that is none": (
            "s/l",
            {"png": png(508), "json": b"{'"},
            "quarantine",
            "malformed row",
        ),
        "json that is a list": (
            "s/m",
            {"png": png(509), "json": b"[]"},
            "quarantine",
            "malformed row",
        ),
        "json that is deep": (
            "s/n",
            {"png": png(510), "json": b"[" * 60_000},
            "quarantine",
            "malformed",
        ),
        "json of a long number": (
            "s/o",
            {"png": png(511), "json": b"9" * 9_999},
            "quarantine",
            "malformed",
        ),
        "json with a list as label": (
            "s/p",
            {"png": png(512), "json": b'{"label": [1]}'},
            "quarantine",
            "malformed row",
        ),
        "json with an unknown split": (
            "s/q",
            {"png": png(513), "json": b'{"label": "0", "split": "x"}'},
            "quarantine",
            "unknown split",
        ),
        "an absolute name": ("/etc/replenish", {"png": png(514), "cls": b"0"}, "kept", ""),
        "a name that climbs": ("../../../up", {"png": png(515), "cls": b"0"}, "kept", ""),
        "a name with backslashes": ("C:\\up", {"png": png(516), "cls": b"0"}, "kept", ""),
        "a name with escape": ("\x1b[2J", {"png": png(517), "cls": b"0"}, "kept", ""),
        "a name with a line break": ("a\nb", {"png": png(518), "cls": b"0"}, "kept", ""),
        "a name that turns": ("a\u202eb", {"png": png(519), "cls": b"0"}, "kept", ""),
        "a name of markup": ("<b onload=x>", {"png": png(520), "cls": b"0"}, "kept", ""),
        "a name of a formula": ("=1+1", {"png": png(521), "cls": b"0"}, "kept", ""),
        "a name of 5000 letters": ("n" * 5_000, {"png": png(522), "cls": b"0"}, "kept", ""),
        "a name of no text": (os.fsdecode(b"\xff\xfe"), {"png": png(523), "cls": b"0"}, "kept", ""),
        "a pickle beside": ("s/r", {"png": png(524), "cls": b"0", "pyd": b"\x80\x04."}, "kept", ""),
        "a name for the second time": (
            "00025",
            {"png": png(525), "cls": b"2"},
            "quarantine",
            "listed more",
        ),
    }
    return [
        Case(f"tar sample of {what}", "tar members", _sample(key, parts), expects, says)
        for what, (key, parts, expects, says) in samples.items()
    ]


def _sample(key: str, parts: dict[str, bytes]) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        with tarfile.open(root / SHARD, "a") as archive:
            for ending, data in parts.items():
                add_member(archive, f"{key}.{ending}", data)
        return printable(f"{SHARD}/{key}")

    return build


def _odd_members() -> list[Case]:
    def special(kind: bytes, name: str, target: str = "") -> Callable[[Path], str]:
        def build(root: Path) -> str:
            with tarfile.open(root / SHARD, "a") as archive:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
            return f"{SHARD}/{name}"

        return build

    def nameless(name: str) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            with tarfile.open(root / SHARD, "a") as archive:
                add_member(archive, name, png(530))
            return printable(f"{SHARD}/{name}")

        return build

    no_file = "not a regular file"
    kinds = {
        "link": (tarfile.SYMTYPE, "x/link.png", "/etc/passwd"),
        "link that climbs": (tarfile.SYMTYPE, "x/up.png", "../../outside.png"),
        "hard link": (tarfile.LNKTYPE, "x/hard.png", "/etc/passwd"),
        "device": (tarfile.CHRTYPE, "x/device.png", ""),
        "disk": (tarfile.BLKTYPE, "x/disk.png", ""),
        "pipe": (tarfile.FIFOTYPE, "x/pipe.png", ""),
    }
    found = [
        Case(f"tar member that is a {what}", "tar members", special(*one), "quarantine", no_file)
        for what, one in kinds.items()
    ]
    for what, name in (("ending", "x/noending"), ("key", "x/.png"), ("letters", "x/\x07")):
        case = Case(f"tar member without {what}", "tar members", nameless(name), "quarantine")
        found.append(case)
    return found


def _field(at: int, text: bytes) -> Callable[[bytes], bytes]:
    """Return a change of a field in the header of the second member, its sum made right again."""

    def change(data: bytes) -> bytes:
        start = data.index(b"00020.cls")
        header = bytearray(data[start : start + 512])
        header[at : at + len(text)] = text
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return data[:start] + bytes(header) + data[start + 512 :]

    return change


def _shards() -> list[Case]:
    long_name = tarfile.TarInfo("a.png")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    extended = tarfile.TarInfo("a.png")
    extended.type, extended.size = tarfile.XHDTYPE, 1 << 30
    changes: dict[str, Callable[[bytes], bytes]] = {
        "cut in a member": lambda data: data[: data.index(b"00030.png") + 520],
        "cut at a member's end": lambda data: data[: data.index(b"00030.png")],
        "two archives joined": lambda data: data + data,
        "cut in a header": lambda data: data[: data.index(b"00030.png") + 100],
        "gzipped": lambda data: gzip.compress(data, mtime=0),
        "zeros and an image": lambda data: png(0),
        "random": lambda data: bytes(range(256)) * 40,
        "nothing": lambda data: b"",
        "a zip": lambda data: b"PK\x03\x04" + bytes(2_000),
        "a wrong sum": lambda data: data[:148] + b"9999999" + data[155:],
        "a size of 8 GiB": _field(124, b"77777777777\0"),
        "a size of 2^60": _field(124, b"\x80\0\0\0" + struct.pack(">Q", 1 << 60)),
        "a size below 0": _field(124, b"\xff" * 12),
        "a size of letters": _field(124, b"zzzzzzzzzzz\0"),
        "a name of 1 GiB": lambda data: long_name.tobuf() + data,
        "an extended header of 1 GiB": lambda data: extended.tobuf() + data,
        "an extended header of length 0": lambda data: _extended(b"0 path=a\n") + data,
        "an extended header of a size": lambda data: _extended(b"22 size=99999999999999\n") + data,
        "an extended header of size -1": lambda data: _extended(b"11 size=-1\n") + data,
        "a sparse map of junk": lambda data: (
            _extended(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + data
        ),
    }
    found = [
        Case(f"shard of {what}", "webdataset", damaged(SHARD, change), "error", SHARD)
        for what, change in changes.items()
    ]
    junk = damaged(SHARD, lambda data: _extended(b"junk without lengths\n") + data)
    return [
        *found,
        Case("shard of an extended header of junk", "webdataset", junk, "kept", rows=0),
        Case("shard that is a pipe", "webdataset", _add_pipe, "kept", rows=0),
        Case("shard that is a link out", "webdataset", _add_link, "kept", rows=0),
        Case("shard that is a folder", "webdataset", _add_folder, "kept", rows=0),
        Case("shard named with escape", "webdataset", _odd_name, "error", "damaged"),
        Case("no shards", "webdataset", _no_shards, "error", "no .tar file"),
        Case("shard of no members", "webdataset", _empty_shard, "kept", rows=0),
        Case("one path to a pipe", "webdataset", _pipe_path, "error", "no .tar file"),
    ]


def _extended(records: bytes) -> bytes:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    return member.tobuf() + records.ljust(512, b"\0")


def _add_pipe(root: Path) -> None:
    os.mkfifo(root / "000002.tar")


def _add_link(root: Path) -> None:
    (root / "000002.tar").symlink_to("/etc/passwd")


def _add_folder(root: Path) -> None:
    (root / "000002.tar").mkdir()


def _odd_name(root: Path) -> None:
    (root / "\x1b[2J\n.tar").write_bytes(b"junk" * 500)


def _no_shards(root: Path) -> None:
    for path in root.glob("*.tar"):
        path.rename(path.with_suffix(".tar.gz"))


def _empty_shard(root: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w"):
        pass
    (root / "000002.tar").write_bytes(buffer.getvalue())


def _pipe_path(root: Path) -> Path:
    os.mkfifo(root / "pipe.tar")
    return root / "pipe.tar"
