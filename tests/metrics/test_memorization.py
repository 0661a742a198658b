import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.metrics.estimate import TooFewRows
from pipeline.metrics.memorization import (
    COPY_RATIO,
    Nearest,
    RealIndex,
    copy_share,
    copy_share_estimate,
    nearest_real,
    share_estimate,
)


def test_distances_of_a_known_layout():
    real = np.array([[0.0, 0.0], [4.0, 0.0], [100.0, 0.0]])
    found = nearest_real(np.array([[1.0, 0.0]]), real)
    assert found.index.tolist() == [0]
    assert found.distance[0] == pytest.approx(1 / np.sqrt(2))  # root mean square over D = 2
    assert found.ratio[0] == pytest.approx(1 / 3)


def test_copies_have_ratio_nought_and_new_draws_do_not():
    random = np.random.default_rng(0)
    real, new = random.normal(size=(200, 16)), random.normal(size=(50, 16))
    copies = nearest_real(real[:50], real)
    assert copies.index.tolist() == list(range(50))
    assert copies.ratio.max() < 1e-6
    assert nearest_real(new, real).ratio.min() > 1 / 3


def test_it_agrees_with_a_plain_search():
    random = np.random.default_rng(1)
    fake, real = random.normal(size=(30, 8)), random.normal(size=(40, 8))
    plain = np.sqrt(((fake[:, None] - real[None]) ** 2).mean(axis=2))
    found = nearest_real(fake, real)
    assert np.array_equal(found.index, plain.argmin(axis=1))
    assert np.allclose(found.distance, plain.min(axis=1))
    ordered = np.sort(plain, axis=1)
    assert np.allclose(found.ratio, ordered[:, 0] / ordered[:, 1])


def test_a_training_image_that_is_there_twice_makes_the_ratio_blind_but_not_the_distance():
    real = np.array([[0.0], [0.0], [5.0]])
    found = nearest_real(np.array([[0.0]]), real)
    assert found.ratio[0] == 1
    assert found.distance[0] == 0


def test_the_row_that_an_image_was_made_from_is_left_out_of_its_search():
    random = np.random.default_rng(2)
    real = random.normal(size=(40, 8))
    parents = np.arange(30)
    fake = real[:30] + 0.01 * random.normal(size=(30, 8))
    parents[20:] = 39  # these are copies of rows that they were not made from
    found = RealIndex(real).nearest(fake, parents)
    for i in range(30):
        others = np.delete(np.arange(40), parents[i])
        plain = np.sqrt(((fake[i] - real[others]) ** 2).mean(axis=1))
        assert found.index[i] == others[plain.argmin()]
        assert found.distance[i] == pytest.approx(plain.min())
        assert found.ratio[i] == pytest.approx(plain.min() / np.sort(plain)[1])
    assert (found.ratio[:20] > 1 / 3).all()
    assert (found.ratio[20:] < 1 / 3).all()
    gaps = RealIndex(real).distance_to(fake, parents)
    assert gaps == pytest.approx(np.sqrt(((fake - real[parents]) ** 2).mean(axis=1)))


def test_with_one_other_row_the_ratio_says_nothing():
    found = RealIndex(np.array([[0.0], [4.0]])).nearest(np.array([[1.0]]), np.array([0]))
    assert (found.index[0], found.distance[0], found.ratio[0]) == (1, 3.0, 1.0)


def test_bad_features_are_refused():
    with pytest.raises(StageError, match="1 real rows; .* needs at least 2"):
        nearest_real(np.zeros((3, 2)), np.zeros((1, 2)))
    with pytest.raises(StageError, match="not finite"):
        nearest_real(np.array([[np.nan]]), np.zeros((2, 1)))
    assert len(nearest_real(np.zeros((0, 2)), np.zeros((2, 2))).ratio) == 0


def nearest_of(ratios: list[float]) -> Nearest:
    return Nearest(np.zeros(len(ratios), np.int64), np.zeros(len(ratios)), np.array(ratios))


def test_the_copy_share_counts_ratios_below_the_limit_and_not_at_it():
    found = nearest_of([0.0, 0.2, COPY_RATIO, 1.0])
    assert copy_share(found) == 0.5
    assert copy_share(found, limit=0.1) == 0.25
    assert copy_share(found, limit=1.0) == 0.75


def test_the_copy_share_is_the_share_of_copies_mixed_into_new_draws():
    random = np.random.default_rng(2)
    real, new = random.normal(size=(100, 16)), random.normal(size=(30, 16))
    near = real[:10] + 0.01 * random.normal(size=(10, 16))
    assert copy_share(nearest_real(np.concatenate([near, new]), real)) == 0.25


def test_a_copy_share_of_nothing_is_refused():
    with pytest.raises(StageError, match="copy_share: 0 fake rows; a share needs at least 1"):
        copy_share(nearest_of([]))


def test_the_share_has_wilsons_interval():
    random = np.random.default_rng(3)
    real, new = random.normal(size=(2, 100, 16))
    half = np.concatenate([real[:50] + 0.01, new[:50]])
    found = copy_share_estimate(real, half)
    assert (found.value, found.n_real, found.n_fake) == (0.5, 100, 100)
    # The roots of (p - 0.5)^2 = z^2 p (1 - p) / n.
    for end in (found.low, found.high):
        assert abs(end - 0.5) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 100))


def test_no_copy_among_few_rows_leaves_room_for_some():
    none, all_ = (share_estimate(np.full(10, hit), 5) for hit in (False, True))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(3.8415 / 13.8415, rel=1e-3)  # z^2 / (n + z^2)
    assert (all_.value, all_.high, all_.low) == (1, 1, pytest.approx(1 - none.high))
    assert share_estimate(np.zeros(1000, dtype=bool), 5).high < 0.004


def test_an_estimate_of_too_few_rows_is_refused():
    with pytest.raises(TooFewRows, match="copy_share: 1 fake rows; it needs at least 2"):
        copy_share_estimate(np.eye(3), np.eye(3)[:1])
