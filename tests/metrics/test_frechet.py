import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from pipeline.errors import StageError
from pipeline.metrics import frechet as module
from pipeline.metrics.estimate import TooFewRows, jackknife
from pipeline.metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_infinity,
    gaussian_distance,
)


def moments(mean, covariance, count=1000):
    found = Moments(len(mean))
    found.count, found.mean = count, np.asarray(mean, dtype=np.float64)
    found.scatter = np.asarray(covariance, dtype=np.float64) * (count - 1)
    return found


def random_covariance(seed, width=6):
    a = np.random.default_rng(seed).normal(size=(width, width))
    return a @ a.T


def test_equal_covariances_leave_the_squared_gap_of_the_means():
    covariance = random_covariance(0)
    one, other = moments(np.zeros(6), covariance), moments(np.full(6, 2.0), covariance)
    assert gaussian_distance(one, other) == pytest.approx(6 * 4)


def test_covariances_that_commute_have_a_closed_form():
    one, other = moments([0, 0], np.diag([1.0, 9.0])), moments([0, 3], np.diag([4.0, 4.0]))
    assert gaussian_distance(one, other) == pytest.approx(9 + (1 - 2) ** 2 + (3 - 2) ** 2)
    point = moments([0, 0], np.zeros((2, 2)))
    assert gaussian_distance(one, point) == pytest.approx(1 + 9)


def test_it_equals_the_root_of_scipy():
    one, other = random_covariance(1), random_covariance(2)
    plain = np.trace(one + other - 2 * sqrtm(one @ other).real)
    found = gaussian_distance(moments(np.zeros(6), one), moments(np.zeros(6), other))
    assert found == pytest.approx(plain)


@pytest.mark.parametrize(("n", "m", "width"), [(60, 40, 5), (25, 30, 40), (25, 90, 40)])
def test_it_equals_torch_fidelity(n, m, width):
    random = np.random.default_rng(3)
    real = random.normal(size=(n, width)) @ np.diag(1 / np.arange(1, width + 1)) + 3
    fake = 1.3 * random.normal(size=(m, width)) + 2.5
    peer = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(rows)) for rows in (real, fake)), False
    )
    # Its eigenvalues of a singular product are good to the root of the rounding alone.
    assert frechet_distance(real, fake).value == pytest.approx(
        peer["frechet_inception_distance"], rel=1e-6
    )


@pytest.mark.parametrize("width", [4, 60])
def test_a_set_has_no_distance_to_itself_and_none_is_below_nought(width):
    rows = np.random.default_rng(4).normal(size=(40, width)) * 100
    found = frechet_distance(rows, rows)
    assert 0 <= found.low <= found.value < 1e-9
    assert frechet_distance(rows, rows[::-1] + 1).value == pytest.approx(width)


def test_features_without_variance_are_only_a_gap():
    constant = np.ones((30, 3))
    assert frechet_distance(constant, constant + 2).value == pytest.approx(12)
    assert frechet_distance(constant, constant).high == 0


def test_few_rows_give_the_same_both_ways():
    random = np.random.default_rng(5)
    real, fake = random.normal(size=(30, 50)), random.normal(size=(25, 50)) + 0.2
    found = frechet_distance(real, fake)
    whole = [Moments(50).add(rows) for rows in (real, fake)]
    assert found.value == pytest.approx(gaussian_distance(*whole), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(50, 43), (45, 45)])
def test_the_interval_is_that_of_the_jackknife_that_works_all_out_anew(n, m, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ROWS", 16)
    random = np.random.default_rng(6)
    real, fake = random.normal(size=(n, 4)), random.normal(size=(m, 4)) + 0.5

    def plain(x, y):
        return gaussian_distance(Moments(4).add(x), Moments(4).add(y))

    expected = jackknife(plain, real, fake, 0)
    found = frechet_distance(real, fake)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert (found.n_real, found.n_fake) == (n, m)
    monkeypatch.setattr(module, "_WIDE", 3)
    fewer, expected = frechet_distance(real, fake), jackknife(plain, real, fake, 0, groups=8)
    assert fewer.high == pytest.approx(expected.high)


@pytest.mark.parametrize("width", [6, 80])
def test_the_interval_holds_the_mean_of_repeated_draws(width):
    random = np.random.default_rng(7)
    found = [
        frechet_distance(random.normal(size=(40, width)), random.normal(size=(50, width)) + 0.3)
        for _ in range(60)
    ]
    values = [one.value for one in found]
    mean = np.mean(values)
    assert np.mean([one.low <= mean <= one.high for one in found]) >= 0.9
    assert np.mean([one.high - one.low for one in found]) < 12 * np.std(values)


def test_worse_generators_stand_farther_off():
    random = np.random.default_rng(8)
    real, fake = random.normal(size=(300, 5)), random.normal(size=(300, 5))
    fair = frechet_distance(real, fake)
    for worse in (fake + 1, 3 * fake, np.repeat(fake[:3], 100, axis=0)):
        assert frechet_distance(real, worse).low > fair.high


def test_moments_add_up_from_any_parts_even_far_from_the_origin(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    rows = np.random.default_rng(9).normal(size=(50, 3)) + 1e8
    one = Moments(3).add(rows[:20]).add(rows[20:21])
    whole = one.merge(Moments(3).add(rows[21:])).merge(Moments(3))
    assert whole.count == 50
    assert whole.mean == pytest.approx(rows.mean(axis=0))
    assert whole.covariance == pytest.approx(np.cov(rows, rowvar=False), rel=1e-6)


def test_extrapolation_takes_most_of_the_bias_away():
    random = np.random.default_rng(10)
    plain, endless = [], []
    for _ in range(8):
        real, fake = random.normal(size=(400, 20)), random.normal(size=(400, 20)) + 0.1
        plain.append(frechet_distance(real, fake).value)
        endless.append(frechet_infinity(real, fake))
    truth = 20 * 0.01
    assert abs(np.mean(endless) - truth) < 0.2 * (np.mean(plain) - truth)
    assert frechet_infinity(real, fake) == endless[-1]


def test_bad_features_are_refused():
    rows = np.random.default_rng(11).normal(size=(20, 2))
    with pytest.raises(TooFewRows, match="frechet_distance: 19 real rows; it needs at least 20"):
        frechet_distance(rows[:19], rows)
    with pytest.raises(TooFewRows, match="frechet_infinity: 20 real rows; it needs at least 80"):
        frechet_infinity(rows, rows)
    with pytest.raises(StageError, match="frechet_distance: fake features hold values"):
        frechet_distance(rows, np.where(rows == rows[0, 0], np.nan, rows))
    with pytest.raises(StageError, match="real rows have 2 features and fake rows 1;"):
        frechet_distance(rows, rows[:, :1])
    for huge in (rows * 1e200, np.repeat(rows, 20, axis=1) * 1e200):
        with pytest.raises(StageError, match="overflow when squared; scale them down"):
            frechet_distance(huge, huge)
    assert frechet_distance(rows, rows).value < 1e-9  # twenty rows are enough
