"""params.yaml: tags that build objects, aliases that swell, values that are none."""

import os
from collections.abc import Callable
from pathlib import Path

from corpus.case import Case

FILE = "params.yaml"


def cases() -> list[Case]:
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
    )
    texts: dict[str, tuple[str | bytes, str]] = {
        "a tag that runs": ("a: !!python/object/apply:os.mkdir ['ran']\n", "YAML"),
        "a tag that makes an object": ("a: !!python/object:pathlib.Path {}\n", "YAML"),
        "a tag that names a module": ("a: !!python/module:os\n", "YAML"),
        "a tag that names a function": ("a: !!python/name:os.system\n", "YAML"),
        "a tag of a tuple": ("a: !!python/tuple [1]\n", "YAML"),
        "a tag of its own": ("a: !evil {x: 1}\n", "YAML"),
        "a tag of a set": ("prepare: !!set {a, b}\n", FILE),
        "a tag of bytes": ("prepare: {path: !!binary aGVsbG8=}\n", FILE),
        "bytes that are no base64": ("prepare: {path: !!binary '*'}\n", FILE),
        "a tag of an int on text": ("prepare: {seed: !!int abc}\n", FILE),
        "a tag of an int on nothing": ("prepare: {seed: !!int ''}\n", FILE),
        "a tag of a float on text": ("prepare: {seed: !!float abc}\n", FILE),
        "a tag of truth on text": ("prepare: {seed: !!bool abc}\n", FILE),
        "a tag of a time on text": ("prepare: {seed: !!timestamp abc}\n", FILE),
        "aliases that swell": (laughs, "aliases"),
        "an alias of itself": ("a: &a [*a]\n", "aliases"),
        "a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n", "aliases"),
        "deep lists": ("a: " + "[" * 20_000, "YAML"),
        "deep mappings": ("{a: " * 20_000, "YAML"),
        "deep dashes": ("- " * 20_000, "YAML"),
        "a list": ("- 1\n", "mapping of sections"),
        "a word": ("word\n", "mapping of sections"),
        "a number": ("7\n", "mapping of sections"),
        "two documents": ("a: 1\n---\nb: 2\n", "YAML"),
        "a tab": ("prepare:\n\tseed: 1\n", "YAML"),
        "a key that is a number": ("1: {}\n", "mapping of sections"),
        "a key that is null": ("~: {}\n", "mapping of sections"),
        "a key that is a mapping": ("? {a: b}\n: 1\n", "YAML"),
        "an unknown section": ("evil: {}\n", "evil is not a known key"),
        "an unknown key": ("prepare: {evil: 1}\n", "prepare.evil is not a known key"),
        "an unknown key with escape": ('prepare: {"\\e[2J": 1}\n', "not a known key"),
        "a section that is a list": ("prepare: [1]\n", "prepare"),
        "a section that is text": ("prepare: x\n", "prepare"),
        "an infinity": ("prepare: {validation_fraction: .inf}\n", FILE),
        "a NaN": ("prepare: {validation_fraction: .nan}\n", FILE),
        "a date": ("prepare: {seed: 2024-05-31}\n", FILE),
        "a date that is none": ("prepare: {seed: 2024-99-99}\n", FILE),
        "a time that is none": ("prepare: {seed: 2024-01-01T99:99:99Z}\n", FILE),
        "a number of 9999 digits": ("prepare: {seed: " + "9" * 9_999 + "}\n", FILE),
        "a number of 400 digits": ("prepare: {seed: " + "9" * 400 + "}\n", FILE),
        "a number of base 60": ("prepare: {max_rows: 9:99:99:-1}\n", FILE),
        "an escape as path": ('prepare: {source: "\\e[2J"}\n', FILE),
        "half a character": ('prepare: {path: "\\ud800"}\n', FILE),
        "bytes that are no text": (b"prepare: {path: \xff\xfe}\n", "YAML"),
        "control characters": (b"prepare: {path: \x1b[2J}\n", "YAML"),
        "a zero byte": (b"prepare: \0\n", "YAML"),
        "an image": (bytes(range(256)), "YAML"),
        "a limit below 0": ("prepare: {max_rows: -1}\n", "max_rows"),
        "a limit that is text": ("prepare: {max_file_bytes: all}\n", "max_file_bytes"),
        "a side of a million": ("prepare: {image_size_px: 1000000}\n", "image_size_px"),
        "an import path as source": ("prepare: {source: os.system}\n", "source"),
        "a directive": ("%EVIL x\n---\na: 1\n", FILE),
    }
    found = [
        Case(f"params of {what}", "params", _write(text), "error", says)
        for what, (text, says) in texts.items()
    ]
    return [
        *found,
        Case("params of 200000 keys", "params", _write("a: 1\n" * 200_000), "error", "larger than"),
        Case("params of 1 GiB", "params", _sparse, "error", "larger than"),
        Case("params that are a pipe", "params", _pipe, "error", "no such params file"),
        Case("params that are a folder", "params", _folder, "error", "no such params file"),
        Case("params that are missing", "params", lambda root: None, "error", "no such params"),
    ]


def _write(text: str | bytes) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        (root / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())

    return build


def _sparse(root: Path) -> None:
    with (root / FILE).open("wb") as file:
        file.truncate(1 << 30)


def _pipe(root: Path) -> None:
    os.mkfifo(root / FILE)


def _folder(root: Path) -> None:
    (root / FILE).mkdir()
