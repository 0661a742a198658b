from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.data.store import make_samples
from pipeline.downstream.arms import Arm
from pipeline.downstream.compare import ArmGain, Interval
from pipeline.downstream.comparison import Comparison, HeldOut, Look, Tried, best_arm
from pipeline.downstream.fitting import Predictions
from pipeline.downstream.grounds import Grounds, few_tests, regressed
from pipeline.downstream.power import Power
from pipeline.downstream.tail import tail_classes
from pipeline.downstream.verdict import describe_arm, make_verdict, score_arms

LABELS = np.repeat([0, 1, 2, 3], 10)
NAMES = ["a", "b", "c", "d"]
REAL = Arm("real", "baseline", balanced=False)
OTHER = Arm("real_balanced", "baseline")
MIXED = Arm("mixed", "synthetic", 0.5, "light", True, "synthetic")
SEEDS = 4


def predictions(wrong: int) -> np.ndarray:
    """Wrong on the first `wrong` images of each class."""
    return np.where(np.arange(40) % 10 < wrong, (LABELS + 1) % 4, LABELS)


def result(validation_wrong: int, test_wrong: int, known: bool = True) -> Predictions:
    test = predictions(test_wrong)
    chances = np.eye(4, dtype=np.float16)[test] if known else np.full((40, 4), np.nan, np.float16)
    corrupted = np.stack([predictions(test_wrong + more) for more in (1, 2, 1, 2)])
    return Predictions(predictions(validation_wrong), test, chances, chances, corrupted)


def held_out() -> HeldOut:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    groups = [f"site {i % 5}" for i in range(40)]
    test = make_samples(images, LABELS, "test", "real", groups)
    return HeldOut(LABELS, test, 4, (1, 3, 2), (9, 1, 4, 2))


def gain_of(low, value, high, classes=(0.0, 0.1, 0.2, 0.3), spread=0.05) -> ArmGain:
    each = tuple(Interval(v, v - 0.01, v + 0.01) for v in classes)
    wide = tuple(Interval(v, v - 0.05, v + spread) for v in classes)
    overall = Interval(value, low, high)
    simultaneous = Interval(value, low - 0.1, high + 0.1)
    return ArmGain(overall, simultaneous, Interval(0.2, 0.1, 0.3), each, wide, 0.01, np.zeros(3))


def comparison(
    results: dict, gain: ArmGain, own: ArmGain | None = None, best: Arm = MIXED
) -> Comparison:
    baseline = REAL
    every = {
        pair: found
        for arm, found in results.items()
        for pair in [(arm, seed) for seed in range(SEEDS)]
    }
    gains = {arm.name: gain for arm in results if arm != baseline}
    look = Look(SEEDS, 0.97, baseline, best, gains, own, True)
    tried = tuple(Tried(arm, 0.5, True) for arm in results)
    power = Power(1.5, 0.8, 0.1, SEEDS, 40, 20)
    return Comparison(tuple(results), tried, every, (look,), power, None)


def test_arms_are_chosen_by_validation_and_never_by_test() -> None:
    results = {(REAL, 0): result(4, 0), (OTHER, 0): result(3, 5), (MIXED, 0): result(2, 6)}
    assert best_arm(results, "baseline", held_out()) == OTHER
    assert best_arm(results, "synthetic", held_out()) == MIXED


def test_a_tie_goes_to_the_earlier_arm() -> None:
    results = {(REAL, 0): result(2, 5), (OTHER, 0): result(2, 0)}
    assert best_arm(results, "baseline", held_out()) == REAL


def grounds(gain: Interval, **changed: Any) -> Grounds:
    sound = Grounds(
        baseline="real",
        synthetic="mixed",
        gain=gain,
        level=0.95,
        twin="real_augmented",
        own=Interval(0.1, 0.05, 0.2),
        others=None,
        rival=None,
        available=True,
        few_tests=(),
        losers=(),
        margin_points=2.0,
        seeds=4,
    )
    return replace(sound, **changed)


@pytest.mark.parametrize(
    ("low", "losers", "decision"),
    [
        (0.001, (), "use"),
        (0.001, ("coat",), "use_with_care"),
        (0.0, (), "do_not_use"),
        (2.3e-18, (), "do_not_use"),  # misses zero by the last bit
        (-0.001, ("coat",), "do_not_use"),
    ],
)
def test_use_only_where_the_whole_interval_lies_above_zero(low, losers, decision) -> None:
    clear = Interval(0.1, 0.05, 0.2)
    found = Interval(0.01, low, 0.02)
    assert grounds(found, losers=losers).decision() == decision
    assert grounds(clear, own=found, losers=losers).decision() == decision


def test_nothing_accepted_is_never_used() -> None:
    none = grounds(Interval(0.2, 0.1, 0.3), available=False)
    assert none.decision() == "do_not_use"
    assert none.sentence() == (
        "Do not use synthetic images: none was accepted, so there is nothing to add to the best "
        "baseline, real."
    )
    assert none.reasons() == ["No synthetic image was accepted."]


def test_a_class_regresses_when_it_surely_loses_more_than_the_margin() -> None:
    gain = gain_of(0.1, 0.2, 0.3, (-0.05, -0.05, -0.015, 0.1), spread=0.01)
    assert regressed(gain, margin_points=2.0) == (0, 1)
    assert regressed(gain, margin_points=1.0) == (0, 1, 2)
    unsure = gain_of(0.1, 0.2, 0.3, (-0.05,) * 4)
    assert regressed(unsure, margin_points=0.0) == ()


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
    small = grounds(Interval(0.003, -0.004, 0.01))
    assert small.sentence() == (
        "Do not use the synthetic images: the best way to use them (mixed) changed balanced "
        "accuracy by +0.30 points (95 % interval -0.40 to +1.00) against the best baseline, real."
    )
    clear = Interval(0.02, 0.01, 0.03)
    assert grounds(clear, level=0.975).sentence() == (
        "Use the synthetic images: the best way to use them (mixed) raised balanced accuracy by "
        "+2.00 points (97.5 % interval +1.00 to +3.00) over the best baseline, real."
    )
    care = grounds(clear, losers=("coat",), own=None)
    assert "over the best baseline, real. With care: coat got worse; " in care.sentence()
    assert care.sentence().endswith("got worse; it was not compared with real_augmented.")
    few = grounds(clear, seeds=3, others="base_images").sentence()
    assert few.endswith("With care: it was trained on other images too; 3 seeds are few.")
    thin = grounds(clear, few_tests=tuple(NAMES))
    assert (
        "too few test images to tell, fewer than 5 of class a, b, c and 1 more (" in thin.sentence()
    )
    assert "no gain is shown" not in thin.sentence()
    own = grounds(clear, own=small.gain)
    assert own.sentence().endswith("the same training without them, no gain is shown.")


def test_too_few_test_images_of_a_class_never_say_use() -> None:
    assert few_tests(("a", "b"), (5, 400)) == ()
    assert few_tests(("a", "b"), (4, 400)) == ("a",)
    few = grounds(Interval(0.2, 0.1, 0.3), few_tests=("a",))
    assert few.decision() == "do_not_use"
    assert few.reasons() == ["Too few test images of a (fewer than 5)."]


def test_images_of_one_group_count_once_for_the_five_that_are_needed() -> None:
    verdict = verdict_of(gain_of(0.05, 0.1, 0.15), groups=[f"site {i % 4}" for i in range(40)])
    assert verdict["decision"] == "do_not_use"
    assert verdict["reasons"] == ["Too few test images of a, b, c and 1 more (fewer than 5)."]
    assert (
        "fewer than 5 of class a, b, c and 1 more (those of one group count once)"
        in (verdict["sentence"])
    )


def test_a_baseline_that_did_better_on_test_asks_for_care() -> None:
    verdict = verdict_of(gain_of(0.05, 0.1, 0.15), rival_gain=0.151)
    assert verdict["decision"] == "use_with_care"
    assert verdict["sentence"].endswith("With care: real_balanced did better on test.")
    (reason,) = verdict["reasons"]
    assert reason.startswith("real_balanced did better than mixed on the test images, though not")
    assert verdict_of(gain_of(0.05, 0.1, 0.15), rival_gain=0.15)["decision"] == "use"


def test_few_seeds_ask_for_care() -> None:
    few = grounds(Interval(0.2, 0.1, 0.3), seeds=3)
    assert few.decision() == "use_with_care"
    (reason,) = few.reasons()
    assert reason.startswith("With 3 seeds the interval is not to be trusted; take 4 or more")
    assert grounds(Interval(0.2, 0.1, 0.3), seeds=None).decision() == "use"  # splits in their place


def test_few_splits_ask_for_care() -> None:
    few = grounds(Interval(0.2, 0.1, 0.3), seeds=None, splits=2)
    assert few.decision() == "use_with_care"
    assert few.sentence().endswith("With care: 2 splits are few.")
    (reason,) = few.reasons()
    assert reason == "2 splits tell little of how much splits differ; pool 3 or more."
    assert grounds(Interval(0.2, 0.1, 0.3), seeds=None, splits=3).decision() == "use"


def test_the_verdict_holds_what_the_contract_names() -> None:
    gain = gain_of(0.05, 0.15, 0.2)
    found = comparison({REAL: result(4, 4), MIXED: result(2, 3)}, gain, gain)
    counts = {
        "training": [9, 1, 4, 2],
        "validation": [10] * 4,
        "test": [10] * 4,
        "synthetic": [0, 8, 5, 7],
    }
    rows = held_out()
    scored = score_arms(found, rows)
    verdict = make_verdict(found, scored, rows, NAMES, counts, 300, 2.0, 0.95, 500)
    assert verdict["decision"] == "use"
    assert verdict["reasons"] == []
    assert verdict["winning_share"] == 0.5
    assert verdict["gain_points"] == pytest.approx(15)
    assert verdict["interval_points"] == pytest.approx([5, 20])
    assert (verdict["confidence"], verdict["level"]) == (0.95, 0.97)
    assert verdict["tail_classes"] == ["b", "d", "c"]
    assert verdict["tail_gain_points"] == pytest.approx(20)
    assert verdict["tail_interval_points"] == pytest.approx([10, 30])
    assert verdict["n"]["seeds"] == 4
    assert verdict["n"]["training"] == 16
    assert verdict["seeds"] == [0, 1, 2, 3]
    assert verdict["power"]["minimum_detectable_points"] == 1.5
    assert (verdict["power"]["test_images"], verdict["power"]["test_units"]) == (40, 20)
    assert verdict["looks"] == [
        {
            "seeds": 4,
            "gain_points": pytest.approx(15),
            "low_points": pytest.approx(5),
            "high_points": pytest.approx(20),
            "decided": True,
        }
    ]
    assert verdict["per_class"][1] == {
        "name": "b",
        "training_images": 1,
        "test_images": 10,
        "baseline_recall": pytest.approx(0.6),
        "synthetic_recall": pytest.approx(0.7),
        "baseline_precision": pytest.approx(0.6),
        "synthetic_precision": pytest.approx(0.7),
        "gain_points": pytest.approx(10),
        "low_points": pytest.approx(9),
        "high_points": pytest.approx(11),
        "simultaneous_low_points": pytest.approx(5),
        "simultaneous_high_points": pytest.approx(15),
        "regressed": False,
    }
    real, mixed = verdict["arms"]
    assert (real["name"], real["role"], real["share"]) == ("real", "baseline", None)
    assert real["gain_points"] is None
    assert mixed["low_points"] == pytest.approx(-5)  # simultaneous over all arms
    assert real["test_balanced_accuracy"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0)}
    assert real["corrupted_balanced_accuracy"]["mean"] == pytest.approx(0.45)
    assert real["calibration_error"]["mean"] == pytest.approx(0.4)  # sure, and right in 60 %
    assert real["test_auroc"]["mean"] == pytest.approx((0.6 + 1 - 0.4 / 3) / 2)
    assert real["worst_group_recall"]["mean"] == pytest.approx(0.5)
    assert [row["baseline"] for row in verdict["corruptions"]][:2] == pytest.approx([0.5, 0.4])


def verdict_of(
    own: ArmGain | None,
    best: Arm = MIXED,
    rival_gain: float | None = None,
    groups: list[str] | None = None,
) -> dict:
    results = {REAL: result(4, 4), best: result(2, 3)}
    if rival_gain is not None:
        results[OTHER] = result(5, 3)
    found = comparison(results, gain_of(0.05, 0.15, 0.2), own, best)
    if rival_gain is not None:
        (look,) = found.looks
        gains = {**look.gains, OTHER.name: gain_of(0.0, rival_gain, 0.2)}
        found = replace(found, looks=(replace(look, gains=gains),))
    rows = held_out()
    if groups is not None:
        rows = replace(rows, test=replace(rows.test, groups=tuple(groups)))
    counts = {name: [10] * 4 for name in ("training", "validation", "test", "synthetic")}
    return make_verdict(found, score_arms(found, rows), rows, NAMES, counts, 300, 2.0, 0.95, 500)


def test_a_gain_that_may_be_augmentations_own_is_not_used() -> None:
    verdict = verdict_of(gain_of(-0.01, 0.02, 0.05))
    assert verdict["decision"] == "do_not_use"
    assert verdict["twin"] == "real_augmented"
    assert verdict["sentence"].endswith("the same training without them, no gain is shown.")
    assert verdict["own_interval_points"] == pytest.approx([-1, 5])
    (reason,) = verdict["reasons"]
    assert reason.startswith("Against real_augmented, the same training without synthetic images")


def test_a_winner_that_sees_other_images_too_is_used_with_care() -> None:
    shown = gain_of(0.05, 0.1, 0.15)
    assert verdict_of(shown)["decision"] == "use"
    both = replace(MIXED, name="mixed_base", beside="base_images")
    verdict = verdict_of(shown, both)
    assert (verdict["decision"], verdict["twin"]) == ("use_with_care", "base_images")
    (reason,) = verdict["reasons"]
    assert reason.startswith("mixed_base was trained on other images too, as base_images is")
    assert verdict["winning_share"] == pytest.approx(1 / 3)


def test_without_its_twin_an_arm_is_used_with_care() -> None:
    verdict = verdict_of(None)
    assert verdict["decision"] == "use_with_care"
    assert "add real_augmented to evaluate.arms" in verdict["reasons"][0]


def test_what_a_script_does_not_say_is_unknown() -> None:
    found = comparison(
        {REAL: result(4, 4, known=False), MIXED: result(2, 3)}, gain_of(0.05, 0.15, 0.2)
    )
    (real, _) = score_arms(found, held_out())
    assert real.auroc == (None,) * SEEDS
    assert real.calibration_error == (None,) * SEEDS


def test_arms_are_described_in_plain_words() -> None:
    assert describe_arm(MIXED) == (
        "real rows, every class drawn equally often; 50 % of the draws synthetic; lightly augmented"
    )
    assert describe_arm(REAL) == "real rows, rows drawn as they come"
    assert describe_arm(replace(MIXED, beside="base_images")) == (
        "real rows, every class drawn equally often; 25 % of the draws synthetic; 25 % of the "
        "draws the images that the base was trained on, with their labels; lightly augmented"
    )
