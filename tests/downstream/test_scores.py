import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_score, roc_auc_score

from pipeline.downstream.scores import (
    auroc,
    calibration_error,
    require_every_class,
    score,
    worst_group_recall,
)
from pipeline.errors import InputError


def test_scores_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    scores = score(labels, predicted, 2)
    np.testing.assert_allclose(scores.recall, [0.75, 0.5])
    np.testing.assert_allclose(scores.precision, [0.75, 0.5])
    assert scores.balanced_accuracy == pytest.approx(0.625)
    # Class 0: precision 3/4, recall 3/4. Class 1: precision 1/2, recall 1/2.
    assert scores.macro_f1 == pytest.approx((0.75 + 0.5) / 2)
    assert scores.n == 6


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 5, 200), random.integers(0, 5, 200)
    scores = score(labels, predicted, 5)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    np.testing.assert_allclose(scores.precision, precision_score(labels, predicted, average=None))


def test_an_absent_class_has_no_recall_and_does_not_count() -> None:
    scores = score(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(scores.recall, [0.5, np.nan, 1.0])
    np.testing.assert_array_equal(scores.precision, [1.0, np.nan, 1.0])
    assert scores.balanced_accuracy == pytest.approx(0.75)


def test_a_class_never_predicted_has_precision_zero() -> None:
    np.testing.assert_array_equal(score(np.array([0, 1]), np.array([0, 0]), 2).precision, [0.5, 0])


def test_an_empty_split_is_refused() -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(InputError, match="no rows to score"):
        score(none, none, 3)
    with pytest.raises(InputError, match="no rows to score"):
        calibration_error(none, np.zeros((0, 3)))


def test_an_absent_class_is_named() -> None:
    require_every_class(np.array([1, 0]), ("cat", "dog"), "test")
    with pytest.raises(InputError, match=r"test split has no image of dog, owl; .*test_fraction"):
        require_every_class(np.array([0, 0]), ("cat", "dog", "owl"), "test")


def test_the_area_by_hand_and_as_scikit_learn_has_it() -> None:
    # Of the four pairs of a row of class 1 and one of class 0, three are in order.
    second = np.array([0.1, 0.6, 0.5, 0.9])
    labels = np.array([0, 0, 1, 1])
    assert auroc(labels, np.stack([1 - second, second], axis=1)) == pytest.approx(0.75)
    random = np.random.default_rng(1)
    labels, chances = random.integers(0, 4, 300), random.dirichlet(np.ones(4), 300)
    expected = roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert auroc(labels, chances) == pytest.approx(expected)


def test_the_area_is_unknown_without_a_class() -> None:
    chances = np.full((4, 3), 1 / 3)
    assert auroc(np.array([0, 1, 0, 1]), chances) is None
    assert auroc(np.zeros(4, dtype=np.int64), np.ones((4, 1))) is None
    assert auroc(np.array([0, 1, 2, 1]), chances) == pytest.approx(0.5)


def test_calibration_by_hand() -> None:
    # Two bins of 15: 0.9 (one of two right) and 0.6 (both right).
    top = np.array([0.9, 0.9, 0.6, 0.6])
    chances = np.stack([top, 1 - top], axis=1)
    error = calibration_error(np.array([0, 1, 0, 0]), chances)
    assert error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    sure = np.eye(3)[[0, 1, 2]]
    assert calibration_error(np.array([0, 1, 2]), sure) == 0.0
    assert calibration_error(np.array([1, 2, 0]), sure) == 1.0


def test_drawing_labels_from_the_probabilities_is_calibrated() -> None:
    random = np.random.default_rng(2)
    chances = random.dirichlet(np.ones(3), 20_000)
    labels = (random.uniform(size=(20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert calibration_error(labels, chances) < 0.02
    sharper = chances**3 / (chances**3).sum(axis=1, keepdims=True)
    assert calibration_error(labels, sharper) > 0.1


def test_the_worst_group_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1])
    predicted = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 1])
    groups = ["a"] * 5 + ["b"] * 5
    # Group a: recalls 1 and 1/2. Group b: recalls 3/4 and 1.
    assert worst_group_recall(labels, predicted, groups) == pytest.approx(0.75)
    # A small group does not count, however bad; and one group alone has none beside it.
    assert worst_group_recall(
        np.append(labels, 1), np.append(predicted, 0), [*groups, "c"]
    ) == pytest.approx(0.75)
    assert worst_group_recall(labels, predicted, ["a"] * 10) is None
    assert worst_group_recall(labels, predicted, [str(i) for i in range(10)]) is None
    assert worst_group_recall(labels, predicted, groups, least=6) is None
