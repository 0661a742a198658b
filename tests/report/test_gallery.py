import base64
from pathlib import Path

import numpy as np
import pytest
from fake_stages import Fake, write_stages
from report.fake_verdict import write_findings

from pipeline.data.images import decode_png, encode_png
from pipeline.data.store import read_samples
from pipeline.report import gallery
from pipeline.report.findings import read_record
from pipeline.report.gallery import (
    contact_sheets,
    count_reasons,
    data_address,
    find_examples,
    find_filters,
    shown_px,
    take_turns,
)
from pipeline.report.verdict import Verdict


def pixels(address: str, mode: str = "L") -> np.ndarray:
    head, data = address.split(",", 1)
    assert head == "data:image/png;base64"
    return decode_png(base64.b64decode(data), mode)  # type: ignore[arg-type]


def sheets(root: Path, fake: Fake, limit: int = 12):
    folders = write_findings(root, fake)
    found = read_record(folders["evaluate"] / "verdict.json", Verdict)
    return contact_sheets(
        folders["prepare"] / "dataset", folders["synthesize"] / "accepted", found, limit
    )


def test_the_thinnest_class_comes_first_with_its_first_images(tmp_path: Path) -> None:
    found = sheets(tmp_path, Fake(), limit=3)
    assert [one.name for one in found.classes] == ["digit 2", "digit 1", "digit 0"]
    assert [(len(one.real), len(one.synthetic)) for one in found.classes] == [
        (2, 3),
        (3, 2),
        (3, 0),
    ]
    assert [(one.real_images, one.synthetic_images) for one in found.classes] == [
        (2, 4),
        (4, 2),
        (6, 0),
    ]
    rows = read_samples(tmp_path / "prepare" / "dataset", ("train",))
    first = rows.images[rows.labels == 2][0]
    assert np.array_equal(pixels(found.classes[0].real[0]), first)


def test_classes_without_room_are_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gallery, "SHEET_CLASSES", 2)
    assert sheets(tmp_path, Fake()).left_out == 1
    monkeypatch.setattr(gallery, "SHEET_BYTES", 10)
    found = sheets(tmp_path, Fake())
    assert (found.classes, found.left_out) == ((), 3)


def test_large_images_are_halved_to_the_mean(tmp_path: Path) -> None:
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[::2] = 100
    small = pixels(data_address(encode_png(image), "RGB"), "RGB")
    assert small.shape == (64, 64, 3)
    assert (small == 50).all()
    exact = np.full((64, 64, 1), 7, dtype=np.uint8)
    assert pixels(data_address(encode_png(exact), "L")).shape == (64, 64, 1)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(8, (56, True)), (12, (48, True)), (28, (56, True)), (32, (56, False)), (128, (56, False))],
)
def test_small_images_are_shown_at_whole_multiples(side, expected) -> None:
    assert shown_px(side) == expected


def test_an_example_stands_beside_its_nearest_image(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    dataset, store = folders["prepare"] / "dataset", folders["synthesize"] / "accepted"
    examples = find_examples(store, dataset, 4)
    rows, real = read_samples(store), read_samples(dataset, ("train",))
    assert [one.name for one in examples] == ["digit 1", "digit 2", "digit 1", "digit 2"]
    row = rows.extra["pixel_ratio"].index(examples[0].pixel_ratio)
    assert np.array_equal(pixels(examples[0].picture), rows.images[row])
    nearest = real.ids.index(rows.extra["nearest_id"][row])
    assert np.array_equal(pixels(examples[0].nearest), real.images[nearest])
    # Within a class the likest to a training image stands first.
    assert examples[0].pixel_ratio <= examples[2].pixel_ratio


def test_rejected_examples_take_turns_and_leave_surplus_out(tmp_path: Path) -> None:
    folders = write_stages(tmp_path, Fake(rejected=(0, 6, 6)))
    dataset, store = folders["prepare"] / "dataset", folders["synthesize"] / "rejected"
    reasons = [one.reason for one in find_examples(store, dataset, 5)]
    assert sorted(reasons) == ["copy_distance", "copy_ratio", "disagrees", "repeat", "unsure"]
    assert "surplus" not in [one.reason for one in find_examples(store, dataset, 200)]
    seen = [one for one in find_examples(store, dataset, 200) if one.reason == "disagrees"]
    assert all(one.seen_as != one.name for one in seen)


def test_filters_offer_what_is_there_with_its_number(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    dataset = folders["prepare"] / "dataset"
    examples = find_examples(folders["synthesize"] / "accepted", dataset, 9)
    examples += find_examples(folders["synthesize"] / "rejected", dataset, 9)
    found = find_filters(examples)
    assert found.classes == ((1, "digit 1", 4), (2, "digit 2", 7))
    assert [one.label for one in examples].count(2) == 7
    assert dict(found.reasons) == dict.fromkeys(
        ("disagrees", "unsure", "copy_ratio", "copy_distance", "repeat"), 1
    )
    assert sum(one.accepted for one in examples) == 6
    assert find_filters([]).classes == ()


def test_no_store_and_no_rows_give_no_examples(tmp_path: Path) -> None:
    folders = write_stages(tmp_path, Fake(accepted=(0, 0, 0), rejected=None))
    dataset = folders["prepare"] / "dataset"
    assert find_examples(folders["synthesize"] / "accepted", dataset, 5) == []
    assert find_examples(folders["synthesize"] / "rejected", dataset, 5) == []


def test_taking_turns() -> None:
    assert list(take_turns(["ab", "c", "def"])) == ["a", "c", "d", "b", "e", "f"]
    assert list(take_turns([])) == []


def test_reasons_are_counted_over_classes() -> None:
    counts = count_reasons([{"a": 1, "b": 2}, {"a": 4}])
    assert list(counts.items()) == [("a", 5), ("b", 2)]
