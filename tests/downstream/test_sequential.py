import numpy as np
import pytest
from scipy.stats import norm

from pipeline.downstream import sequential
from pipeline.downstream.compare import Interval
from pipeline.downstream.sequential import decided, level_at, looks
from pipeline.errors import StageError


def test_looks_double_and_end_with_the_most() -> None:
    assert looks(4, 16) == (4, 8, 16)
    assert looks(4, 4) == (4,)
    assert looks(3, 10) == (3, 6, 10)
    assert looks(1, 2) == (1, 2)
    with pytest.raises(StageError, match="seeds 5 and max_seeds 4"):
        looks(5, 4)


def test_one_look_pays_nothing() -> None:
    assert level_at(0.9, (4,), 0) == 0.9


@pytest.mark.parametrize(
    ("shape", "looks_at", "constant"),
    [(0.5, 2, 2.178), (0.5, 3, 2.289), (0.5, 5, 2.413), (0.0, 2, 1.977), (0.0, 5, 2.040)],
)
def test_the_integration_gives_the_constants_of_pocock_and_of_obrien_and_fleming(
    shape, looks_at, constant, monkeypatch
) -> None:
    # Jennison & Turnbull 2000, tables 2.1 and 2.3, alpha = 0.05 two-sided, equally spaced looks.
    monkeypatch.setattr(sequential, "_SHAPE", shape)
    assert sequential._inside(constant, tuple(range(1, looks_at + 1))) == pytest.approx(
        0.95, abs=2e-4
    )


def test_the_bounds_in_use_lie_between_the_two() -> None:
    last = norm.isf((1 - level_at(0.95, range(1, 4), 2)) / 2)
    assert 2.004 < last < 2.289


def test_early_looks_are_stricter_and_the_last_is_close_to_one_look() -> None:
    levels = [level_at(0.95, (4, 8, 16), i) for i in range(3)]
    assert levels[0] > levels[1] > levels[2] > 0.95
    assert levels[2] < 0.965


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_any_false_answer_over_all_looks_is_as_rare_as_stated(shared) -> None:
    # Means of s seeds' gains, with a part of the error that all looks share (the test images).
    random, plan, trials = np.random.default_rng(0), (2, 4, 8, 16), 40_000
    seeds = random.normal(size=(trials, 16))
    images = random.normal(0, 1, trials)
    wrong, loose = np.zeros(trials, dtype=bool), np.zeros(trials, dtype=bool)
    for i, s in enumerate(plan):
        variance = shared + (1 - shared) / s
        mean = np.sqrt(shared) * images + np.sqrt(1 - shared) * seeds[:, :s].mean(axis=1)
        z = np.abs(mean) / np.sqrt(variance)
        wrong |= z > norm.isf((1 - level_at(0.95, plan, i)) / 2)
        loose |= z > norm.isf(0.025)
    assert wrong.mean() < 0.0535
    assert loose.mean() > 1.2 * wrong.mean()
    if not shared:
        assert wrong.mean() > 0.046  # nothing is given away


def test_decided_on_either_side_and_not_by_a_last_bit() -> None:
    assert decided(Interval(0.1, 0.01, 0.2))
    assert decided(Interval(-0.1, -0.2, -0.01))
    assert not decided(Interval(0.1, -0.01, 0.2))
    assert not decided(Interval(0.1, 1e-15, 0.2))


def test_plans_that_do_not_rise_are_refused() -> None:
    with pytest.raises(StageError, match="looks must increase"):
        level_at(0.95, (4, 4), 0)
    with pytest.raises(StageError, match="look 2 of"):
        level_at(0.95, (4, 8), 2)
