import numpy as np
import pytest

from pipeline.errors import StageError
from pipeline.metrics import sliced as module
from pipeline.metrics.estimate import TooFewRows
from pipeline.metrics.sliced import sliced_distance


def draw(seed, n, m, width=6, shift=0.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, width)), random.normal(size=(m, width)) + shift


def squared_cost(x, y):
    """Squared distance of two sets of numbers, by walking both quantile functions."""
    xs, ys = sorted(x), sorted(y)
    i = j = 0
    left, right, total = 1 / len(xs), 1 / len(ys), 0.0
    while i < len(xs) and j < len(ys):
        moved = min(left, right)
        total += moved * (xs[i] - ys[j]) ** 2
        left, right = left - moved, right - moved
        if left < 1e-12:
            i, left = i + 1, 1 / len(xs)
        if right < 1e-12:
            j, right = j + 1, 1 / len(ys)
    return total


def test_in_one_dimension_every_direction_is_the_same():
    x, y = np.arange(10.0)[:, None], np.arange(10.0)[::-1, None] + 3
    assert sliced_distance(x, y, projections=4).value == pytest.approx(9)  # a shift by 3


@pytest.mark.parametrize(("n", "m"), [(12, 12), (10, 25), (21, 14), (10, 11)])
def test_it_agrees_with_a_plain_walk_for_any_two_sizes(n, m, monkeypatch):
    x, y = draw(0, n, m, shift=0.5)
    lines = np.random.default_rng(1).normal(size=(7, 6))

    class Fixed:
        def normal(self, size):
            return lines[: size[0]]

    monkeypatch.setattr(module, "numpy_generator", lambda seed, name: Fixed())
    units = lines / np.linalg.norm(lines, axis=1, keepdims=True)
    plain = np.mean([squared_cost(x @ line, y @ line) for line in units])
    assert sliced_distance(x, y, projections=7).value == pytest.approx(plain)


def test_a_shift_adds_its_squared_length_over_the_dimensions():
    x, _ = draw(2, 40, 10, width=20)
    shift = np.zeros(20)
    shift[3] = 4.0
    found = sliced_distance(x, x + shift, projections=4000)
    assert found.value == pytest.approx(16 / 20, rel=0.1)
    # With the shift along a line it is exact, projection by projection.
    flat = x[:, :1]
    assert sliced_distance(flat, flat + 2, projections=3).value == pytest.approx(4)


def test_the_same_points_are_no_distance_apart_in_any_order():
    x, _ = draw(3, 30, 10)
    found = sliced_distance(x, x[::-1])
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == 0
    assert sliced_distance(x, np.repeat(x, 3, axis=0)).value == pytest.approx(0, abs=1e-12)


def test_it_is_symmetric_and_grows_with_the_square_of_the_scale():
    x, y = draw(4, 30, 20, shift=1.0)
    one = sliced_distance(x, y)
    assert sliced_distance(y, x).value == pytest.approx(one.value)
    assert sliced_distance(3 * x, 3 * y).value == pytest.approx(9 * one.value)
    assert sliced_distance(3 * x, 3 * y).high == pytest.approx(9 * one.high)


def test_the_seed_fixes_the_directions():
    x, y = draw(5, 30, 20, shift=1.0)
    assert sliced_distance(x, y, 16) == sliced_distance(x, y, 16)
    assert sliced_distance(x, y, 16).value != sliced_distance(x, y, 16, seed=1).value


def test_blocks_change_nothing(monkeypatch):
    x, y = draw(6, 30, 20, shift=0.3)
    whole = sliced_distance(x, y, projections=50)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 300)  # 6 projections a block
    parts = sliced_distance(x, y, projections=50)
    assert parts.value == pytest.approx(whole.value)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_the_value_is_steady_from_a_thousand_rows_on():
    x, y = draw(7, 8000, 8000, width=16, shift=0.5)
    many = sliced_distance(x, y, projections=64).value
    some = [sliced_distance(x[k::8], y[k::8], projections=64) for k in range(8)]
    assert np.mean([one.value for one in some]) == pytest.approx(many, rel=0.05)
    assert all(one.low < many < one.high for one in some)


@pytest.mark.parametrize(("n", "bias"), [(20, 0.23), (100, 0.057), (1000, 0.0065)])
def test_few_rows_are_too_high_by_the_stated_amount(n, bias):
    count = 20 if n < 1000 else 3
    found = [sliced_distance(*draw(s, n, n, width=16), projections=64) for s in range(count)]
    assert np.mean([one.value for one in found]) == pytest.approx(bias, rel=0.2)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.95, 1.8), (0.7, 0.85, 1.2)])
def test_the_error_is_that_of_repeated_draws(shift, low, high):
    found = [
        sliced_distance(*draw(s, 30, 50, width=8, shift=shift), projections=32) for s in range(200)
    ]
    errors = np.array([(one.high - one.value) / 1.959964 for one in found])
    spread = np.std([one.value for one in found])
    assert low < np.sqrt((errors**2).mean()) / spread < high


def test_bad_rows_are_refused():
    x, y = draw(8, 10, 10)
    with pytest.raises(TooFewRows, match="sliced_distance: 9 real rows; it needs at least 10"):
        sliced_distance(x[:9], y)
    with pytest.raises(TooFewRows, match="0 fake rows; it needs at least 10"):
        sliced_distance(x, y[:0])
    with pytest.raises(StageError, match="0 projections; it needs at least 1"):
        sliced_distance(x, y, projections=0)
    with pytest.raises(StageError, match="overflow; scale them down"):
        sliced_distance(x * 1.0e200, y)
