"""The verdict: do the synthetic images help, and by how much?

The best baseline and the best mixed arm are chosen by validation rows alone. Every arm is scored
on the test rows, and no choice is made by those scores. The answer is `use` where the whole
interval of the gain lies above zero, and `do_not_use` otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.downstream.arms import Arm, Role
from pipeline.downstream.compare import Gain, Interval
from pipeline.downstream.scores import Scores

_TAIL_CLASSES = 3
MINIMUM_TEST_IMAGES = 5
_POINTS = 100.0  # percentage points a unit


@dataclass(frozen=True)
class ArmScores:
    """Scores of one arm: one entry a seed, in seed order.

    Attributes:
        arm: the arm.
        validation: scores on the validation rows.
        test: scores on the test rows.
    """

    arm: Arm
    validation: tuple[Scores, ...]
    test: tuple[Scores, ...]

    def validation_accuracy(self) -> float:
        """Return the mean validation balanced accuracy over seeds, by which arms are chosen."""
        return float(np.mean([scores.balanced_accuracy for scores in self.validation]))

    def recall(self) -> npt.NDArray[np.float64]:
        """Return the (K,) test recall of each class, mean over seeds."""
        return np.asarray(np.mean([scores.recall for scores in self.test], axis=0))


def best_arm(arms: Sequence[ArmScores], role: Role) -> ArmScores:
    """Return the arm of `role` with the best mean validation balanced accuracy.

    Among equals the earlier one wins: arms stand in params.yaml from simple to elaborate.
    """
    return max(
        (arm for arm in arms if arm.arm.role == role),
        # Rounded, so that the order of a sum does not break a tie.
        key=lambda arm: round(arm.validation_accuracy(), 12),
    )


def tail_classes(training_images: Sequence[int]) -> tuple[int, ...]:
    """Return the labels of the three classes with the fewest real training images, fewest first.

    Equal counts keep label order; where there are no more than three classes, all but the largest.
    """
    order = sorted(range(len(training_images)), key=lambda k: (training_images[k], k))
    return tuple(order[: max(1, min(_TAIL_CLASSES, len(order) - 1))])


def decide(gain: Gain, synthetic_available: bool, test_images: Sequence[int]) -> str:
    """Return `use` where the interval of the gain lies above zero, else `do_not_use`.

    A class with fewer than `MINIMUM_TEST_IMAGES` distinct test images makes it `do_not_use`: a
    bootstrap of one or two images does not show how much they could have differed. Simulated
    without any effect, ten classes of one image said `use` in 35 % of all cases, of three in 5 %.
    """
    enough = min(test_images) >= MINIMUM_TEST_IMAGES
    # Rounded: a mean of many terms may miss zero by the last bit.
    helps = synthetic_available and enough and round(gain.balanced_accuracy.low, 12) > 0.0
    return "use" if helps else "do_not_use"


def make_sentence(
    decision: str,
    baseline: Arm,
    mixed: Arm,
    gain: Gain,
    available: bool,
    thin: Sequence[str] = (),
) -> str:
    """Return the verdict in plain words; `thin` names classes with too few test images."""
    if not available:
        return (
            "Do not use synthetic images: none was accepted, so there is nothing to add to the "
            f"best baseline, {baseline.name}."
        )
    points = _in_points(gain.balanced_accuracy)
    interval = f"{100 * gain.confidence:g} % interval {points.low:+z.2f} to {points.high:+z.2f}"
    if decision == "use":
        return (
            f"Use the synthetic images: the best mix ({mixed.name}) raised balanced accuracy by "
            f"{points.value:+z.2f} points ({interval}) over the best baseline, {baseline.name}."
        )
    if thin:
        shown = ", ".join(thin[:3]) + (f" and {len(thin) - 3} more" if len(thin) > 3 else "")
        return (
            "Do not use the synthetic images: there are too few test images to tell, fewer than "
            f"{MINIMUM_TEST_IMAGES} of class {shown}; add images or raise prepare.test_fraction. "
            f"The best mix ({mixed.name}) changed balanced accuracy by {points.value:+z.2f} points "
            f"({interval}) against the best baseline, {baseline.name}."
        )
    return (
        f"Do not use the synthetic images: the best mix ({mixed.name}) changed balanced accuracy "
        f"by {points.value:+z.2f} points ({interval}) against the best baseline, {baseline.name}."
    )


def make_verdict(
    arms: Sequence[ArmScores],
    baseline: ArmScores,
    mixed: ArmScores,
    gain: Gain,
    class_names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    steps: int,
) -> dict[str, Any]:
    """Return verdict.json as plain data: recalls in [0, 1], `*_points` in percentage points.

    Args:
        arms: every arm that was trained, in order.
        baseline: the best baseline.
        mixed: the best mixed arm.
        gain: gain of `mixed` over `baseline` on the test rows.
        class_names: name of each label.
        counts: "training" (real), "validation", "test", "synthetic" -> images of each class.
        steps: optimiser steps of each classifier.
    """
    available = sum(counts["synthetic"]) > 0
    tail = tail_classes(counts["training"])
    decision = decide(gain, available, counts["test"])
    thin = [
        name
        for name, images in zip(class_names, counts["test"], strict=True)
        if images < MINIMUM_TEST_IMAGES
    ]
    overall = _in_points(gain.balanced_accuracy)
    recalls = baseline.recall(), mixed.recall()
    return {
        "decision": decision,
        "sentence": make_sentence(decision, baseline.arm, mixed.arm, gain, available, thin),
        "best_baseline": baseline.arm.name,
        "best_mixed": mixed.arm.name,
        "winning_share": mixed.arm.share,
        "gain_points": overall.value,
        "interval_points": [overall.low, overall.high],
        "confidence": gain.confidence,
        "tail_gain_points": _POINTS * float(np.mean([gain.classes[k].value for k in tail])),
        "tail_classes": [class_names[k] for k in tail],
        "per_class": [
            {
                "name": name,
                "training_images": counts["training"][k],
                "test_images": counts["test"][k],
                "baseline_recall": float(recalls[0][k]),
                "mixed_recall": float(recalls[1][k]),
                "gain_points": _in_points(gain.classes[k]).value,
                "low_points": _in_points(gain.classes[k]).low,
                "high_points": _in_points(gain.classes[k]).high,
            }
            for k, name in enumerate(class_names)
        ],
        "arms": [_describe(arm, tail) for arm in arms],
        "n": {
            **{name: sum(values) for name, values in counts.items()},
            "seeds": gain.seeds,
            "bootstrap_resamples": gain.resamples,
        },
        "seeds": list(range(gain.seeds)),
        "steps": steps,
        "synthetic_available": available,
    }


def tail_recall(scores: Scores, tail: Sequence[int]) -> float:
    """Return the mean recall over the tail classes, in [0, 1]."""
    return float(np.mean(scores.recall[list(tail)]))


def _describe(arm: ArmScores, tail: Sequence[int]) -> dict[str, Any]:
    return {
        "name": arm.arm.name,
        "role": arm.arm.role,
        "share": arm.arm.share,
        "validation_balanced_accuracy": _spread([s.balanced_accuracy for s in arm.validation]),
        "test_balanced_accuracy": _spread([s.balanced_accuracy for s in arm.test]),
        "test_macro_f1": _spread([s.macro_f1 for s in arm.test]),
        "tail_recall": _spread([tail_recall(s, tail) for s in arm.test]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    # Sample standard deviation over seeds; params ask for two seeds at least.
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def _in_points(interval: Interval) -> Interval:
    return Interval(_POINTS * interval.value, _POINTS * interval.low, _POINTS * interval.high)
