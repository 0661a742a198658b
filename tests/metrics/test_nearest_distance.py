import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.metrics.estimate import TooFewRows
from pipeline.metrics.nearest_distance import closer_to_training, nearest_ratio


def test_the_median_ratio_of_a_known_layout():
    real = np.array([[0.0], [4.0], [100.0], [200.0], [300.0], [400.0]])
    fake = np.array([[0.0], [0.5], [1.0], [1.5], [2.0], [2.0], [2.0]])
    found = nearest_ratio(real, fake)
    assert found.value == pytest.approx(1.5 / 2.5)
    # Of 7 rows the smallest and the largest enclose the median with 98 %.
    assert (found.low, found.high) == (0, 1)
    assert (found.n_real, found.n_fake) == (6, 7)


def test_copies_have_a_low_ratio_and_fresh_rows_a_high_one():
    random = np.random.default_rng(0)
    real, fresh = random.normal(size=(2, 100, 32))
    assert nearest_ratio(real, real).high < 1e-6
    assert nearest_ratio(real, real + 0.05 * random.normal(size=real.shape)).high < 0.3
    assert nearest_ratio(real, fresh).low > 0.9


def test_the_interval_of_the_median_covers_it():
    random = np.random.default_rng(1)
    real = random.normal(size=(50, 3))
    truth = nearest_ratio(real, random.normal(size=(20_000, 3))).value
    for count in (6, 30):
        found = [nearest_ratio(real, random.normal(size=(count, 3))) for _ in range(200)]
        assert np.mean([one.low <= truth <= one.high for one in found]) > 0.92, count


def test_the_share_counts_nearer_rows_and_half_of_the_ties():
    training, heldout = np.zeros((20, 1)), np.full((20, 1), 10.0)
    fake = np.repeat([[1.0], [9.0], [5.0], [2.0]], 5, axis=0)
    found = closer_to_training(training, heldout, fake)
    assert found.value == 0.5 + 0.25 / 2
    assert (found.n_real, found.n_fake) == (20, 20)


def test_it_agrees_with_a_plain_search():
    random = np.random.default_rng(2)
    training, heldout, fake = random.normal(size=(3, 45, 5))
    near = [
        np.linalg.norm(fake[:, None] - s[None], axis=2).min(axis=1) for s in (training, heldout)
    ]
    assert closer_to_training(training, heldout, fake).value == pytest.approx(
        (near[0] < near[1]).mean()
    )


def test_a_row_that_stands_in_both_sets_is_a_tie():
    rows = 100 * np.random.default_rng(3).normal(size=(30, 64))
    assert closer_to_training(rows, rows[::-1], rows + 0.5).value == 0.5


def test_copies_of_training_rows_are_found_and_swapping_the_sets_mirrors_the_share():
    random = np.random.default_rng(4)
    training, heldout = random.normal(size=(2, 60, 16))
    copies = training + 0.1 * random.normal(size=training.shape)
    found = closer_to_training(training, heldout, copies)
    assert found.value == 1
    assert found.low > 0.5
    assert closer_to_training(heldout, training, copies).value == 0
    half = np.concatenate([copies[:30], random.normal(size=(30, 16))])
    assert closer_to_training(training, heldout, half).low > 0.5


@pytest.mark.parametrize(("n", "m"), [(25, 25), (60, 400)])
def test_rows_that_copy_nothing_have_a_half_in_their_interval(n, m):
    random = np.random.default_rng(5)
    found = [
        closer_to_training(*random.normal(size=(2, n, 8)), random.normal(size=(m, 8)))
        for _ in range(100)
    ]
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) > 0.9
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.03)
    # Few real rows make most of the width: fake rows alone would make it far narrower.
    spread = np.std([one.value for one in found])
    assert np.mean([one.high - one.low for one in found]) > 3.5 * spread


def test_the_images_of_a_bad_generator_are_no_copies():
    random = np.random.default_rng(6)
    training, heldout = random.normal(size=(2, 80, 8))
    found = closer_to_training(training, heldout, random.normal(size=(80, 8)) + 5)
    assert found.low < 0.5 < found.high


def test_bad_rows_are_refused():
    rows = np.random.default_rng(7).normal(size=(25, 2))
    with pytest.raises(TooFewRows, match="nearest_ratio: 5 fake rows; it needs at least 6"):
        nearest_ratio(rows, rows[:5])
    with pytest.raises(TooFewRows, match="closer_to_training: 19 real rows; it needs at least 20"):
        closer_to_training(rows, rows[:19], rows)
    with pytest.raises(TooFewRows, match="closer_to_training: 3 fake rows; it needs at least 20"):
        closer_to_training(rows, rows, rows[:3])
    with pytest.raises(StageError, match="25 training and 24 held-out rows; take equally many"):
        closer_to_training(rows, rows[:24], rows)
