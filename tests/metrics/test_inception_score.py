import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from pipeline.errors import StageError
from pipeline.metrics.estimate import TooFewRows
from pipeline.metrics.inception_score import inception_score


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(seed, count=60, classes=5, sharpness=2.0):
    return softmax(sharpness * np.random.default_rng(seed).normal(size=(count, classes)))


def test_sure_rows_evenly_over_the_classes_reach_their_number():
    found = inception_score(np.tile(np.eye(4), (5, 1)))
    assert found.value == pytest.approx(4)
    assert (found.n_real, found.n_fake) == (0, 20)


def test_rows_that_are_all_alike_score_one():
    assert inception_score(np.full((8, 4), 0.25)).value == pytest.approx(1)
    # A collapse onto one class is sure, and yet worth nothing.
    assert inception_score(np.tile(np.eye(4)[0], (8, 1))).value == pytest.approx(1)


def test_two_classes_in_closed_form():
    # Shares 3/4 and 1/4 of sure rows: the exponential of the entropy of the shares.
    rows = np.eye(2)[[0, 0, 0, 1] * 3]
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert inception_score(rows).value == pytest.approx(np.exp(entropy))


def test_it_is_the_arithmetic_of_torch_fidelity_with_one_split():
    logits = 3 * np.random.default_rng(0).normal(size=(120, 7))
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=1)
    ours = inception_score(softmax(logits))
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)


def test_the_error_is_that_of_leaving_out_each_row():
    p = draw(1, count=9, classes=3)
    without = np.array([inception_score(np.delete(p, i, axis=0)).value for i in range(9)])
    error = np.sqrt(8 / 9 * ((without - without.mean()) ** 2).sum())
    found = inception_score(p)
    assert found.high - found.value == pytest.approx(1.959964 * error)


def test_the_error_is_the_spread_of_repeated_draws():
    found = [inception_score(draw(seed)) for seed in range(200)]
    errors = np.array([(one.high - one.value) / 1.959964 for one in found])
    spread = np.std([one.value for one in found])
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.15)


def test_few_rows_score_too_low_by_the_stated_share():
    sure = [np.eye(5)[np.random.default_rng(s).integers(5, size=25)] for s in range(200)]
    mean = np.mean([inception_score(rows).value for rows in sure])
    assert mean == pytest.approx(5 * (1 - 4 / 50), rel=0.02)  # (K - 1) / (2 N)


def test_the_interval_stays_in_the_range():
    found = inception_score(np.eye(4)[[0, 1, 2, 3, 0]])
    assert 1 <= found.low < found.value < found.high <= 4


def test_single_precision_is_worked_in_double():
    p = draw(2).astype(np.float32)
    assert inception_score(p) == inception_score(p.astype(np.float64))


def test_what_is_no_probability_is_refused():
    good = draw(3, count=6, classes=3)
    with pytest.raises(TooFewRows, match="inception_score: 2 fake rows; it needs at least 3"):
        inception_score(good[:2])
    with pytest.raises(StageError, match="row 1 of the probabilities does not sum to 1"):
        inception_score(good * np.array([1, 2, 1, 1, 1, 1])[:, None])
    negative = good.copy()
    negative[4] = [1.5, -0.5, 0]
    with pytest.raises(StageError, match="row 4 of the probabilities is below 0; give a class"):
        inception_score(negative)
    with pytest.raises(StageError, match="at least 2 classes"):
        inception_score(np.ones((5, 1)))
    with pytest.raises(StageError, match=r"has the shape \(6,\), not \(N, D\)"):
        inception_score(good[:, 0])
    with pytest.raises(StageError, match="not finite"):
        inception_score(np.where(good == good[0, 0], np.nan, good))
