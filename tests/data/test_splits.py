from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.splits import (
    long_tail_profile,
    stratified_split,
    thin_to_long_tail,
    time_split,
)
from pipeline.errors import InputError


def unique(count: int) -> list[str]:
    return [f"g{i:04d}" for i in range(count)]


def test_shares_are_of_each_class() -> None:
    labels = np.repeat([0, 1], [100, 20])
    splits = stratified_split(labels, unique(120), 0.2, 0.35, seed=0)
    assert Counter(splits[:100]) == {"train": 45, "validation": 20, "test": 35}
    assert Counter(splits[100:]) == {"train": 9, "validation": 4, "test": 7}


def test_three_images_give_one_each() -> None:
    splits = stratified_split(np.zeros(3, dtype=np.int64), unique(3), 0.8, 0.1, seed=0)
    assert sorted(splits) == ["test", "train", "validation"]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 12), min_size=1, max_size=4),
    fractions=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)),
    seed=st.integers(0, 1000),
    copies=st.integers(0, 10),
)
def test_every_class_is_everywhere_and_groups_stay_whole(
    sizes: list[int], fractions: tuple[float, float], seed: int, copies: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    groups = unique(len(labels))
    labels = np.concatenate([labels, labels[:copies]])
    groups += groups[:copies]
    splits = stratified_split(labels, groups, *fractions, seed)
    for label in range(len(sizes)):
        assert {s for s, k in zip(splits, labels, strict=True) if k == label} == {
            "train",
            "validation",
            "test",
        }
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    labels = np.repeat([0, 1], 30)
    groups = unique(60)
    splits = dict(zip(groups, stratified_split(labels, groups, 0.2, 0.3, 1), strict=True))
    order = np.random.default_rng(0).permutation(60)
    shuffled = [groups[i] for i in order]
    again = stratified_split(labels[order], shuffled, 0.2, 0.3, 1)
    assert dict(zip(shuffled, again, strict=True)) == splits
    other = dict(zip(groups, stratified_split(labels, groups, 0.2, 0.3, 2), strict=True))
    assert other != splits


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(3, 60),
    fractions=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)),
    seed=st.integers(0, 1000),
    new=st.integers(0, 10_000),
)
def test_one_image_more_moves_three_others_at_most(
    size: int, fractions: tuple[float, float], seed: int, new: int
) -> None:
    def sides(groups: list[str]) -> dict[str, str]:
        labels = np.repeat([0, 1], [len(groups), 10])
        drawn = stratified_split(labels, [*groups, *others], *fractions, seed)
        return dict(zip([*groups, *others], drawn, strict=True))

    others = [f"other {i}" for i in range(10)]
    groups = unique(size)
    before, after = sides(groups), sides([*groups, f"new {new}"])
    moved = [group for group in before if before[group] != after[group]]
    # Each split may grow by one: one image moves over the first border, two over the second.
    assert len(moved) <= 3
    assert not set(moved) & set(others)  # and none of another class


def test_relabelling_leaves_most_images_on_their_side() -> None:
    labels = np.repeat([0, 1], 60)
    groups = unique(120)
    before = stratified_split(labels, groups, 0.15, 0.25, 0)
    labels[:6] = 1
    after = stratified_split(labels, groups, 0.15, 0.25, 0)
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 12


def test_sides_follow_the_seed_and_the_group_alone() -> None:
    # The one class and the other draw the same groups: neither label nor place counts.
    groups = unique(40)
    first = stratified_split(np.zeros(40, dtype=np.int64), groups, 0.2, 0.3, 5)
    both = stratified_split(np.repeat([0, 1], 40), [*unique(80)[40:], *groups], 0.2, 0.3, 5)
    assert both[40:] == first


def test_a_given_test_is_kept_and_no_other_is_drawn() -> None:
    labels = np.repeat([0, 1], 20)
    source = (["test"] * 5 + [None] * 15) * 2
    splits = stratified_split(labels, unique(40), 0.2, 0.5, 0, source)
    assert all((s == "test") == (g == "test") for s, g in zip(splits, source, strict=True))
    assert Counter(splits) == {"test": 10, "validation": 6, "train": 24}


def test_too_few_images_name_class_count_minimum_and_remedy() -> None:
    labels = np.asarray([0, 0, 0, 1, 2, 2, 2, 2])
    groups = ["a", "b", "c", "d", "e", "e", "f", "f"]
    with pytest.raises(InputError) as caught:
        stratified_split(labels, groups, 0.2, 0.2, 0, classes=["cat", "dog", "cow", "owl"])
    assert str(caught.value).split("\n") == [
        f"class {name}, and at least 3 are needed (one each for train, validation, test); "
        "add images or remove the class"
        for name in (
            "'dog': 1 usable distinct image",
            "'cow': 2 usable distinct images",
            "'owl': 0 usable distinct images",
        )
    ]


def test_a_class_without_given_test_images_is_named() -> None:
    labels = np.asarray([0, 0, 0, 1, 1, 1])
    source = ["test", None, None, None, None, None]
    with pytest.raises(InputError, match="class '1': has no test images"):
        stratified_split(labels, unique(6), 0.2, 0.2, 0, source)
    source[3:] = ["test", "test", None]
    with pytest.raises(InputError, match=r"at least 2 are needed \(one each for train, validat"):
        stratified_split(labels, unique(6), 0.2, 0.2, 0, source)


def test_many_troubles_are_cut_short() -> None:
    with pytest.raises(InputError, match=r"\.\.\. and 5 more classes"):
        stratified_split(np.arange(15), unique(15), 0.2, 0.2, 0)


def test_contradictory_groups_are_a_bug() -> None:
    with pytest.raises(ValueError, match="given to validation and to test"):
        stratified_split(np.asarray([0, 0]), ["a", "a"], 0.2, 0.2, 0, ["validation", "test"])
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        stratified_split(np.asarray([0]), ["a"], 0.2, 0.2, 0, ["dev"])


def test_the_profile_is_geometric() -> None:
    assert long_tail_profile(10, 100, 10) == (100, 77, 60, 46, 36, 28, 22, 17, 13, 10)
    assert long_tail_profile(3, 100, 1) == (100, 10, 1)
    assert long_tail_profile(4, 7, 7) == (7, 7, 7, 7)
    assert long_tail_profile(1, 9, 2) == (9,)


def test_thinning_keeps_the_profile_and_loses_nothing() -> None:
    labels = np.repeat([0, 1, 2], 50)
    rows = np.arange(0, 150, 2)  # 25 a class
    kept, left = thin_to_long_tail(labels, unique(150), rows, 20, 5, seed=3)
    assert np.bincount(labels[kept]).tolist() == [20, 10, 5]
    assert sorted([*kept, *left]) == rows.tolist()
    again, _ = thin_to_long_tail(labels, unique(150), rows[::-1], 20, 5, seed=3)
    assert np.array_equal(kept, again)
    other, _ = thin_to_long_tail(labels, unique(150), rows, 20, 5, seed=4)
    assert not np.array_equal(kept, other)


def test_a_class_with_fewer_keeps_what_it_has() -> None:
    labels = np.repeat([0, 1], [4, 30])
    kept, left = thin_to_long_tail(labels, unique(34), np.arange(34), 20, 10, seed=0)
    assert np.bincount(labels[kept]).tolist() == [4, 10]
    assert len(left) == 20


def test_distinct_images_are_kept_before_copies() -> None:
    groups = ["a"] * 10 + ["b", "c"]
    labels = np.zeros(12, dtype=np.int64)
    for seed in range(5):
        kept, _ = thin_to_long_tail(labels, groups, np.arange(12), 3, 3, seed)
        assert {groups[i] for i in kept} == {"a", "b", "c"}


def test_groups_of_several_classes_stay_whole_and_the_shares_hold() -> None:
    random = np.random.default_rng(3)
    patients = random.integers(0, 60, 1200)
    labels = random.integers(0, 4, 1200)
    groups = [f"p{p:02d}" for p in patients]
    ids = [f"i{i}" for i in range(1200)]
    splits = np.asarray(stratified_split(labels, groups, 0.2, 0.3, 0, ids=ids))
    for patient in range(60):
        assert len(set(splits[patients == patient])) == 1
    for label in range(4):
        own = splits[labels == label]
        assert abs(float((own == "test").mean()) - 0.3) < 0.06
        assert abs(float((own == "validation").mean()) - 0.2) < 0.06


def test_shares_count_images_and_not_groups() -> None:
    # One class: a group of 60 images and 60 of one image.
    groups = ["big"] * 60 + [f"g{i}" for i in range(60)]
    labels = np.zeros(120, dtype=np.int64)
    ids = [f"i{i}" for i in range(120)]
    for seed in range(5):
        splits = stratified_split(labels, groups, 0.2, 0.3, seed, ids=ids)
        assert splits.count("test") in range(24, 67)
        assert {"train", "validation", "test"} == set(splits)


def test_folds_have_tests_without_an_image_in_common() -> None:
    labels = np.arange(200) % 2
    groups = unique(200)
    tests = []
    for fold in range(4):
        splits = stratified_split(labels, groups, 0.15, 0.25, 0, fold=fold)
        tests.append({i for i, split in enumerate(splits) if split == "test"})
        assert splits.count("test") == 50
    assert len(set.union(*tests)) == 200


def test_given_train_rows_can_be_drawn_unless_all_is_given() -> None:
    labels = np.zeros(20, dtype=np.int64)
    part = ["test"] * 4 + ["train"] * 16
    splits = stratified_split(labels, unique(20), 0.25, 0.25, 0, part)
    assert splits[:4] == ("test",) * 4
    assert splits[4:].count("validation") == 4
    whole = ["test"] * 4 + ["validation"] * 4 + ["train"] * 12
    assert list(stratified_split(labels, unique(20), 0.25, 0.25, 0, whole)) == whole


def test_the_latest_are_the_test() -> None:
    labels = np.arange(40) % 2
    times = [f"2026-01-{day + 1:02d}" for day in range(20) for _ in range(2)]
    splits = time_split(labels, unique(40), times, 0.2, 0.3, ["a", "b"])
    assert splits == ("train",) * 20 + ("validation",) * 8 + ("test",) * 12
    late = [*unique(39), unique(40)[0]]  # the last row is of the first row's group
    assert time_split(labels, late, times, 0.2, 0.3, ["a", "b"])[0] == "test"
    numbers = [str(n) for n in range(40)]  # as text, 9 would come after 39
    assert time_split(labels, unique(40), numbers, 0.2, 0.3, ["a", "b"])[9] == "train"
    with pytest.raises(InputError, match="class 'b': no test images when split by time"):
        time_split(np.asarray([1] * 20 + [0] * 20), unique(40), times, 0.2, 0.3, ["a", "b"])
