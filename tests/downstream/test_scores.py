import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from pipeline.downstream.scores import require_every_class, score
from pipeline.errors import InputError


def test_scores_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    scores = score(labels, predicted, 2)
    np.testing.assert_allclose(scores.recall, [0.75, 0.5])
    assert scores.balanced_accuracy == pytest.approx(0.625)
    # Class 0: precision 3/4, recall 3/4. Class 1: precision 1/2, recall 1/2.
    assert scores.macro_f1 == pytest.approx((0.75 + 0.5) / 2)
    assert scores.n == 6


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 5, 200), random.integers(0, 5, 200)
    assert score(labels, predicted, 5).balanced_accuracy == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )


def test_an_absent_class_has_no_recall_and_does_not_count() -> None:
    scores = score(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(scores.recall, [0.5, np.nan, 1.0])
    assert scores.balanced_accuracy == pytest.approx(0.75)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="no rows to score"):
        score(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 3)


def test_an_absent_class_is_named() -> None:
    require_every_class(np.array([1, 0]), ("cat", "dog"), "test")
    with pytest.raises(InputError, match=r"test split has no image of dog, owl; .*test_fraction"):
        require_every_class(np.array([0, 0]), ("cat", "dog", "owl"), "test")
