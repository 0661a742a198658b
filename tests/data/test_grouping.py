import numpy as np

from pipeline.data.grouping import join_groups
from pipeline.data.splits import stratified_split


def test_what_belongs_together_is_joined() -> None:
    ids = ["a", "a", "b", "c", "d", "e"]
    named = [None, "p", None, "p", None, None]
    clusters = np.asarray([0, 0, 2, 3, 2, 5])
    groups = join_groups(ids, named, clusters, [None] * 6)
    assert groups == ("p", "p", "b", "p", "b", "e")


def test_a_group_on_two_given_sides_falls_apart() -> None:
    named = ["p", "p", "q"]
    groups = join_groups(["a", "b", "c"], named, np.arange(3), ["test", None, None])
    assert groups == ("p/test", "p/other", "q")
    splits = stratified_split(
        np.zeros(3, dtype=np.int64), groups, 0.3, 0.3, 0, ["test", None, None], ["only"]
    )
    assert splits[0] == "test"
