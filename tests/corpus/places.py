"""Names and places: what a file is called, what it is, and where it really lies."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from corpus.case import Case, Outcome, digit
from corpus.image_files import saved
from PIL import Image

from pipeline.readers.naming import printable

BASE = "odd names"

# A name of an image, without its ending: all are read, and shown harmless.
_NAMES = {
    "terminal escape": "\x1b[2Jgone",
    "bell": "ring\x07",
    "line break": "two\nlines",
    "carriage return": "over\rwritten",
    "tab": "a\tb",
    "delete": "a\x7fb",
    "next line": "a\u0085b",
    "line separator": "a\u2028b",
    "right-to-left override": "photo\u202egnp",
    "isolates": "a\u2066b\u2069",
    "zero width joiner": "a\u200db",
    "byte order mark": "\ufeffa",
    "markup": '<img src=x onerror="alert(1)">'.replace("/", ""),
    "script": "<script>alert(1)<script>",
    "console markup": "[bold red]a[",
    "template": "{{ 7 * 7 }}{% raw %}",
    "formula =": "=cmd|'calc'!A0",
    "formula +": "+1+1",
    "formula -": "-2+3",
    "formula @": "@SUM(A1)",
    "quotes": "a\"b'c`d",
    "shell": "$(touch gone);rm -rf ~",
    "percent": "%s%n%00%2e%2e",
    "device of Windows": "CON",
    "port of Windows": "COM1",
    "colon": "C:evil",
    "trailing blank": "a ",
    "trailing dot": "a.",
    "two dots": "a..",
    "option": "--help",
    "255 bytes": "x" * 251,
    "255 bytes of emoji": "\U0001f600" * 62 + "abc",
    "bytes that are no text": os.fsdecode(b"\xff\xfe\x80"),
    "overlong encoding": os.fsdecode(b"\xc0\xaf"),
    "surrogate half": os.fsdecode(b"\xed\xa0\x80"),
    "decomposed letters": "e\u0301" * 9,
    "many marks": "a" + "\u0301" * 90,
    "private use": "\ue000\U000f0000",
    "noncharacter": "a\uffffb",
}


def cases() -> list[Case]:
    found: list[Case] = []
    for number, (what, name) in enumerate(_NAMES.items()):
        found.append(Case(f"named with {what}", BASE, _named(f"0/{name}.png", number), "kept"))
    # Backslashes would be a path on another system.
    outside: Outcome = "quarantine"
    for what, name in (("backslashes", "up\\..\\..\\a"), ("a share", "\\\\host\\share")):
        leads = "leads out of the folder"
        found.append(Case(f"named with {what}", BASE, _named(f"0/{name}.png", 60), outside, leads))
    for what, (build, says) in _PLACES.items():
        found.append(Case(what, BASE, build, "quarantine", says))
    for what, folder in (("escape", "1/\x1b[31m"), ("markup", "1/<b>"), ("no text", "1/\udcff")):
        build = _named(f"{folder}/deep.png", 61 + len(found) % 20)
        found.append(Case(f"in a folder named with {what}", BASE, build, "kept"))
    found.append(Case("link to a good place", BASE, _link_within, "kept"))
    found += [
        Case(f"class named with {what}", "folder", _class(name), "error", "class name")
        for what, name in _CLASSES.items()
    ]
    found += [
        Case("a class that is empty", "folder", _empty_class, "error", "holds no image file"),
        Case("one class only", "folder", _one_class, "error", "1 class folders"),
        Case("more classes than the limit", "folder", _many_classes, "error", "class folders"),
        Case(
            "a path that is no folder", "folder", lambda root: root / "0/000.png", "error", "file"
        ),
        Case("a path that is nothing", "folder", lambda root: root / "none", "error", "no such"),
        Case("a path with a zero byte", "folder", lambda root: "a\0b", "error", "prepare.path"),
        Case("a path too long", "folder", lambda root: "x" * 5_000, "error", "prepare.path"),
        Case("a path that is a pipe", "folder", _pipe_path, "error", "file"),
        Case("a path that is a ring", "folder", _ring_path, "error", "prepare.path"),
        Case("the same split twice", "folder", _two_splits, "error", "same split"),
    ]
    return found


def png(number: int) -> bytes:
    return saved(Image.fromarray(digit(300 + number)), "PNG")


def _named(name: str, number: int) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
        return printable(name)

    return build


def _link(target: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        name = f"0/link-to-{target.strip('/.').replace('/', '-')}.png"
        (root / name).symlink_to(target)
        return name

    return build


def _link_within(root: Path) -> str:
    (root / ".hidden.png").write_bytes(png(91))
    (root / "0" / "within.png").symlink_to("../.hidden.png")
    return "0/within.png"


def _link_up(root: Path) -> str:
    (root / "0" / "up.png").symlink_to(os.path.relpath(root.parent / "outside.png", root / "0"))
    return "0/up.png"


def _folder_link_out(root: Path) -> str:
    (root / "0" / "album.png").symlink_to(root.parent)
    return "0/album.png"


def _folder_link_in(root: Path) -> str:
    (root / "0" / "again").symlink_to("../1")
    return "0/again"


def _class_link(root: Path) -> str:
    (root / "9").symlink_to(root.parent)
    return "9"


def _ring(root: Path) -> str:
    (root / "0" / "ring.png").symlink_to("ring.png")
    return "0/ring.png"


def _pipe(root: Path) -> str:
    os.mkfifo(root / "0" / "pipe.png")
    return "0/pipe.png"


def _socket(root: Path) -> str:
    # A socket's path may be 108 bytes long, so it is bound by a relative one.
    here = Path.cwd()
    os.chdir(root / "0")
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.png")
    finally:
        os.chdir(here)
    return "0/socket.png"


def _stray(root: Path) -> str:
    (root / "stray.png").write_bytes(png(92))
    return "stray.png"


_OUT = "leads out of the folder"
_PLACES: dict[str, tuple[Callable[[Path], str], str]] = {
    "link to a system file": (_link("/etc/passwd"), _OUT),
    "link to an endless device": (_link("/dev/zero"), _OUT),
    "link to memory": (_link("/proc/self/mem"), _OUT),
    "link to a sibling": (_link_up, _OUT),
    "link to nothing": (_link("none.png"), "unreadable"),
    "link to itself": (_ring, _OUT),
    "link to the folder above": (_folder_link_out, _OUT),
    "link to another class": (_folder_link_in, "link to a folder"),
    "class that is a link": (_class_link, _OUT),
    "pipe": (_pipe, "not a regular file"),
    "socket": (_socket, "not a regular file"),
    "image beside the classes": (_stray, "not in a class folder"),
}

_CLASSES = {
    "escape": "\x1b[2J",
    "line break": "a\nb",
    "right-to-left override": "cat\u202etac",
    "bytes that are no text": "\udcff\udcfe",
    "blanks": "   ",
    "201 characters": "x" * 201,
    "line separator": "a\u2028b",
}


def _class(name: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / name).mkdir()
        (root / name / "a.png").write_bytes(png(0))

    return build


def _empty_class(root: Path) -> None:
    (root / "nothing").mkdir()


def _one_class(root: Path) -> Path:
    (root / "lone" / "cat").mkdir(parents=True)
    (root / "lone" / "cat" / "a.png").write_bytes(png(0))
    return root / "lone"


def _many_classes(root: Path) -> None:
    for number in range(30):
        (root / f"class-{number}").mkdir()
        (root / f"class-{number}" / "a.png").write_bytes(png(number))


def _two_splits(root: Path) -> Path:
    for split in ("val", "valid"):
        for name in ("cat", "dog"):
            (root / "twice" / split / name).mkdir(parents=True)
            (root / "twice" / split / name / "a.png").write_bytes(png(0))
    return root / "twice"


def _pipe_path(root: Path) -> Path:
    os.mkfifo(root / "pipe")
    return root / "pipe"


def _ring_path(root: Path) -> Path:
    (root / "ring").symlink_to("ring")
    return root / "ring"
