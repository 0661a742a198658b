"""COCO and Pascal VOC: numbers that are none, ids that are missing, entities, deep nesting."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus.case import Case, digit, edit_json
from corpus.hub_sets import pipe
from corpus.tables import damaged
from PIL import Image

from pipeline.readers.naming import printable

JSON = "annotations/instances.json"
OUT = "leads out of the folder"


def cases() -> list[Case]:
    return [*_annotations(), *_images(), *_whole_coco(), *_xml(), *_whole_voc()]


def _annotations() -> list[Case]:
    nan, inf = float("nan"), float("inf")
    # What is changed in a sound annotation of image 0; name of the item; why.
    changes: dict[str, tuple[Any, str, str]] = {
        "a box of NaN": ({"bbox": [nan, 0, 8, 8]}, "images/0.png#{id}", "box without area"),
        "a box of infinity": ({"bbox": [0, 0, inf, 8]}, "images/0.png#{id}", "box without area"),
        "a box of 1e308": ({"bbox": [0, 0, 1e308, 1e308]}, "images/0.png#{id}", "box outside"),
        "a box of nothing": ({"bbox": [0, 0, 0, 0]}, "images/0.png#{id}", "box without area"),
        "a box below 0": ({"bbox": [0, 0, -8, -8]}, "images/0.png#{id}", "box without area"),
        "a box outside": ({"bbox": [900, 900, 8, 8]}, "images/0.png#{id}", "box outside"),
        "a box at -1000": ({"bbox": [-1000, 0, 8, 8]}, "images/0.png#{id}", "box outside"),
        "a box of three": ({"bbox": [0, 0, 8]}, "images/0.png#{id}", "malformed row"),
        "a box of lists": ({"bbox": [[0], [0], [8], [8]]}, "images/0.png#{id}", "malformed row"),
        "a box that is a mapping": ({"bbox": {"x": 0}}, "images/0.png#{id}", "malformed row"),
        "a box that is a number": ({"bbox": 7}, "images/0.png#{id}", "malformed row"),
        "a box of 10^400": ({"bbox": [0, 0, 10**400, 8]}, "images/0.png#{id}", "malformed row"),
        "a box of nulls": ({"bbox": [None] * 4}, "images/0.png#{id}", "malformed row"),
        "a crowd": ({"iscrowd": 1}, "images/0.png#{id}", "box around a crowd"),
        "a category unknown": ({"category_id": 999}, "images/0.png#{id}", "unknown label"),
        "a category of a list": ({"category_id": [5]}, "images/0.png#{id}", "unknown label"),
        "a category of escapes": ({"category_id": "\x1b[2J"}, "images/0.png#{id}", "unknown label"),
        "a category of null": ({"category_id": None}, "images/0.png#{id}", "unknown label"),
        "an image unknown": ({"image_id": 999}, "annotations[{n}] of instances.json", "malformed"),
        "an image of a list": (
            {"image_id": [0]},
            "annotations[{n}] of instances.json",
            "malformed",
        ),
        "an image of a mapping": (
            {"image_id": {}},
            "annotations[{n}] of instances.json",
            "malformed",
        ),
        "null": (None, "annotations[{n}] of instances.json", "malformed row"),
        "a list": ([1], "annotations[{n}] of instances.json", "malformed row"),
        "text": ("x", "annotations[{n}] of instances.json", "malformed row"),
    }
    return [
        Case(f"coco annotation of {what}", "coco items", _annotation(one, name), "quarantine", says)
        for what, (one, name, says) in changes.items()
    ]


def _annotation(change: Any, name: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        number = 0

        def add(told: dict) -> None:
            nonlocal number
            number = len(told["annotations"])
            one = {"id": 1_000 + number, "image_id": 0, "category_id": 5, "bbox": [0, 0, 8, 8]}
            told["annotations"].append(one | change if isinstance(change, dict) else change)

        edit_json(root / JSON, add)
        return name.format(id=1_000 + number, n=number)

    return build


def _images() -> list[Case]:
    malformed = "images[{n}] of instances.json"
    changes: dict[str, tuple[Any, str, str]] = {
        "a name that climbs": ({"file_name": "../../outside.png"}, "../../outside.png", OUT),
        "an absolute name": ({"file_name": "/etc/passwd"}, "/etc/passwd", OUT),
        "a name of backslashes": ({"file_name": "..\\x.png"}, "..\\x.png", OUT),
        "a name with a zero byte": ({"file_name": "a\0.png"}, "a\\x00.png", OUT),
        "a name of nothing": ({"file_name": ""}, "", OUT),
        "a name that is a number": ({"file_name": 7}, malformed, "malformed row"),
        "a name that is null": ({"file_name": None}, malformed, "malformed row"),
        "a name with escape": (
            {"file_name": "\x1b.png"},
            "images/\\x1b.png",
            "image without a box",
        ),
        "a name of half a character": (
            {"file_name": "\ud800.png"},
            "images/\\ud800.png",
            "image without a box",
        ),
        "an id of null": ({"id": None}, malformed, "malformed row"),
        "an id of a list": ({"id": [1]}, malformed, "malformed row"),
        "an id for the second time": ({"id": 0}, malformed, "malformed row"),
        "an id of NaN": ({"id": float("nan")}, malformed, "malformed row"),
        "no fields": ("", malformed, "malformed row"),
        "null": (None, malformed, "malformed row"),
        "a size of 10^400": (
            {"width": 10**400, "height": 10**400, "file_name": "big.png"},
            "images/big.png",
            "image without a box",
        ),
        "a size of text": (
            {"width": "8", "height": [], "file_name": "odd.png"},
            "images/odd.png",
            "image without a box",
        ),
    }
    found = [
        Case(f"coco image of {what}", "coco items", _image(one, name), "quarantine", says)
        for what, (one, name, says) in changes.items()
    ]
    boxes = {
        "no file": (None, "unreadable"),
        "a text as its file": (b"text", "not an image"),
        "a pipe as its file": (b"pipe", "not a regular file"),
        "a smaller file than told": (b"small", "box outside of the image"),
    }
    found += [
        Case(f"coco box in {what}", "coco items", _boxed(data), "quarantine", says)
        for what, (data, says) in boxes.items()
    ]
    return found


def _image(change: Any, name: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        number = 0

        def add(told: dict) -> None:
            nonlocal number
            number = len(told["images"])
            one = {"id": 1_000 + number, "file_name": f"{number}.png", "width": 32, "height": 8}
            told["images"].append(one | change if isinstance(change, dict) else change)

        edit_json(root / JSON, add)
        return name.format(n=number)

    return build


def _boxed(data: bytes | None) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        kind = "none" if data is None else data.decode()
        file = root / "images" / f"box-{kind}.png"
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "small":
            Image.fromarray(digit(600)).save(file)
        elif data is not None:
            file.write_bytes(data)

        def add(told: dict) -> None:
            told["images"].append({"id": kind, "file_name": file.name, "width": 32, "height": 8})
            box = [24, 0, 8, 8]
            told["annotations"].append(
                {"id": kind, "image_id": kind, "category_id": 5, "bbox": box}
            )

        edit_json(root / JSON, add)
        return f"images/{file.name}#{kind}"

    return build


def _whole_coco() -> list[Case]:
    deep = b'{"images": [' + b"[" * 100_000
    keys = b'"images": [], "categories": [], "annotations": '
    changes: dict[str, tuple[Callable[[bytes], bytes], str]] = {
        "cut": (lambda data: data[: len(data) // 2], JSON),
        "a number as lists": (lambda data: b'{"images": 1, "annotations": 2}', "has no list"),
        "deep lists": (lambda data: data[:-1] + b', "more": ' + b"[" * 99_999, "damaged JSON"),
        "a deep image": (lambda data: deep + b'], "annotations": []}', "damaged JSON"),
        "a list for the second time": (lambda data: data[:-1] + b', "images": []}', "two lists"),
        "no categories": (lambda data: data.replace(b"categories", b"cats"), "has no list"),
        "bytes that are no text": (lambda data: data.replace(b"0.png", b"\xff\xfe"), "UTF-8"),
        "a number of 9999 digits": (
            lambda data: data[:-1] + b', "n": ' + b"9" * 9_999 + b"}",
            "damaged JSON",
        ),
        "nothing in its lists": (lambda data: b"{" + keys + b"[]}", "no usable item"),
        "all of one category": (
            lambda data: re.sub(rb'"category_id": \d', b'"category_id": 5', data),
            "only the class",
        ),
        "names that all climb": (
            lambda data: data.replace(b'"file_name": "', b'"file_name": "../'),
            "no usable item",
        ),
        "category names with escape": (
            lambda data: data.replace(b'"name": "', b'"name": "\\u001b'),
            "no usable item",
        ),
        "categories without names": (
            lambda data: data.replace(b'"name": "', b'"title": "'),
            "no usable item",
        ),
        "keys with escape": (
            lambda data: data.replace(b'"images"', b'"\\u001bimages"', 1),
            "has no list",
        ),
    }
    found = [
        Case(f"coco of {what}", "coco", damaged(JSON, change), "error", says)
        for what, (change, says) in changes.items()
    ]
    unlike = {
        "a list": (lambda data: b"[" + data + b"]"),
        "UTF-16": (lambda data: data.decode().encode("utf-16")),
        "nothing": (lambda data: b""),
    }
    found += [
        Case(f"coco json of {what}", "coco", damaged(JSON, change), "error", "no COCO")
        for what, change in unlike.items()
    ]
    return [
        *found,
        Case("coco json that is a pipe", "coco", pipe(JSON), "error", "no COCO"),
        Case("coco json of 1 GiB", "coco", _sparse_json, "error", "bytes; JSON of at most"),
        Case("coco folder that is a link", "coco", _linked_folder, "error", "no COCO"),
    ]


def _sparse_json(root: Path) -> None:
    with (root / JSON).open("r+b") as file:
        file.truncate((1 << 30) + 1)


def _linked_folder(root: Path) -> None:
    (root / "annotations").rename(root.parent / "elsewhere")
    (root / "annotations").symlink_to(root.parent / "elsewhere")


_BODY = (
    "<annotation><filename>{file}</filename><size><width>32</width><height>8</height></size>"
    "<object><name>{label}</name><bndbox><xmin>{box}</xmin><ymin>1</ymin><xmax>8</xmax>"
    "<ymax>8</ymax></bndbox></object></annotation>"
)


def body(file: str = "0.png", label: str = "0", box: str = "1") -> str:
    return _BODY.format(file=file, label=label, box=box)


def _xml() -> list[Case]:
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(12))
    itself = "Annotations/{}.xml"
    box = "JPEGImages/0.png#0"
    texts: dict[str, tuple[str | bytes, str, str]] = {
        "an outer entity": (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + body(label="&x;"),
            itself,
            "malformed row",
        ),
        "an entity of the web": (
            '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>' + body(),
            itself,
            "malformed",
        ),
        "a billion laughs": (f"<!DOCTYPE a [{laughs}]>" + body(label="&l11;"), itself, "malformed"),
        "a swollen entity": (
            f'<!DOCTYPE a [<!ENTITY x "{"x" * 9_999}">]>' + body(label="&x;" * 9_999),
            itself,
            "malformed",
        ),
        "an outer DTD": (
            '<!DOCTYPE a SYSTEM "file:///etc/passwd">' + body(),
            itself,
            "malformed row",
        ),
        "an entity unknown": (body(label="&x;"), itself, "malformed row"),
        "half": (body()[:150], itself, "malformed row"),
        "nothing": ("", itself, "malformed row"),
        "an image": (bytes(range(256)), itself, "malformed row"),
        "1 MB and more": (body() + " " * (1 << 20), itself, "malformed row"),
        "a code unknown": (
            '<?xml version="1.0" encoding="klingon"?>' + body(),
            itself,
            "malformed",
        ),
        "a code that is none": (
            '<?xml version="1.0" encoding="idna"?>' + body(),
            itself,
            "malformed",
        ),
        "bytes that are no text": (
            body(label="~").encode().replace(b"~", b"\xff"),
            itself,
            "malformed",
        ),
        "a zero byte": (body(label="\0"), itself, "malformed row"),
        "an escape": (body(label="&#27;[2J"), itself, "malformed row"),
        "no object": (
            "<annotation><filename>0.png</filename></annotation>",
            itself,
            "image without",
        ),
        "another root": ("<html><script>alert(1)</script></html>", itself, "image without a box"),
        "depth": ("<a>" * 50_000 + "</a>" * 50_000, itself, "image without a box"),
        "a box of NaN": (body(box="nan"), box, "box without area"),
        "a box of infinity": (body(box="-inf"), box, "box without area"),
        "a box of 1e999": (body(box="1e999"), box, "box without area"),
        "a box of words": (body(box="one"), "Annotations/{}.xml#0", "malformed row"),
        "a box that is empty": (body(box=""), "Annotations/{}.xml#0", "malformed row"),
        "a box outside": (body(box="-900"), box, "box outside the image"),
        "a box turned round": (body(box="30"), box, "box without area"),
        "a file that climbs": (body(file="../../outside.png"), "../../outside.png", OUT),
        "an absolute file": (body(file="/etc/passwd"), "/etc/passwd", OUT),
        "a file of backslashes": (body(file="..\\x"), "..\\x", OUT),
        "a file that is none": (body(file="none.png"), "JPEGImages/none.png#0", "unreadable"),
        "a folder as file": (body(file="."), "JPEGImages#0", "not a regular file"),
        "a blank label": (body(file="1.png", label=" "), "JPEGImages/1.png#0", "no label"),
        "a label that turns": (
            body(file="2.png", label="a\u202e"),
            "JPEGImages/2.png#0",
            "label that",
        ),
        "a label too long": (
            body(file="3.png", label="x" * 999),
            "JPEGImages/3.png#0",
            "label that",
        ),
    }
    found = []
    for number, (what, (text, name, says)) in enumerate(texts.items()):
        build = _annotated(f"z{number:02d}", text, name)
        found.append(Case(f"voc file of {what}", "voc files", build, "quarantine", says))
    return found


def _annotated(stem: str, text: str | bytes, name: str) -> Callable[[Path], str]:
    def build(root: Path) -> str:
        data = text if isinstance(text, bytes) else text.encode()
        (root / "Annotations" / f"{stem}.xml").write_bytes(data)
        return printable(name.format(stem))

    return build


def _whole_voc() -> list[Case]:
    def sets(name: str, data: bytes) -> Callable[[Path], None]:
        def build(root: Path) -> None:
            (root / "ImageSets" / "Main").mkdir(parents=True)
            (root / "ImageSets" / "Main" / name).write_bytes(data)

        return build

    def both(root: Path) -> None:
        sets("train.txt", b"0\n")(root)
        (root / "ImageSets" / "Main" / "test.txt").write_bytes(b"0\n")

    def linked(root: Path) -> None:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").symlink_to("/etc/hostname")

    def large(root: Path) -> None:
        sets("train.txt", b"0\n")(root)
        with (root / "ImageSets" / "Main" / "train.txt").open("ab") as file:
            file.truncate(65 << 20)

    def all_damaged(root: Path) -> None:
        for path in (root / "Annotations").glob("*.xml"):
            path.write_bytes(b"<a")

    def link_out(root: Path) -> None:
        (root / "Annotations" / "zz.xml").symlink_to("/etc/passwd")

    def pipe_xml(root: Path) -> None:
        os.mkfifo(root / "Annotations" / "zz.xml")

    return [
        Case("voc list of no text", "voc", sets("train.txt", b"\xff\xfe\xff"), "error", "UTF-8"),
        Case("voc image in two lists", "voc", both, "error", "two lists"),
        Case("voc list that is a link out", "voc", linked, "error", "leads out"),
        Case("voc list of 65 MB", "voc", large, "error", "too large"),
        Case("voc of damaged files", "voc", all_damaged, "error", "no usable item"),
        Case("voc file that is a link out", "voc", link_out, "kept", rows=0),
        Case("voc file that is a pipe", "voc", pipe_xml, "kept", rows=0),
        Case(
            "voc without annotations", "voc", lambda root: root / "JPEGImages", "error", "no Pascal"
        ),
    ]
