"""The verdict of one run: do the synthetic images help, and by how much?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.downstream.arms import Arm
from pipeline.downstream.bench import corrupted_rows
from pipeline.downstream.compare import ArmGain
from pipeline.downstream.comparison import Comparison, HeldOut
from pipeline.downstream.corruptions import CORRUPTIONS
from pipeline.downstream.grounds import Grounds, better_rival, few_tests, in_points, regressed
from pipeline.downstream.scores import (
    Scores,
    auroc,
    calibration_error,
    score,
    worst_group_recall,
)
from pipeline.downstream.tail import tail_recall

Spread = dict[str, float]


@dataclass(frozen=True)
class ArmScores:
    """Scores of one arm: one entry a seed, in seed order; None where something is not known.

    Attributes:
        arm: the arm.
        validation: scores on the validation rows.
        test: scores on the test rows.
        auroc: one class against the rest, mean over classes, on the test rows.
        calibration_error: of the test rows.
        worst_group: recall of the worst group of test rows.
        corrupted: (seeds, C) balanced accuracy of test rows under each corruption.
    """

    arm: Arm
    validation: tuple[Scores, ...]
    test: tuple[Scores, ...]
    auroc: tuple[float | None, ...]
    calibration_error: tuple[float | None, ...]
    worst_group: tuple[float | None, ...]
    corrupted: npt.NDArray[np.float64]

    def recall(self) -> npt.NDArray[np.float64]:
        """Return the (K,) test recall of each class, mean over seeds."""
        return np.asarray(np.mean([scores.recall for scores in self.test], axis=0))

    def precision(self) -> npt.NDArray[np.float64]:
        """Return the (K,) test precision of each class, mean over seeds."""
        return np.asarray(np.mean([scores.precision for scores in self.test], axis=0))


def score_arms(comparison: Comparison, held_out: HeldOut) -> tuple[ArmScores, ...]:
    """Return the scores of every arm, in order."""
    seeds = range(comparison.last().seeds)
    classes, test = held_out.classes, held_out.test
    shown = test.labels[corrupted_rows(test.labels)]
    found = []
    for arm in comparison.arms:
        runs = [comparison.results[arm, seed] for seed in seeds]
        chances = [run.test_probabilities.astype(np.float64) for run in runs]
        known = [bool(len(one)) and bool(np.isfinite(one).all()) for one in chances]
        found.append(
            ArmScores(
                arm,
                tuple(score(held_out.validation, run.validation, classes) for run in runs),
                tuple(score(test.labels, run.test, classes) for run in runs),
                tuple(
                    auroc(test.labels, one) if there else None
                    for one, there in zip(chances, known, strict=True)
                ),
                tuple(
                    calibration_error(test.labels, one) if there else None
                    for one, there in zip(chances, known, strict=True)
                ),
                tuple(worst_group_recall(test.labels, run.test, test.groups) for run in runs),
                np.array(
                    [
                        [score(shown, one, classes).balanced_accuracy for one in run.corrupted]
                        for run in runs
                    ]
                ),
            )
        )
    return tuple(found)


def make_verdict(
    comparison: Comparison,
    scored: Sequence[ArmScores],
    held_out: HeldOut,
    class_names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
    steps: int,
    margin_points: float,
    confidence: float,
    resamples: int,
) -> dict[str, Any]:
    """Return verdict.json as plain data: recalls in [0, 1], `*_points` in percentage points.

    Args:
        comparison: what came of the comparison.
        scored: scores of its arms, in order.
        held_out: what they were scored on.
        class_names: name of each label.
        counts: "training" (real), "validation", "test", "synthetic" -> images of each class.
        steps: optimiser steps of each classifier.
        margin_points: loss of a class beyond which it is a regression.
        confidence: level that was asked for.
        resamples: of the bootstrap.
    """
    look = comparison.last()
    gain = look.gain()
    available = sum(counts["synthetic"]) > 0
    tail, own = held_out.tail, None if look.own is None else look.own.balanced_accuracy
    losers = regressed(gain, margin_points)
    names = look.baseline.name, look.synthetic.name
    grounds = Grounds(
        baseline=names[0],
        synthetic=names[1],
        gain=gain.balanced_accuracy,
        level=look.level,
        twin=look.synthetic.twin() or "",
        own=own,
        others=look.synthetic.beside,
        rival=better_rival(
            look.gains, [arm.name for arm in comparison.arms if arm.role == "baseline"], names[1]
        ),
        available=available,
        few_tests=few_tests(class_names, held_out.test_units()),
        losers=tuple(class_names[k] for k in losers),
        margin_points=margin_points,
        seeds=look.seeds,
    )
    by_name = {one.arm.name: one for one in scored}
    best = by_name[names[0]], by_name[names[1]]
    overall = in_points(gain.balanced_accuracy)
    return {
        "decision": grounds.decision(),
        "sentence": grounds.sentence(),
        "reasons": grounds.reasons(),
        "best_baseline": names[0],
        "best_synthetic": names[1],
        "winning_share": look.synthetic.synthetic_share(),
        "gain_points": overall.value,
        "interval_points": [overall.low, overall.high],
        "confidence": confidence,
        "level": look.level,
        "twin": look.synthetic.twin() if look.own else None,
        "own_gain_points": None if own is None else in_points(own).value,
        "own_interval_points": (None if own is None else [in_points(own).low, in_points(own).high]),
        "tail_gain_points": in_points(gain.tail).value,
        "tail_interval_points": [in_points(gain.tail).low, in_points(gain.tail).high],
        "tail_classes": [class_names[k] for k in tail],
        "per_class": _per_class(gain, best, losers, class_names, counts),
        "arms": [_describe(one, look.gains.get(one.arm.name), tail) for one in scored],
        "corruptions": _corruptions(*best),
        "power": {**asdict(comparison.power), "sentence": comparison.power.sentence()},
        "looks": [
            {
                "seeds": one.seeds,
                "gain_points": in_points(one.gain().balanced_accuracy).value,
                "low_points": in_points(one.gain().balanced_accuracy).low,
                "high_points": in_points(one.gain().balanced_accuracy).high,
                "decided": one.decided,
            }
            for one in comparison.looks
        ],
        "learning_curve": _curve(comparison) if available else None,
        "n": {
            **{name: sum(values) for name, values in counts.items()},
            "seeds": look.seeds,
            "splits": 1,
            "bootstrap_resamples": resamples,
        },
        "seeds": list(range(look.seeds)),
        "steps": steps,
        "synthetic_available": available,
    }


def describe_settings(arm: Arm) -> dict[str, float | str]:
    """Return what the search chose, by the names of the papers."""
    settings: dict[str, float | str] = {}
    if not arm.by_user:
        settings["learning_rate"] = arm.learning_rate
    strengths = {"focal": "gamma", "logit_adjusted": "tau"}
    if arm.mix != "none":
        settings["alpha"] = arm.strength
    elif arm.loss in strengths:
        settings[strengths[arm.loss]] = arm.strength
    if arm.share is not None:
        settings["share"] = arm.share
    if arm.added_weight != 1.0:
        settings["added_weight"] = arm.added_weight
    return settings


def describe_arm(arm: Arm) -> str:
    """Return what an arm does, in plain words."""
    if arm.by_user:
        rows = "real rows alone" if arm.share is None else "real and synthetic rows"
        return f"your own script, with {rows}"
    drawn = "every class drawn equally often" if arm.balanced else "rows drawn as they come"
    share = f"{100 * (arm.share or 0.0):g} %"
    kinds = {
        "synthetic": "synthetic",
        "smote": "SMOTE's in-between rows",
        "pseudo_labels": "unlabelled images with a sure pseudo-label",
        "pseudo_labels_soft": "unlabelled images with the probabilities of an ensemble",
        "retrieval": "unlabelled images next to a labelled one",
        "base_images": "the images that the base was trained on, with their labels",
    }
    parts = [f"real rows, {drawn}"]
    if arm.role == "synthetic_only":
        parts = [f"synthetic rows alone, {drawn}"]
    elif arm.added_first:
        parts = [f"synthetic rows for the first {share} of the steps, then {parts[0]}"]
    elif arm.added is not None:
        each = f"{100 * (arm.share or 0.0) / len(arm.adds()):g} % of the draws"
        parts += [f"{each} {kinds[kind]}" for kind in arm.adds()]
    if arm.augmentation != "none":
        how = {"light": "lightly", "strong": "strongly"}[arm.augmentation]
        parts.append(f"{how} augmented")
    if arm.loss != "cross_entropy":
        losses = {
            "class_weighted": "loss weighted by inverse class size",
            "logit_adjusted": f"logits adjusted by the class sizes (tau {arm.strength:g})",
            "focal": f"focal loss (gamma {arm.strength:g})",
        }
        parts.append(losses[arm.loss])
    if arm.mix != "none":
        parts.append({"mixup": "MixUp", "cutmix": "CutMix"}[arm.mix] + f" (alpha {arm.strength:g})")
    if arm.added_weight != 1.0:
        parts.append(f"synthetic rows weigh {arm.added_weight:g}")
    return "; ".join(parts)


def _per_class(
    gain: ArmGain,
    best: tuple[ArmScores, ArmScores],
    losers: Sequence[int],
    class_names: Sequence[str],
    counts: Mapping[str, Sequence[int]],
) -> list[dict[str, Any]]:
    recalls, precisions = [one.recall() for one in best], [one.precision() for one in best]
    rows = []
    for k, name in enumerate(class_names):
        own, together = in_points(gain.classes[k]), in_points(gain.classes_simultaneous[k])
        rows.append(
            {
                "name": name,
                "training_images": counts["training"][k],
                "test_images": counts["test"][k],
                "baseline_recall": float(recalls[0][k]),
                "synthetic_recall": float(recalls[1][k]),
                "baseline_precision": float(precisions[0][k]),
                "synthetic_precision": float(precisions[1][k]),
                "gain_points": own.value,
                "low_points": own.low,
                "high_points": own.high,
                "simultaneous_low_points": together.low,
                "simultaneous_high_points": together.high,
                "regressed": k in losers,
            }
        )
    return rows


def _describe(one: ArmScores, gain: ArmGain | None, tail: Sequence[int]) -> dict[str, Any]:
    arm = one.arm
    over = None if gain is None else in_points(gain.simultaneous)
    return {
        "name": arm.name,
        "role": arm.role,
        "description": describe_arm(arm),
        "share": arm.share,
        "settings": describe_settings(arm),
        "seeds": len(one.test),
        "validation_balanced_accuracy": spread([s.balanced_accuracy for s in one.validation]),
        "test_balanced_accuracy": spread([s.balanced_accuracy for s in one.test]),
        "test_macro_f1": spread([s.macro_f1 for s in one.test]),
        "tail_recall": spread([tail_recall(s, tail) for s in one.test]),
        "test_auroc": _spread_or_none(one.auroc),
        "calibration_error": _spread_or_none(one.calibration_error),
        "worst_group_recall": _spread_or_none(one.worst_group),
        "corrupted_balanced_accuracy": (
            spread(one.corrupted.mean(axis=1).tolist()) if one.corrupted.size else None
        ),
        "gain_points": None if over is None else over.value,
        "low_points": None if over is None else over.low,
        "high_points": None if over is None else over.high,
    }


def _corruptions(baseline: ArmScores, synthetic: ArmScores) -> list[dict[str, Any]]:
    if not (baseline.corrupted.size and synthetic.corrupted.size):
        return []
    means = baseline.corrupted.mean(axis=0), synthetic.corrupted.mean(axis=0)
    return [
        {"name": name, "baseline": float(means[0][i]), "synthetic": float(means[1][i])}
        for i, name in enumerate(CORRUPTIONS)
    ]


def _curve(comparison: Comparison) -> dict[str, Any] | None:
    worth = comparison.worth
    if worth is None:
        return None
    return {
        "arm": "" if comparison.worth_arm is None else comparison.worth_arm.name,
        "points": [asdict(point) for point in worth.points],
        "worth_images": worth.worth,
        "worth_low": worth.low,
        "worth_high": worth.high,
        "beyond": worth.beyond,
        "sentence": worth.sentence(),
    }


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation over seeds; params ask for two at least."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}


def _spread_or_none(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None
