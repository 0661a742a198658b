import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from pipeline.curation import diversity
from pipeline.curation.diversity import choose

WAYS = ["first", "diverse", "k_centre"]


def clusters(centres=4, each=10, seed=0, spread=0.05):
    random = np.random.default_rng(seed)
    means = 10 * np.eye(centres)
    rows = means[np.arange(centres * each) % centres]
    return rows + spread * random.standard_normal(rows.shape)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (7, 7), (40, 40), (99, 40)])
def test_so_many_are_chosen_and_none_twice(how, count, kept):
    rows = choose(clusters(), count, how)
    assert len(rows) == len(set(rows.tolist())) == kept
    assert rows.dtype == np.int64


@pytest.mark.parametrize("how", WAYS)
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(how):
    features = np.random.default_rng(1).standard_normal((60, 5))
    assert choose(features, 30, how)[:12].tolist() == choose(features, 12, how).tolist()


def test_the_first_are_taken_as_they_come():
    assert choose(clusters(), 3, "first").tolist() == [0, 1, 2]


@pytest.mark.parametrize("how", ["diverse", "k_centre"])
def test_each_cluster_gives_one_before_any_gives_two(how):
    # Sorted by cluster: the first four in order are all of one cluster.
    features = clusters()[np.argsort(np.arange(40) % 4, kind="stable")]
    assert {row // 10 for row in choose(features, 4, how)} == {0, 1, 2, 3}
    assert {row // 10 for row in choose(features, 4, "first")} == {0}


def test_the_greedy_determinant_is_that_of_a_search_over_every_next_row():
    features = np.random.default_rng(3).standard_normal((12, 3))
    bandwidth = np.median(pdist(features))
    kernel = np.exp(-(cdist(features, features) ** 2) / (2 * bandwidth**2))
    order = [0]  # of equals the first
    while len(order) < 6:
        left = [i for i in range(12) if i not in order]
        values = [np.linalg.det(kernel[np.ix_([*order, i], [*order, i])]) for i in left]
        order.append(left[int(np.argmax(values))])
    assert choose(features, 6, "diverse").tolist() == order


def test_k_centre_leaves_no_row_as_far_as_the_first_ones_do():
    features = np.random.default_rng(4).standard_normal((200, 3))

    def reach(how):
        return cdist(features, features[choose(features, 20, how)]).min(axis=1).max()

    assert reach("k_centre") < 0.8 * reach("first")


@pytest.mark.parametrize("how", ["diverse", "k_centre"])
def test_rows_that_are_all_alike_are_taken_in_order(how):
    assert sorted(choose(np.ones((5, 2)), 3, how).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("how", ["diverse", "k_centre"])
def test_more_rows_than_a_group_holds_are_dealt_out(how, monkeypatch):
    monkeypatch.setattr(diversity, "_GROUP", 16)
    features = clusters(centres=4, each=20)
    rows = choose(features, 24, how)
    assert len(set(rows.tolist())) == 24
    assert set(np.bincount(rows % 5, minlength=5)) == {4, 5}  # five groups of 16
