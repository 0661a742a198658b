import numpy as np
import pytest

from pipeline.metrics.authenticity import authenticity
from pipeline.metrics.estimate import TooFewRows


def test_a_known_layout_and_a_tie():
    real = np.array([[0.0], [2.0], [10.0]])
    # 1 from row 0, whose radius is 2: a copy. 2 from row 0: a tie, a copy. 5 from row 2, whose
    # radius is 8: a copy. 9 from row 2: authentic.
    for place, share in ((-1.0, 0), (-2.0, 0), (15.0, 0), (19.0, 1), (-2.1, 1)):
        assert authenticity(real, np.full((2, 1), place)).value == share, place


def test_the_radius_is_that_of_the_row_that_is_met():
    # Between two clusters of unlike density: near the tight one it is new, near the wide one not.
    real = np.array([[0.0], [0.1], [100.0], [130.0]])
    fake = np.array([[1.0], [101.0]])
    assert authenticity(real, fake).value == 0.5


def test_it_agrees_with_plain_loops():
    random = np.random.default_rng(0)
    real, fake = random.normal(size=(40, 4)), random.normal(size=(30, 4))
    count = 0
    for row in fake:
        gaps = np.linalg.norm(real - row, axis=1)
        met = gaps.argmin()
        others = np.linalg.norm(np.delete(real, met, axis=0) - real[met], axis=1)
        count += gaps[met] > others.min()
    assert authenticity(real, fake).value == count / 30


def test_copies_are_not_authentic_even_where_the_row_is_there_twice():
    real = np.random.default_rng(1).normal(size=(50, 64)) * 100
    assert authenticity(real, real).value == 0
    twice = np.repeat(real, 2, axis=0)
    assert authenticity(twice, real).value == 0
    assert authenticity(real, real + 0.01).value == 0


def test_fresh_rows_reach_what_the_docstring_says():
    random = np.random.default_rng(2)
    for width, share in ((2, 0.4), (64, 0.8)):
        real, fake = random.normal(size=(2, 500, width))
        found = authenticity(real, fake)
        assert found.value == pytest.approx(share, abs=0.06)
        assert 0 < found.low < found.value < found.high < 1


def test_the_interval_covers_the_draw_of_fake_rows():
    random = np.random.default_rng(3)
    real = random.normal(size=(60, 4))
    truth = authenticity(real, random.normal(size=(20_000, 4))).value
    found = [authenticity(real, random.normal(size=(40, 4))) for _ in range(200)]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.9


def test_too_few_rows_are_refused():
    rows = np.zeros((2, 2))
    with pytest.raises(TooFewRows, match="authenticity: 1 real rows; it needs at least 2"):
        authenticity(rows[:1], rows)
    with pytest.raises(TooFewRows, match="authenticity: 0 fake rows; it needs at least 2"):
        authenticity(rows, rows[:0])
