"""Label conflicts, leaks, exact duplicates, split groups."""

import numpy as np
from checks.sets import blobs, examined

from pipeline.checks.exact_duplicates import exact_duplicates
from pipeline.checks.label_conflicts import LABEL_CONFLICT, label_conflicts
from pipeline.checks.leaks import ALSO_IN_TEST, ALSO_IN_VALIDATION, leaks
from pipeline.checks.split_groups import split_groups
from pipeline.checks.units import split_units


def test_a_sound_set_has_no_finding() -> None:
    one = examined(blobs(6), [0, 1] * 3, splits=("train", "test") * 3)
    assert label_conflicts(one) == ([], [])
    assert leaks(one, []) == ([], [])
    assert exact_duplicates(one) == split_groups(one) == []


def test_all_images_of_a_conflict_are_set_aside_and_name_each_other() -> None:
    images = blobs(5)
    images[2] = images[4] = images[0]
    findings, aside = label_conflicts(examined(images, [0, 1, 1, 2, 0]))
    assert [(one.row, one.reason) for one in aside] == [(r, LABEL_CONFLICT) for r in (0, 2, 4)]
    assert aside[0].detail == "labelled 'a', with the same pixels as 2.png, labelled 'b'"
    assert aside[2].detail == "labelled 'a', with the same pixels as 2.png, labelled 'b'"
    assert aside[1].detail == "labelled 'b', with the same pixels as 0.png, labelled 'a'"
    assert (findings[0].severity, findings[0].count) == ("warning", 3)
    assert findings[0].examples[1].other_id == findings[0].examples[0].id


def test_three_labels_name_the_lowest_other_one() -> None:
    images = blobs(1).repeat(3, axis=0)
    details = [one.detail for one in label_conflicts(examined(images, [2, 0, 1]))[1]]
    assert [detail.split("labelled ")[-1] for detail in details] == ["'a'", "'b'", "'a'"]


def test_twins_of_test_and_validation_images_go_and_the_held_out_stay() -> None:
    images = blobs(8)
    images[0] = images[1] = images[2]  # train, undecided and test
    images[3] = images[4]  # train and validation
    images[5] = images[6]  # validation and test
    splits = ("train", None, "test", "train", "validation", "validation", "test", "train")
    findings, aside = leaks(examined(images, splits=splits), [])
    assert [(one.row, one.reason) for one in aside] == [
        (0, ALSO_IN_TEST),
        (1, ALSO_IN_TEST),
        (3, ALSO_IN_VALIDATION),
        (5, ALSO_IN_TEST),
    ]
    assert aside[0].detail == "the same pixels as 2.png"
    assert [(one.check, one.count) for one in findings] == [
        ("leaks_to_test", 3),
        ("leaks_to_validation", 1),
    ]


def test_what_is_set_aside_already_is_not_named_twice() -> None:
    images = blobs(2)
    images[1] = images[0]
    one = examined(images, [0, 1], splits=("train", "test"))
    assert leaks(one, label_conflicts(one)[1]) == ([], [])


def test_the_first_of_several_test_copies_is_named() -> None:
    images = blobs(1).repeat(4, axis=0)
    splits = ("train", "test", "test", "train")
    details = {one.detail for one in leaks(examined(images, splits=splits), [])[1]}
    assert details == {"the same pixels as 1.png"}


def test_copies_within_a_class_are_counted_beyond_the_first() -> None:
    images = blobs(4)
    images[2] = images[3] = images[1]
    (finding,) = exact_duplicates(examined(images))
    assert (finding.count, finding.severity) == (2, "info")
    assert finding.message == "2 images are exact copies of an earlier one of the same class"
    assert {one.detail for one in finding.examples} == {"the same pixels as 1.png"}


def test_groups_on_two_sides_are_named_and_ungrouped_rows_are_none() -> None:
    splits = ("train", "test", "train", "validation", None, "train", "train")
    groups = ("p1", "p1", "p2", "p2", "p2", None, None)
    (finding,) = split_groups(examined(blobs(7), splits=splits, groups=groups))
    assert finding.count == 2
    assert [one.detail for one in finding.examples] == [
        "group 'p1' is in train and test",
        "group 'p2' is in train and validation",
    ]


def test_units_join_groups_and_clusters() -> None:
    clusters = np.array([0, 1, 1, 3, 4], dtype=np.int64)
    one = examined(blobs(5), groups=("g", "g", None, None, None))
    units = split_units(one, clusters)
    assert units[0] == units[1] == units[2]
    assert len(np.unique(units)) == 3
    np.testing.assert_array_equal(split_units(examined(blobs(5)), clusters), clusters)
