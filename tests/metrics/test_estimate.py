import math

import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.metrics.estimate import (
    TooFewRows,
    jackknife,
    jackknife_groups,
    left_out_interval,
    normal_interval,
    require_comparable,
    require_features,
)


def mean_gap(real, fake):
    return float(real.mean() - fake.mean())


def test_left_out_one_by_one_the_jackknife_of_a_mean_is_the_textbook_error():
    random = np.random.default_rng(0)
    real, fake = random.normal(size=(12, 1)), random.normal(size=(15, 1))
    found = jackknife(mean_gap, real, fake)
    error = math.sqrt(real.var(ddof=1) / 12 + fake.var(ddof=1) / 15)
    assert found.value == pytest.approx(mean_gap(real, fake))
    # Student's t of 11 degrees of freedom, from a printed table.
    assert found.high - found.value == pytest.approx(2.201 * error, rel=1e-3)
    assert found.value - found.low == pytest.approx(2.201 * error, rel=1e-3)
    assert (found.n_real, found.n_fake) == (12, 15)


def test_with_groups_it_is_wide_enough_and_not_too_wide():
    random = np.random.default_rng(1)
    found = [
        jackknife(mean_gap, random.normal(size=(103, 1)), random.normal(size=(61, 1)))
        for _ in range(300)
    ]
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.04)


def test_the_interval_stays_in_the_range_and_holds_the_value():
    found = left_out_interval(0.9, np.array([0.1, 1.0, 0.4]), np.zeros(0), 3, 0, 0, 1)
    assert (found.low, found.high) == (0, 1)
    outside = left_out_interval(1.2, np.array([1.2, 1.2]), np.zeros(0), 3, 0, 0, 1)
    assert outside.low <= outside.value <= outside.high


def test_a_side_without_groups_adds_nothing():
    values = np.array([1.0, 2.0, 4.0])
    one = left_out_interval(2, values, np.zeros(0), 9, 9)
    assert one == left_out_interval(2, np.zeros(1), values, 9, 9)
    both = left_out_interval(2, values, values, 9, 9)
    assert both.high - 2 == pytest.approx(math.sqrt(2) * (one.high - 2))
    nothing = left_out_interval(2, np.zeros(0), np.zeros(1), 9, 9)
    assert nothing.low == nothing.high == 2


def test_one_row_on_a_side_leaves_none_out():
    rows = np.arange(4.0)[:, None]
    found = jackknife(mean_gap, rows, np.ones((1, 1)))
    assert found.high > found.value
    assert jackknife(mean_gap, rows[:1], rows[:1]).high == 0


def test_groups_are_interleaved_and_of_nearly_one_size():
    assert jackknife_groups(5, 2).tolist() == [0, 1, 0, 1, 0]
    assert jackknife_groups(3).tolist() == [0, 1, 2]
    assert np.bincount(jackknife_groups(50)).tolist() == [3] * 10 + [2] * 10
    assert len(jackknife_groups(0)) == 0


def test_a_normal_interval_is_two_errors_within_the_range():
    found = normal_interval(0.5, 0.1, 7, 8, 0, 0.6)
    assert (found.low, found.high) == pytest.approx((0.304, 0.6), rel=1e-4)
    assert (found.n_real, found.n_fake) == (7, 8)


def test_what_cannot_be_compared_is_refused():
    rows = np.ones((4, 2))
    require_comparable("it", rows, rows, 4)
    with pytest.raises(TooFewRows, match="it: 3 fake rows; it needs at least 4"):
        require_comparable("it", rows, rows[:3], 4)
    with pytest.raises(StageError, match="it: real rows have 2 features and fake rows 1;"):
        require_comparable("it", rows, rows[:, :1], 1)
    with pytest.raises(StageError, match=r"it: real has the shape \(4,\), not \(N, D\)"):
        require_comparable("it", rows[:, 0], rows, 1)
    with pytest.raises(StageError, match=r"it: some has the shape \(4, 0\)"):
        require_features("it", "some", rows[:, :0], 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found_in_any_row(bad):
    rows = np.ones((50, 2), np.float32)
    rows[-1, 1] = bad
    with pytest.raises(StageError, match="it: fake features hold values that are not finite"):
        require_features("it", "fake", rows, 1)
