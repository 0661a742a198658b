"""Blank, dark, bright, blurred, odd shapes and sizes, classes too small."""

import numpy as np
import pytest
from checks.sets import blobs, examined
from sklearn.datasets import load_digits

from pipeline.checks.blurred import blurred
from pipeline.checks.class_sizes import class_sizes
from pipeline.checks.examined import Examined, Settings
from pipeline.checks.exposure import exposure
from pipeline.checks.facts import Facts
from pipeline.checks.findings import Finding
from pipeline.checks.scale import deviations
from pipeline.checks.shapes import shapes


def with_sizes(width: list[int], height: list[int]) -> Examined:
    one = examined(blobs(len(width)))
    columns = {name: getattr(one.facts, name) for name in one.facts.__dataclass_fields__}
    columns |= {"width": np.array(width, np.int32), "height": np.array(height, np.int32)}
    return examined(blobs(len(width)), facts=Facts(**columns))


def test_deviations_are_those_of_a_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, 20_001)
    assert deviations(values, 0.1).std() == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(deviations(np.array([1.0, 1.0, 2.0]), 0.5), [0, 0, 2])


def test_blank_dark_and_bright_images_are_named() -> None:
    images = blobs(50)
    images[3] = 128
    images[4] = images[4] // 60
    images[5] = 255 - images[5] // 60
    images[4, 0, 0], images[5, 0, 0] = 120, 120  # not blank
    found = {one.check: one for one in exposure(examined(images))}
    assert {check: one.examples[0].name for check, one in found.items()} == {
        "blank": "3.png",
        "dark": "4.png",
        "bright": "5.png",
    }
    assert all(one.count == 1 for one in found.values())
    assert found["dark"].message == "1 image is far darker than the others"


def test_a_blurred_image_is_named_and_a_faint_one_is_not() -> None:
    images = blobs(40)
    smooth = images[7].astype(float)
    for _ in range(3):
        for axis in (0, 1):
            smooth = sum(np.roll(smooth, by, axis) for by in range(-3, 4)) / 7
    images[7] = smooth.astype(np.uint8)
    images[8] = 100 + images[8] // 8
    (finding,) = blurred(examined(images))
    assert [one.name for one in finding.examples] == ["7.png"]


def test_digits_are_neither_dark_nor_blurred_nor_odd() -> None:
    digits = load_digits()
    images = np.clip(digits.images[:500] * 16, 0, 255).astype(np.uint8)[..., None]
    one = examined(images, digits.target[:500].tolist())
    assert exposure(one) == blurred(one) == shapes(one) == []


def test_odd_shapes_and_sizes_are_named() -> None:
    one = with_sizes([100] * 20 + [300, 1000], [100] * 20 + [100, 1000])
    found = {finding.check: finding for finding in shapes(one)}
    assert [e.detail for e in found["odd_shape"].examples] == ["300 x 100 px"]
    assert [e.detail for e in found["odd_size"].examples] == ["1000 x 1000 px"]


def test_where_all_sizes_occur_none_is_odd() -> None:
    sizes = [2**n for n in range(4, 12)] * 3
    assert shapes(with_sizes(sizes, sizes)) == []


@pytest.mark.parametrize("check", [exposure, blurred, shapes])
def test_an_empty_set_has_no_finding(check: object) -> None:
    assert callable(check)
    assert check(examined(blobs(1)[:0])) == []


def sizes(labels: list[int], **changes: object) -> dict[str, Finding]:
    one = examined(blobs(len(labels)), labels, classes=("a", "b"))
    clusters = np.arange(len(labels))
    found = class_sizes(one, clusters, Settings(**changes))  # type: ignore[arg-type]
    return {finding.check: finding for finding in found}


def test_classes_too_small_for_splits_folds_test_and_target_are_told_apart() -> None:
    found = sizes([0] * 40 + [1] * 2)
    assert found.keys() == {"class_small"}
    assert found["class_small"].severity == "error"
    assert found["class_small"].examples[0].detail == "class 'b': 2 distinct images"
    found = sizes([0] * 40 + [1] * 6)
    assert found.keys() == {"class_folds", "class_test"}
    assert found["class_test"].examples[0].detail == "class 'b': 2 test images"
    assert sizes([0] * 40 + [1] * 30) == {}
    found = sizes([0] * 40 + [1] * 30, target_images=500)
    assert [one.detail for one in found["class_target"].examples] == [
        "class 'a': 40 distinct images, 24 of them for training, topped up to 500",
        "class 'b': 30 distinct images, 18 of them for training, topped up to 500",
    ][found["class_target"].count == 1 :]


def test_a_class_without_any_image_is_too_small() -> None:
    (finding,) = sizes([0] * 40).values()
    assert finding.examples[0].detail == "class 'b': 0 distinct images"


def test_given_test_images_count_as_given_and_must_be_there() -> None:
    images = blobs(60)
    labels = [0] * 30 + [1] * 30
    splits = ["train"] * 24 + ["test"] * 6 + ["train"] * 30
    one = examined(images, labels, splits=splits)
    (finding,) = class_sizes(one, np.arange(60), Settings())
    assert finding.examples[0].detail == "class 'b': 30 distinct images, none in test"
