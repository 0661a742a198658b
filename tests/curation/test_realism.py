import numpy as np
import pytest

from pipeline.curation.realism import RealSupport
from pipeline.errors import StageError
from pipeline.metrics.estimate import TooFewRows

CENTRES = 6 * np.eye(8)[:3]


def draw(counts, seed, scale=1.0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return CENTRES[labels] + scale * random.normal(size=(len(labels), 8)), labels


def test_fresh_rows_lie_about_one_away_and_are_nearer_to_their_own_class():
    support = RealSupport(*draw([40, 20, 8], 0))
    placed = support.place(*draw([50, 50, 50], 1))
    assert 0.8 < np.median(placed.distance) < 1.6
    assert (placed.ratio < 1).mean() > 0.97


def test_wrong_labels_and_strangers_are_told():
    support = RealSupport(*draw([40, 20, 8], 0))
    features, labels = draw([50, 50, 50], 1)
    wrong = support.place(features, (labels + 1) % 3)
    assert (wrong.ratio > 1).mean() > 0.97
    right = support.place(features, labels)
    stranger = support.place(features + 20 * np.eye(8)[7], labels)
    assert np.median(stranger.distance) > np.quantile(right.distance, 0.9)


def test_a_thin_class_is_measured_on_its_own_scale():
    features, labels = draw([60, 8, 8], 0)
    placed = RealSupport(features, labels).place(*draw([100, 100, 0], 1))
    thick, thin = np.median(placed.distance[:100]), np.median(placed.distance[100:])
    assert 0.6 < thick / thin < 1.6


def test_a_row_itself_is_left_out_where_it_is_named():
    features, labels = draw([6, 6, 1], 0)
    support = RealSupport(features, labels)
    own = support.place_own(np.arange(13))
    assert (own.distance >= support.place(features, labels).distance).all()
    # The only row of a class has nothing to be near to without itself, and does not stand out.
    assert support.place_own(np.array([12])).distance[0] == 1
    assert support.place(features[-1:], labels[-1:]).distance[0] == 0


def test_blocks_do_not_change_the_answer(monkeypatch):
    support = RealSupport(*draw([40, 20, 8], 0))
    features, labels = draw([10, 10, 10], 1)
    whole = support.place(features, labels)
    monkeypatch.setattr("pipeline.curation.realism._BLOCK_VALUES", 200)
    parts = support.place(features, labels)
    assert (whole.distance == parts.distance).all()
    assert (whole.ratio == parts.ratio).all()


def test_constant_features_say_nothing():
    labels = np.arange(6) % 2
    placed = RealSupport(np.ones((6, 3)), labels).place(np.full((2, 3), 7.0), labels[:2])
    assert placed.distance.tolist() == [0, 0]
    assert placed.ratio.tolist() == [0, 0]


def test_a_class_without_real_rows_is_measured_against_all():
    features, labels = draw([10, 10, 0], 0)
    placed = RealSupport(features, labels).place(features[:2], np.array([5, 5]))
    assert np.isfinite(placed.distance).all()


def test_broken_features_are_refused_by_name():
    features, labels = draw([5, 5, 5], 0)
    support = RealSupport(features, labels)
    broken = features.copy()
    broken[3, 2] = np.nan
    with pytest.raises(StageError, match="realism: real features hold values that are not finite"):
        RealSupport(broken, labels)
    with pytest.raises(StageError, match="realism: candidate features hold"):
        support.place(broken, labels)
    with pytest.raises(StageError, match="candidates have 4 features and real rows 8"):
        support.place(features[:, :4], labels)
    with pytest.raises(TooFewRows, match="0 real rows"):
        RealSupport(features[:0], labels[:0])
