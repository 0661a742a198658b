import numpy as np
import pytest

from pipeline.downstream.arms import Arm, plan_arms
from pipeline.downstream.compare import Gain, Interval
from pipeline.downstream.scores import score
from pipeline.downstream.verdict import (
    ArmScores,
    best_arm,
    decide,
    make_sentence,
    make_verdict,
    tail_classes,
)

LABELS = np.repeat([0, 1, 2, 3], 10)
ARMS = {arm.name: arm for arm in plan_arms(("real", "real_balanced", "mixed"), (0.25, 0.5))}


def predictions(wrong: int) -> np.ndarray:
    """Wrong on the first `wrong` images of each class."""
    return np.where(np.arange(40) % 10 < wrong, (LABELS + 1) % 4, LABELS)


def scored(arm: Arm, validation_wrong: int, test_wrong: int) -> ArmScores:
    return ArmScores(
        arm,
        (score(LABELS, predictions(validation_wrong), 4),) * 2,
        (score(LABELS, predictions(test_wrong), 4),) * 2,
    )


def gain_of(low: float, value: float, high: float) -> Gain:
    classes = tuple(Interval(v, v - 0.01, v + 0.01) for v in (0.0, 0.1, 0.2, 0.3))
    return Gain(Interval(value, low, high), classes, 2, 40, 500, 0.95)


def test_arms_are_chosen_by_validation_and_never_by_test() -> None:
    arms = [
        scored(ARMS["real"], 4, 0),
        scored(ARMS["real_balanced"], 3, 5),
        scored(ARMS["mixed_25"], 2, 6),
        scored(ARMS["mixed_50"], 3, 0),
    ]
    assert best_arm(arms, "baseline").arm.name == "real_balanced"
    assert best_arm(arms, "mixed").arm.name == "mixed_25"


def test_a_tie_goes_to_the_earlier_arm() -> None:
    arms = [scored(ARMS["real"], 2, 5), scored(ARMS["real_balanced"], 2, 0)]
    assert best_arm(arms, "baseline").arm.name == "real"


@pytest.mark.parametrize(
    ("low", "decision"), [(0.001, "use"), (0.0, "do_not_use"), (-0.001, "do_not_use")]
)
def test_use_only_where_the_whole_interval_lies_above_zero(low: float, decision: str) -> None:
    assert (
        decide(gain_of(low, 0.01, 0.02), synthetic_available=True, test_images=(5, 9)) == decision
    )


def test_nothing_accepted_is_never_used() -> None:
    assert decide(gain_of(0.1, 0.2, 0.3), False, (5, 9)) == "do_not_use"
    sentence = make_sentence(
        "do_not_use", ARMS["real"], ARMS["mixed_50"], gain_of(0, 0, 0), available=False
    )
    assert sentence == (
        "Do not use synthetic images: none was accepted, so there is nothing to add to the best "
        "baseline, real."
    )


@pytest.mark.parametrize(
    ("counts", "tail"),
    [
        ((5, 3, 9, 1), (3, 1, 0)),
        ((2, 2, 2, 2, 2), (0, 1, 2)),
        ((4, 6, 5), (0, 2)),
        ((7, 3), (1,)),
        ((7,), (0,)),
    ],
)
def test_the_tail_is_the_smallest_classes(counts, tail) -> None:
    assert tail_classes(counts) == tail


def test_sentences() -> None:
    gain = gain_of(-0.004, 0.003, 0.01)
    assert make_sentence("do_not_use", ARMS["real"], ARMS["mixed_50"], gain, True) == (
        "Do not use the synthetic images: the best mix (mixed_50) changed balanced accuracy by "
        "+0.30 points (95 % interval -0.40 to +1.00) against the best baseline, real."
    )
    assert make_sentence(
        "use", ARMS["real"], ARMS["mixed_25"], gain_of(0.01, 0.02, 0.03), True
    ) == (
        "Use the synthetic images: the best mix (mixed_25) raised balanced accuracy by +2.00 "
        "points (95 % interval +1.00 to +3.00) over the best baseline, real."
    )


def test_the_verdict_holds_what_the_contract_names() -> None:
    arms = [scored(ARMS["real"], 4, 4), scored(ARMS["mixed_50"], 2, 3)]
    counts = {
        "training": [9, 1, 4, 2],
        "validation": [10] * 4,
        "test": [10] * 4,
        "synthetic": [0, 8, 5, 7],
    }
    verdict = make_verdict(
        arms, arms[0], arms[1], gain_of(0.05, 0.15, 0.2), ["a", "b", "c", "d"], counts, 500
    )
    assert verdict["decision"] == "use"
    assert verdict["winning_share"] == 0.5
    assert verdict["gain_points"] == pytest.approx(15)
    assert verdict["interval_points"] == pytest.approx([5, 20])
    assert verdict["tail_classes"] == ["b", "d", "c"]
    assert verdict["tail_gain_points"] == pytest.approx((10 + 30 + 20) / 3)
    assert verdict["n"] == {
        "training": 16,
        "validation": 40,
        "test": 40,
        "synthetic": 20,
        "seeds": 2,
        "bootstrap_resamples": 500,
    }
    assert verdict["seeds"] == [0, 1]
    row = verdict["per_class"][1]
    assert row == {
        "name": "b",
        "training_images": 1,
        "test_images": 10,
        "baseline_recall": pytest.approx(0.6),
        "mixed_recall": pytest.approx(0.7),
        "gain_points": pytest.approx(10),
        "low_points": pytest.approx(9),
        "high_points": pytest.approx(11),
    }
    real = verdict["arms"][0]
    assert (real["name"], real["role"], real["share"]) == ("real", "baseline", None)
    assert real["test_balanced_accuracy"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0)}
    assert real["tail_recall"]["mean"] == pytest.approx(0.6)


def test_too_few_test_images_of_a_class_never_say_use():
    gain = gain_of(0.1, 0.2, 0.3)
    assert decide(gain, True, (5, 400)) == "use"
    assert decide(gain, True, (4, 400)) == "do_not_use"
    sentence = make_sentence(
        "do_not_use", ARMS["real"], ARMS["mixed_50"], gain, True, ["a", "b", "c", "d"]
    )
    assert "too few test images to tell, fewer than 5 of class a, b, c and 1 more" in sentence


def test_a_low_end_that_misses_zero_by_the_last_bit_is_zero():
    assert decide(gain_of(2.3e-18, 0.01, 0.02), True, (9, 9)) == "do_not_use"
