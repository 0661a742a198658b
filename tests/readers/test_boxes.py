import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.fixtures import coco, voc
from readers.reading import LIMITS, content, reasons

from pipeline.data.decoding import Rejected
from pipeline.errors import InputError
from pipeline.readers.boxes import fit_box
from pipeline.readers.coco import read_coco, recognise_coco
from pipeline.readers.source import Crop
from pipeline.readers.voc import read_voc


def told(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "annotations" / "instances.json").read_text()))


def tell(root: Path, value: object, name: str = "instances.json") -> None:
    (root / "annotations" / name).write_text(json.dumps(value))


def test_crops_of_one_image_are_one_group(tmp_path: Path) -> None:
    source = read_coco(coco(tmp_path / "set"), LIMITS)
    assert source.names[:2] == ("images/0.png#0", "images/0.png#1")
    assert source.groups[:5] == ("images/0.png",) * 4 + ("images/1.png",)
    file = tmp_path / "set" / "images" / "0.png"
    assert source.contents.fetch(1) == Crop(file.read_bytes(), (8, 0, 8, 8))


def test_an_annotation_without_a_box_is_its_whole_image(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    value = told(root)
    value["annotations"] = [{"id": i, "image_id": i, "category_id": 5 + i % 2} for i in range(10)]
    tell(root, value)
    source = read_coco(root, LIMITS)
    assert source.names[0] == "images/0.png"
    assert source.contents.fetch(0) == (root / "images" / "0.png").read_bytes()


def test_splits_are_told_by_the_files_names(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    value = told(root)
    (root / "annotations" / "instances.json").unlink()
    for split in ("train", "val", "test"):
        (root / f"{split}2017").mkdir()
        for file in (root / "images").iterdir():
            (root / f"{split}2017" / file.name).write_bytes(file.read_bytes())
        tell(root, value, f"instances_{split}2017.json")
    source = read_coco(root, LIMITS)
    assert len(source) == 120
    assert set(zip(source.given, (name.split("/")[0] for name in source.names), strict=True)) == {
        ("train", "train2017"),
        ("validation", "val2017"),
        ("test", "test2017"),
    }


def test_each_bad_annotation_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    value = told(root)
    good = len(value["annotations"])
    base = {"image_id": 0, "category_id": 5}
    bad: list[Any] = [
        base | {"id": 100, "bbox": [0, 0, 8, 8], "iscrowd": 1},
        base | {"id": 101, "bbox": [0, 0, 0, 8]},
        base | {"id": 102, "bbox": [0, 0, -5, 8]},
        base | {"id": 103, "bbox": [30, 0, 8, 8]},
        base | {"id": 104, "bbox": [-9, 0, 8, 8]},
        base | {"id": 105, "bbox": [0, 0, float("nan"), 8]},
        base | {"id": 106, "bbox": [1, 2, 3]},
        base | {"id": 107, "bbox": "huge"},
        base | {"id": 108, "bbox": [0, 0, 10**400, 8]},
        {"id": 109, "image_id": 0, "category_id": 99, "bbox": [0, 0, 8, 8]},
        {"id": 110, "image_id": 99, "category_id": 5, "bbox": [0, 0, 8, 8]},
        {"id": 111, "image_id": [0], "category_id": 5, "bbox": [0, 0, 8, 8]},
        7,
        base | {"id": 0, "bbox": [0, 0, 8, 8]},
    ]
    value["annotations"] += bad
    value["images"] += [
        {"id": 50, "file_name": "../../secret.png"},
        {"id": 0, "file_name": "again.png"},
        {"id": 51},
        {"id": 52, "file_name": "empty.png"},
    ]
    tell(root, value)
    source = read_coco(root, LIMITS)
    assert len(source) == good
    assert reasons(source) == {
        "images/0.png#100": "box around a crowd",
        "images/0.png#101": "box without area",
        "images/0.png#102": "box without area",
        "images/0.png#103": "box outside the image",
        "images/0.png#104": "box outside the image",
        "images/0.png#105": "box without area",
        "images/0.png#106": "malformed row",
        "images/0.png#107": "malformed row",
        "images/0.png#108": "malformed row",
        "images/0.png#109": "unknown label",
        "annotations[50] of instances.json": "malformed row",
        "annotations[51] of instances.json": "malformed row",
        "annotations[52] of instances.json": "malformed row",
        "images/0.png#0": "listed more than once",
        "../../secret.png": "leads out of the folder",
        "images[11] of instances.json": "malformed row",
        "images[12] of instances.json": "malformed row",
        "images/empty.png": "image without a box",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [], "categories": []}', "no usable item"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "images": [], "annotations": []}', "two lists named 'images'"),
        ('{"images": [{"id": 1}, "annotations": [', "damaged JSON at character"),
        ('{"images": [], "annotations": ' + "[" * 100_000, "damaged JSON at character"),
        ('{"images": {}, "annotations": [], "categories": []}', "has no list 'images'"),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert recognise_coco(path) is not None
    with pytest.raises(InputError, match=message):
        read_coco(path, LIMITS)


def test_limits_and_other_json(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    with pytest.raises(InputError, match="JSON of at most 100 is read"):
        read_coco(root, replace(LIMITS, max_metadata_bytes=100))
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert recognise_coco(tmp_path / "other.json") is None
    with pytest.raises(InputError, match="no COCO annotations"):
        read_coco(tmp_path, LIMITS)


def test_an_image_that_is_a_link_out_is_rejected_when_fetched(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    (root / "images" / "0.png").rename(tmp_path / "outside.png")
    (root / "images" / "0.png").symlink_to(tmp_path / "outside.png")
    found = read_coco(root, LIMITS).contents.fetch(0)
    assert isinstance(found, Rejected)
    assert found.reason == "leads out of the folder"


def test_vocs_lists_give_the_splits(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("".join(f"{i}\n" for i in range(8)))
    (sets / "val.txt").write_text("8  1\n")
    (sets / "test.txt").write_text("9\n\n")
    source = read_voc(root, LIMITS)
    assert source.given == ("train",) * 32 + ("validation",) * 4 + ("test",) * 4
    (sets / "test.txt").write_text("8\n")
    with pytest.raises(InputError, match="'8' stands in two lists"):
        read_voc(root, LIMITS)


def test_each_bad_xml_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    before = content(read_voc(root, LIMITS))
    laughs = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    outside = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    one = (
        "<annotation><filename>{}</filename><size><width>32</width><height>8</height></size>"
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax>"
        "</bndbox></object></annotation>"
    )
    for name, text in (
        ("bomb", laughs),
        ("entity", outside),
        ("broken", "<annotation>"),
        ("deep", "<a>" * 200_000),
        ("coded", '<?xml version="1.0" encoding="no-such"?><a/>'),
        ("large", "<annotation>" + " " * (1 << 20) + "</annotation>"),
        ("climbs", one.format("../../secret.png", "0", 1)),
        ("none", "<annotation><filename>0.png</filename></annotation>"),
        ("number", one.format("0.png", "0", "one")),
        ("inside", one.format("0.png", "0", 9)),
        ("label", one.format("0.png", " ", 1)),
    ):
        (root / "Annotations" / f"{name}.xml").write_text(text)
    source = read_voc(root, LIMITS)
    assert content(source) == before
    assert sorted((item.file, item.reason) for item in source.quarantine) == [
        ("../../secret.png", "leads out of the folder"),
        ("Annotations/bomb.xml", "malformed row"),
        ("Annotations/broken.xml", "malformed row"),
        ("Annotations/coded.xml", "malformed row"),
        ("Annotations/deep.xml", "malformed row"),
        ("Annotations/entity.xml", "malformed row"),
        ("Annotations/large.xml", "malformed row"),
        ("Annotations/none.xml", "image without a box"),
        ("Annotations/number.xml#0", "malformed row"),
        ("JPEGImages/0.png#0", "box without area"),
        ("JPEGImages/0.png#0", "no label"),
    ]


@given(
    st.tuples(*[st.integers(-200, 200)] * 2, *[st.integers(-20, 200)] * 2),
    st.tuples(st.integers(4, 160), st.integers(4, 160)),
)
def test_what_is_kept_of_a_box_lies_in_the_image(
    box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    left, top, width, height = (value / 4 for value in box)
    kept, reason = fit_box((left, top, width, height), (size[0] / 4, size[1] / 4))
    if kept is None:
        assert reason in ("box without area", "box outside the image")
        return
    left, top, width, height = kept
    assert min(left, top) >= 0
    assert min(width, height) >= 1
    assert left + width <= size[0] / 4
    assert top + height <= size[1] / 4
