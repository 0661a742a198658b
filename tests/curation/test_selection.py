import numpy as np
import pytest
from support import make_scores

from pipeline.curation.selection import REASONS, Thresholds, find_reasons, fit_thresholds

LIMITS = Thresholds(confidence=0.5, copy_distance=0.05, copy_ratio=1 / 3)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("confidence", 0.9, "accepted"),
        ("confidence", 0.49, "unsure"),
        ("predicted", 0, "disagrees"),
        ("pixel_ratio", 0.33, "copy_ratio"),
        ("pixel_distance", 0.04, "copy_distance"),
        ("parent_distance", 0.04, "copy_parent"),
        ("parent_distance", 0.06, "accepted"),
    ],
)
def test_each_rule_has_its_reason(column, value, reason):
    scores = make_scores(**{column: [value]})
    assert find_reasons(["a"], np.array([1]), scores, LIMITS, set()) == [reason]
    assert reason in REASONS


def test_the_same_pixels_again_are_a_repeat():
    scores = make_scores(confidence=[0.9, 0.9, 0.9])
    seen = {"real"}
    reasons = find_reasons(["a", "a", "real"], np.array([1, 1, 1]), scores, LIMITS, seen)
    assert reasons == ["accepted", "repeat", "repeat"]
    assert seen == {"real", "a"}


def test_a_copy_is_called_a_copy_even_where_the_judge_disagrees():
    scores = make_scores(predicted=[0], pixel_ratio=[0.0])
    assert find_reasons(["a"], np.array([1]), scores, LIMITS, set()) == ["copy_ratio"]


def test_thresholds_are_quantiles_of_the_validation_rows():
    validation = make_scores(
        confidence=np.linspace(0.01, 1.0, 100), pixel_distance=np.linspace(0.1, 1.09, 100)
    )
    limits = fit_thresholds(validation, 0.05, 0.0, 0.25)
    assert limits.confidence == pytest.approx(0.05)
    assert limits.copy_distance == pytest.approx(0.1)
    assert limits.copy_ratio == 0.25
