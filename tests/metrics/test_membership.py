import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from pipeline.errors import StageError
from pipeline.metrics.estimate import TooFewRows
from pipeline.metrics.membership import membership_auc, tpr_at_fpr


def test_pairs_are_counted_and_ties_halved():
    members, others = np.array([1.0, 2, 3, 4, 5]), np.array([0.0, 2, 3.5, 6, 7])
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    found = membership_auc(members, others)
    assert found.value == pytest.approx(np.mean(pairs))
    assert (found.n_real, found.n_fake) == (5, 5)


def test_it_agrees_with_scikit_learn_and_scipy():
    random = np.random.default_rng(0)
    members = np.round(random.normal(size=40) - 0.5, 1)  # rounded: there are ties
    others = np.round(random.normal(size=30), 1)
    labels = np.repeat([0, 1], (40, 30))
    value = membership_auc(members, others).value
    assert value == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    assert value == pytest.approx(mannwhitneyu(others, members).statistic / 1200)


def test_the_ends_of_the_range_have_intervals_with_a_width():
    low, high = np.arange(10.0), np.arange(10.0) + 100
    found = membership_auc(low, high)
    assert (found.value, found.high) == (1, 1)
    assert 0.6 < found.low < 0.9
    mirrored = membership_auc(high, low)
    assert (mirrored.value, mirrored.low) == (0, 0)
    assert mirrored.high == pytest.approx(1 - found.low)
    assert membership_auc(np.tile(low, 10), np.tile(high, 10)).low > found.low


def test_losses_that_say_nothing_are_a_half():
    same = np.ones(20)
    found = membership_auc(same, same)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize(("n", "m", "gap"), [(10, 10, 0), (30, 30, 1), (20, 100, 2), (8, 8, 3)])
def test_the_interval_covers_the_true_area(n, m, gap):
    random = np.random.default_rng(1)
    truth = norm.cdf(gap / np.sqrt(2))
    found = [membership_auc(random.normal(size=n) - gap, random.normal(size=m)) for _ in range(400)]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.91


def test_the_rate_at_a_low_false_positive_rate():
    others = np.arange(1000.0)
    members = np.repeat([5.0, 9.5, 10.0, 500.0], 10)
    # 10 of 1,000 non-members lie below 10: `<`, so a member at 10 is not found.
    assert tpr_at_fpr(members, others).value == 0.5
    assert tpr_at_fpr(others, others).value == pytest.approx(0.01)


def test_a_few_rows_known_by_heart_show_where_the_area_does_not():
    random = np.random.default_rng(2)
    members, others = random.normal(size=(2, 2000))
    members[:100] -= 20
    assert membership_auc(members, others).value < 0.55
    found = tpr_at_fpr(members, others)
    assert found.value == pytest.approx(0.06, abs=0.02)
    assert found.low > 0.01


def test_the_interval_of_the_rate_covers_it():
    random = np.random.default_rng(3)
    truth = norm.cdf(norm.ppf(0.01) + 1)
    found = [tpr_at_fpr(random.normal(size=300) - 1, random.normal(size=1000)) for _ in range(100)]
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.83


def test_bad_losses_are_refused():
    good = np.arange(30.0)
    with pytest.raises(TooFewRows, match="membership_auc: 4 member losses; it needs at least 5"):
        membership_auc(good[:4], good)
    with pytest.raises(TooFewRows, match="0 non-member losses; it needs at least 5"):
        membership_auc(good, good[:0])
    with pytest.raises(TooFewRows, match="tpr_at_fpr: 30 non-member losses; .* at least 1,000"):
        tpr_at_fpr(good, good)
    with pytest.raises(TooFewRows, match="tpr_at_fpr: 19 member losses; it needs at least 20"):
        tpr_at_fpr(good[:19], np.arange(1000.0))
    with pytest.raises(StageError, match="fpr is 1; it lies between 0 and 1"):
        tpr_at_fpr(good, good, fpr=1)
    with pytest.raises(StageError, match="member losses hold values that are not finite"):
        membership_auc(np.where(good == 3, np.nan, good), good)
    with pytest.raises(StageError, match=r"non-member losses have the shape \(30, 1\), not \(N,\)"):
        membership_auc(good, good[:, None])
