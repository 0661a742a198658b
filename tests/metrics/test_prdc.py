import math

import numpy as np
import pytest
from prdc import compute_prdc
from scipy.spatial.distance import cdist

from pipeline.errors import StageError
from pipeline.metrics import neighbours, tiles
from pipeline.metrics import prdc as module
from pipeline.metrics.estimate import TooFewRows, jackknife
from pipeline.metrics.prdc import class_covered, prdc, prdc_estimates


def four(found):
    return found.precision, found.recall, found.density, found.coverage


def column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def test_a_known_layout():
    # k = 1: every real radius is 1; the fake radii are 9.5, 0.25 and 0.25.
    found = prdc(column(0, 1, 2, 3), column(0.5, 10, 10.25), k=1)
    assert four(found) == pytest.approx((1 / 3, 1, 2 / 3, 2 / 4))
    assert (found.k, found.n_real, found.n_fake) == (1, 4, 3)


def test_a_fake_row_on_the_edge_of_a_ball_is_outside():
    on_the_edge = prdc(column(0, 1, 2, 3), column(4, 100), k=1)
    assert (on_the_edge.precision, on_the_edge.density, on_the_edge.coverage) == (0, 0, 0)
    just_inside = prdc(column(0, 1, 2, 3), column(3.999, 100), k=1)
    assert (just_inside.precision, just_inside.coverage) == (1 / 2, 1 / 4)


def test_a_row_that_is_there_more_than_k_times_has_an_empty_ball():
    real = column(0, 0, 0, 7)
    found = prdc(real, column(0, 0, 1), k=2)
    assert found.coverage == 1 / 4  # only the ball of 7 holds a row, that at 1
    assert found.precision == 1 / 3


@pytest.mark.parametrize("k", [1, 5])
def test_the_real_set_itself_has_ones_throughout(k):
    # Exact: each row is inside its own ball and those of its k - 1 nearer neighbours, ties outside.
    real = np.random.default_rng(0).normal(size=(60, 8))
    found = prdc(real, real, k)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    balls = [sum(plain_inside(real, real, k)[:, j]) for j in range(60)]
    assert found.density == pytest.approx(np.mean(balls) / k)
    assert found.density == pytest.approx(1)


def plain_inside(centres, rows, k):
    inside = np.zeros((len(centres), len(rows)), dtype=bool)
    for i, centre in enumerate(centres):
        others = [math.dist(centre, other) for j, other in enumerate(centres) if j != i]
        radius = sorted(others)[k - 1]
        for j, row in enumerate(rows):
            inside[i, j] = math.dist(centre, row) < radius
    return inside


@pytest.mark.parametrize("k", [1, 3])
def test_it_agrees_with_plain_loops(k):
    random = np.random.default_rng(1)
    real, fake = random.normal(size=(40, 3)), 0.8 * random.normal(size=(30, 3)) + 0.5
    in_real, in_fake = plain_inside(real, fake, k), plain_inside(fake, real, k)
    expected = (
        in_real.any(axis=0).mean(),
        in_fake.any(axis=0).mean(),
        in_real.sum(axis=0).mean() / k,
        in_real.any(axis=1).mean(),
    )
    assert four(prdc(real, fake, k)) == pytest.approx(expected)


def layouts():
    """Draws in general position, on a grid full of ties, and with rows that are there again."""
    random = np.random.default_rng(2)
    normal = random.normal(size=(90, 6)).astype(np.float32)
    grid = random.integers(0, 3, size=(90, 3)).astype(np.float32)
    again = np.repeat(normal[:30], 3, axis=0)
    again[::7] += 0.5
    return {
        "normal": (normal, 0.8 * random.normal(size=(70, 6)).astype(np.float32)),
        "ties": (grid, random.integers(0, 3, size=(70, 3)).astype(np.float32)),
        "again": (again, again[:70] + np.float32(0.125) * (np.arange(70) % 2)[:, None]),
        "far from the origin": (normal + 512, normal[:70] * 0.5 + 512),
    }


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("name", layouts())
def test_it_equals_the_package_and_plain_distances(name, k):
    real, fake = layouts()[name]
    found = prdc(real, fake, k)
    radii = [np.sort(cdist(rows, rows), axis=1)[:, k] for rows in (real, fake)]
    apart = cdist(real, fake)
    in_real, in_fake = apart < radii[0][:, None], apart < radii[1]
    plain = in_real.any(axis=0), in_fake.any(axis=1), in_real.sum(axis=0) / k, in_real.any(axis=1)
    assert four(found) == pytest.approx([part.mean() for part in plain], rel=1e-12)
    assert found.exact
    # The package takes the k + 2-th smallest of its argpartition's k + 1: the same radius. Float64,
    # for on float32 it works in blocks that round, and sees ties on either side by chance.
    peer = compute_prdc(real.astype(np.float64), fake.astype(np.float64), k)
    assert four(found) == pytest.approx(
        [peer[key] for key in ("precision", "recall", "density", "coverage")], abs=1e-12
    )


def test_a_collapsed_generator_has_high_precision_and_low_recall_and_coverage():
    random = np.random.default_rng(3)
    real = random.normal(size=(200, 4))
    found = prdc(real, 0.01 * random.normal(size=(200, 4)))
    assert found.precision == 1
    assert found.recall < 0.05
    assert found.coverage < 0.1


def test_a_generator_that_keeps_to_the_middle_has_density_above_one_and_low_recall():
    random = np.random.default_rng(9)
    real = random.normal(size=(200, 4))
    fair, narrow = (prdc(real, width * random.normal(size=(200, 4))) for width in (1.0, 0.5))
    assert narrow.density > 1.2
    assert narrow.precision > fair.precision
    assert narrow.recall < fair.recall - 0.3
    assert narrow.coverage < fair.coverage - 0.1


def test_noise_around_the_real_rows_has_low_precision_and_keeps_recall():
    random = np.random.default_rng(4)
    real = random.normal(size=(200, 4))
    found = prdc(real, 10 * random.normal(size=(200, 4)))
    assert found.precision < 0.1
    assert found.density < 0.1
    assert found.recall > 0.8
    assert found.coverage < 0.2


def test_rows_from_elsewhere_have_noughts_throughout():
    random = np.random.default_rng(5)
    real = random.normal(size=(50, 4))
    assert four(prdc(real, random.normal(size=(50, 4)) + 100)) == (0, 0, 0, 0)


def test_one_distribution_has_the_expected_coverage_and_density():
    random = np.random.default_rng(6)
    n, m, k = 60, 40, 3
    found = [prdc(random.normal(size=(n, 4)), random.normal(size=(m, 4)), k) for _ in range(100)]
    # A ball is empty where the k nearest of all the other rows are all real.
    empty = math.prod((n - 1 - j) / (m + n - 1 - j) for j in range(k))
    assert np.mean([one.coverage for one in found]) == pytest.approx(1 - empty, abs=0.02)
    assert np.mean([one.density for one in found]) == pytest.approx(1, abs=0.05)


def test_blocks_change_nothing_even_where_rows_tie(monkeypatch):
    random = np.random.default_rng(7)
    real = random.integers(0, 4, size=(50, 3)) / 3
    fake = np.concatenate([real[:20], random.integers(0, 4, size=(13, 3)) / 3])
    whole = prdc(real, fake, 3), prdc(real + 0.1, real + 0.1, 3)
    monkeypatch.setattr(tiles, "BLOCK_ROWS", 7)
    assert (prdc(real, fake, 3), prdc(real + 0.1, real + 0.1, 3)) == whole


def test_bad_input_is_refused():
    rows = np.random.default_rng(8).normal(size=(6, 2))
    with pytest.raises(StageError, match="prdc: 5 real rows; it needs at least 6"):
        prdc(rows[:5], rows)
    with pytest.raises(StageError, match="prdc: 3 fake rows; it needs at least 4"):
        prdc(rows, rows[:3], k=3)
    with pytest.raises(StageError, match="prdc: k is 0; it needs at least 1"):
        prdc(rows, rows, k=0)
    with pytest.raises(StageError, match="prdc: real rows have 2 features and fake rows 1;"):
        prdc(rows, rows[:, :1])
    with pytest.raises(StageError, match="prdc: real features hold values that are not finite"):
        prdc(np.full((6, 2), np.nan), rows)
    assert prdc(rows, rows).k == 5  # six rows are enough


def test_rows_are_covered_by_samples_of_their_own_class_alone():
    real, labels = column(0, 1, 2, 0, 1, 2), np.array([0, 0, 0, 1, 1, 1])
    fake = column(0.5, 2.5)
    # k = 1: every radius is 1.
    found = class_covered(real, labels, fake, np.array([0, 1]), 1)
    assert found.tolist() == [1, 1, 0, 0, 0, 1]
    # More neighbours than a class has: all that there are.
    assert class_covered(real, labels, fake, np.array([0, 1]), 9).tolist() == [1, 1, 1, 0, 0, 1]


def test_with_one_class_it_is_the_coverage():
    random = np.random.default_rng(0)
    real, fake = random.normal(size=(60, 3)), random.normal(0.5, 1, size=(40, 3))
    one = np.zeros(60, dtype=np.int64), np.zeros(40, dtype=np.int64)
    for k in (1, 5):
        assert class_covered(real, one[0], fake, one[1], k).mean() == prdc(real, fake, k).coverage


def test_classes_that_cannot_tell_are_left_out():
    found = class_covered(
        column(0, 1, 5, 7, 8), np.array([0, 0, 1, 2, 2]), column(0.1, 5), np.array([0, 1]), 1
    )
    assert found[:2].tolist() == [1, 1]
    assert np.isnan(found[2:]).all()


def test_no_neighbour_is_refused():
    with pytest.raises(StageError, match="class_covered: k is 0"):
        class_covered(column(0, 1), np.zeros(2, int), column(0), np.zeros(1, int), 0)


@pytest.mark.parametrize(("n", "m", "k"), [(40, 55, 1), (70, 30, 5), (12, 13, 5)])
def test_the_intervals_are_those_of_the_jackknife_that_works_all_out_anew(n, m, k):
    random = np.random.default_rng(12)
    real, fake = random.normal(size=(n, 4)), random.normal(size=(m, 4)) + 0.3
    fake[:5] = real[:5]
    found = prdc_estimates(real, fake, k)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    for name, one in found.items():
        highest = np.inf if name == "density" else 1.0

        def value(x, y, name=name):
            return getattr(prdc(x, y, k), name)

        plain = jackknife(value, real, fake, 0.0, highest)
        low, high = plain.low, plain.high
        if name != "density":  # a share reaches at least as far as that of independent rows
            share = module._wilson(one.value, m if name == "precision" else n)
            low, high = min(low, share[0]), max(high, share[1])
        assert (one.value, one.low, one.high) == pytest.approx((plain.value, low, high))
        assert (one.n_real, one.n_fake) == (n, m)


def test_the_intervals_hold_the_mean_of_repeated_draws():
    random = np.random.default_rng(13)
    found = [
        prdc_estimates(random.normal(size=(60, 6)), 0.3 + random.normal(size=(80, 6)))
        for _ in range(60)
    ]
    for name in found[0]:
        mean = np.mean([one[name].value for one in found])
        assert np.mean([one[name].low <= mean <= one[name].high for one in found]) >= 0.9
        # Not because they hold everything.
        widths = [one[name].high - one[name].low for one in found]
        assert np.mean(widths) < 8 * np.std([one[name].value for one in found])


def test_an_interval_needs_rows_to_leave_out():
    rows = np.random.default_rng(14).normal(size=(12, 2))
    with pytest.raises(TooFewRows, match="prdc_estimates: 11 fake rows; it needs at least 12"):
        prdc_estimates(rows, rows[:11])
    with pytest.raises(StageError, match="prdc_estimates: k is 0"):
        prdc_estimates(rows, rows, k=0)
    assert prdc_estimates(rows, rows)["recall"].value == 1


def test_a_radius_without_a_group_is_that_of_the_rows_left():
    rows = np.random.default_rng(15).normal(size=(45, 3))
    groups = module.jackknife_groups(45)
    radii = module._radii_without(neighbours.nearest_others(rows, 13), 5, groups)
    for one in range(20):
        left = groups != one
        plain = np.sort(cdist(rows[left], rows[left]), axis=1)[:, 5]
        assert radii[left, one + 1] == pytest.approx(plain)
    assert radii[:, 0] == pytest.approx(np.sort(cdist(rows, rows), axis=1)[:, 5])


def test_constant_rows_have_empty_balls():
    constant, other = np.ones((12, 3)), np.random.default_rng(16).normal(size=(12, 3))
    assert four(prdc(constant, constant)) == (0, 0, 0, 0)
    assert prdc(constant, other).precision == 0
    assert prdc_estimates(constant, constant)["density"].value == 0


def test_radii_of_an_index_are_told(monkeypatch):
    random = np.random.default_rng(17)
    real, fake = (random.normal(size=(60, 4)).astype(np.float32) for _ in range(2))
    exact = prdc(real, fake)
    monkeypatch.setattr(neighbours, "EXACT_PAIRS", 1000)
    monkeypatch.setattr(neighbours, "_INDEX_PROBES", 1)
    found = prdc(real, fake)
    assert (exact.exact, found.exact) == (True, False)
    # Missed neighbours make the balls larger.
    assert found.recall >= exact.recall
    assert found.density >= exact.density


def test_a_share_of_one_has_the_interval_of_wilson():
    # Known values: 10 of 10, and 8 of 20.
    assert module._wilson(1.0, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert module._wilson(0.4, 20) == pytest.approx((0.2188, 0.6134), abs=1e-4)
    assert module._wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    random = np.random.default_rng(18)
    found = prdc_estimates(random.normal(size=(40, 2)), 0.1 * random.normal(size=(30, 2)))
    assert found["precision"].value == found["precision"].high == 1
    assert found["precision"].low <= 0.8865
