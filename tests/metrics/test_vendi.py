import numpy as np
import pytest
from vendi_score import vendi as peer

from pipeline.errors import StageError
from pipeline.metrics import vendi as module
from pipeline.metrics.estimate import TooFewRows, jackknife
from pipeline.metrics.vendi import class_vendi, vendi_score


def test_rows_that_point_one_way_are_worth_one_and_orthogonal_ones_all():
    for order in (0.5, 1, 2, np.inf):
        same = vendi_score(np.arange(1, 7)[:, None] * np.array([1.0, -2.0, 0.5]), order)
        assert same.value == pytest.approx(1)
        apart = vendi_score(5 * np.eye(6, 9), order)
        assert apart.value == pytest.approx(6)
        assert (apart.n_real, apart.n_fake) == (0, 6)


def test_two_rows_in_closed_form():
    # Eigenvalues of [[1, c], [c, 1]] / 2 are (1 + c) / 2 and (1 - c) / 2, here 0.9 and 0.1.
    rows = np.array([[1.0, 0.0], [0.8, 0.6]])
    assert vendi_score(rows, 1).value == pytest.approx(0.9**-0.9 * 0.1**-0.1)
    assert vendi_score(rows, 2).value == pytest.approx(1 / 0.82)
    assert vendi_score(rows, np.inf).value == pytest.approx(1 / 0.9)


# The package looks a name up that SciPy moved.
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("order", [0.5, 1, 2, 30, np.inf])
@pytest.mark.parametrize(("rows", "width"), [(60, 8), (20, 40), (20, 20)])
def test_it_equals_the_package_both_ways(rows, width, order):
    features = np.random.default_rng(0).normal(size=(rows, width)) + 0.5
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    name = "inf" if np.isinf(order) else order
    # By cosine similarity, as its README has it; `score_X` of version 0.0.3 drops the order.
    plain = peer.score(list(unit), lambda a, b: a @ b, q=name)
    found = vendi_score(features, order).value
    # Of rows > width it has eigenvalues that are 0 but for rounding, which a small order magnifies.
    assert found == pytest.approx(plain, rel=1e-6)
    if rows > width:
        assert found == pytest.approx(peer.score_dual(features, q=name), rel=1e-9)


def clusters(random, kinds, rows, width=12, spread=0.02):
    centres = np.linalg.qr(random.normal(size=(width, width)))[0][:kinds]
    return centres[np.arange(rows) % kinds] + spread * random.normal(size=(rows, width))


@pytest.mark.parametrize("rows", [10, 100])
def test_distinct_clusters_are_worth_about_their_number_and_collapse_lowers_it(rows):
    random = np.random.default_rng(1)
    five = vendi_score(clusters(random, 5, rows))
    assert five.value == pytest.approx(5, rel=0.05)
    one = vendi_score(clusters(random, 1, rows))
    assert one.value == pytest.approx(1, abs=0.1)
    assert one.high < five.low
    # Lengths do not count.
    drawn = clusters(random, 5, rows)
    lengths = random.uniform(1e-3, 1e3, size=(rows, 1))
    assert vendi_score(drawn * lengths).value == pytest.approx(vendi_score(drawn).value)


def test_a_higher_order_counts_the_rare_less():
    random = np.random.default_rng(2)
    rows = np.concatenate([clusters(random, 1, 95), clusters(random, 5, 5)])
    scores = [vendi_score(rows, order).value for order in (0.1, 0.5, 1, 2, 10, np.inf)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 2 * scores[-1]


def test_an_order_near_one_is_near_shannons():
    rows = np.random.default_rng(3).normal(size=(30, 6))
    assert vendi_score(rows, 1 + 1e-6).value == pytest.approx(vendi_score(rows).value, rel=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(53, 6), (17, 30), (2, 1), (2, 5)])
def test_the_interval_is_that_of_the_jackknife_that_works_all_out_anew(rows, width, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ROWS", 16)
    features = np.random.default_rng(4).normal(size=(rows, width))
    nothing = np.zeros((1, width))

    def plain(_, x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        shares = np.linalg.eigvalsh(unit @ unit.T / len(x))
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))

    expected = jackknife(plain, nothing, features, 1, min(rows, width))
    found = vendi_score(features)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )


@pytest.mark.parametrize("width", [8, 60])
def test_the_interval_holds_the_mean_of_repeated_draws(width):
    random = np.random.default_rng(5)
    centres = 3 * random.normal(size=(6, width))
    found = [
        vendi_score(centres[random.integers(0, 6, 40)] + random.normal(size=(40, width)))
        for _ in range(80)
    ]
    values = [one.value for one in found]
    assert np.mean([one.low <= np.mean(values) <= one.high for one in found]) >= 0.88
    assert np.mean([one.high - one.low for one in found]) < 8 * np.std(values)


def test_each_class_has_a_score_of_its_own():
    random = np.random.default_rng(6)
    rows = np.concatenate([clusters(random, 4, 20), clusters(random, 1, 20), np.ones((1, 12))])
    found = class_vendi(rows, np.repeat([7, 3, 5], (20, 20, 1)), order=2)
    assert list(found) == [3, 7]  # one row says nothing
    assert found[7] == vendi_score(rows[:20], 2)
    assert found[7].value > 3 > 1.5 > found[3].value


def test_extreme_lengths_do_not_overflow():
    rows = np.random.default_rng(7).normal(size=(9, 4))
    assert vendi_score(rows * 1e300).value == pytest.approx(vendi_score(rows).value)
    assert vendi_score(rows * 1e-300).value == pytest.approx(vendi_score(rows).value)


def test_bad_input_is_refused():
    rows = np.random.default_rng(8).normal(size=(6, 3))
    with pytest.raises(TooFewRows, match="vendi_score: 1 fake rows; it needs at least 2"):
        vendi_score(rows[:1])
    with pytest.raises(StageError, match="vendi_score: order is 0; it needs to be above 0"):
        vendi_score(rows, 0)
    with pytest.raises(StageError, match="vendi_score: order is nan"):
        vendi_score(rows, np.nan)
    with pytest.raises(StageError, match="vendi_score: fake features hold values"):
        vendi_score(np.where(rows == rows[0, 0], np.inf, rows))
    with pytest.raises(StageError, match="vendi_score: row 4 is all zeros and has no direction"):
        vendi_score(np.where(np.arange(6)[:, None] == 4, 0, rows))
    with pytest.raises(StageError, match="class_vendi: class 1: row 2 is all zeros"):
        class_vendi(np.where(np.arange(6)[:, None] == 4, 0, rows), np.array([0, 0, 1, 1, 1, 1]))
    with pytest.raises(StageError, match="class_vendi: no class has 2 rows"):
        class_vendi(rows, np.arange(6))
    with pytest.raises(StageError, match="class_vendi: 6 rows and 5 labels"):
        class_vendi(rows, np.arange(5))
