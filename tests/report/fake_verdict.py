"""A verdict.json as the stage evaluate writes it, with numbers of a likely run but no training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_stages import Fake, finish, write_stages

from pipeline.folders import write_json
from pipeline.params import AssembleParams
from pipeline.stages.assemble import run as assemble
from pipeline.tracking.tracker import NullTracker

_BASELINES = {
    "real": ("real images as they come", -4.2),
    "real_balanced": ("every class drawn equally often", -2.4),
    "class_weighted": ("rare classes weigh more in the loss", -2.1),
    "logit_adjusted": ("logits adjusted by class frequency (Menon et al. 2021)", -1.6),
    "focal": ("focal loss: hard images weigh more", -2.9),
    "real_augmented": ("balanced, each image lightly augmented", 0.0),
    "real_augmented_strong": ("balanced, each image strongly augmented", -0.4),
    "mixup": ("balanced, pairs of images blended", -1.1),
    "cutmix": ("balanced, patches of images exchanged", -1.9),
    "smote": ("balanced by new points between neighbours (SMOTE)", -1.3),
}
_FOUND = {
    "pseudo_labels": ("sure unlabelled images added", -0.9),
    "pseudo_labels_soft": ("unlabelled images added with soft labels", -0.8),
    "retrieval": ("unlabelled images near a class added", -1.2),
    "base_images": ("the images that the base was trained on added", -0.7),
}
_CORRUPTIONS = (
    ("gaussian_noise", 0.71, 0.03),
    ("blur", 0.78, 0.02),
    ("contrast", 0.83, 0.01),
    ("brightness", 0.85, 0.0),
    ("shift", 0.64, 0.025),
    ("pixelate", 0.8, -0.01),
)
CONTROLS = [
    ("shuffled_labels", "negative", -2.8, "do_not_use", True),
    ("pure_noise", "negative", -1.1, "do_not_use", True),
    ("exact_copies", "negative", 0.1, "do_not_use", True),
    ("held_out_real", "positive", 4.4, "use", True),
]


def fake_verdict(
    classes: Sequence[str],
    training: Sequence[int],
    test_images: int = 45,
    synthetic: int = 354,
    decision: str = "use",
    gain: tuple[float, float, float] = (3.1, 1.2, 5.0),
    share: float = 0.5,
    baselines: Sequence[str] = tuple(_BASELINES),
    regressed: Sequence[int] = (),
    looks: Sequence[int] = (8,),
    worth: float | None = 140.0,
    worth_of: str | None = None,
    reasons: Sequence[str] = (),
    test_units: int | None = None,
) -> dict[str, Any]:
    """Return verdict.json's content.

    Args:
        classes: class names.
        training: training images of each.
        test_images: of each class.
        synthetic: accepted images; 0 leaves the arm of synthetic images alone out.
        decision: `use`, `use_with_care` or `do_not_use`.
        gain: in points, and both ends of its interval.
        share: of synthetic draws in the winner.
        baselines: names of arms without synthetic images.
        test_units: test images of all classes, those of one group counted once; None leaves it out.
        regressed: labels of the classes that get worse.
        looks: seeds at each look; the last is their number.
        worth: in labelled images; None leaves the learning curve out.
        worth_of: name of the arm whose worth it is; the winner where it is not given.
        reasons: as the verdict gives them.
    """
    points, low, high = gain
    known = {**_BASELINES, **_FOUND}
    winner, base, seeds = f"mixed_{100 * share:g}", 0.871, looks[-1]

    def arm(name: str, role: str, description: str, change: float, part: float | None) -> dict:
        mean, wide = base + change / 100, (high - low) / 1.6
        best = name == "real_augmented"
        settings: dict[str, float | str] = {"learning_rate": 0.003}
        if name == "focal":
            settings |= {"gamma": 2.0}
        return {
            "name": name,
            "role": role,
            "description": description,
            "share": part,
            "settings": settings,
            "seeds": seeds,
            "validation_balanced_accuracy": _spread(mean + 0.004, 0.011),
            "test_balanced_accuracy": _spread(mean, 0.009),
            "test_macro_f1": _spread(mean - 0.006, 0.012),
            "tail_recall": _spread(mean - 0.07, 0.03),
            "test_auroc": _spread(1 - (1 - mean) / 6, 0.002),
            "calibration_error": _spread(0.06 - change / 400, 0.008),
            "worst_group_recall": None,
            "corrupted_balanced_accuracy": _spread(mean - 0.13, 0.02),
            "gain_points": None if best else change,
            "low_points": None if best else change - wide,
            "high_points": None if best else change + wide,
        }

    arms = [arm(name, "baseline", *known[name], None) for name in baselines]
    arms += [
        arm(winner, "synthetic", f"{100 * share:g} % of draws synthetic", points, share),
        arm("mixed_25", "synthetic", "25 % of draws synthetic", points - 0.8, 0.25),
        arm(
            "mixed_strong_50",
            "synthetic",
            "50 % of draws synthetic, all strongly augmented",
            points - 0.5,
            0.5,
        ),
        arm(
            "mixed_light_weight_50",
            "synthetic",
            "50 % of draws synthetic, with half the weight in the loss",
            points - 0.3,
            0.5,
        ),
        arm(
            "pretrained_50",
            "synthetic",
            "first trained on synthetic images, then on real ones",
            points - 1.4,
            0.5,
        ),
    ]
    if synthetic:
        arms.append(arm("synthetic_only", "synthetic_only", "no real image", -21.0, 1.0))
    order = sorted(range(len(classes)), key=lambda k: training[k])
    level = 95 if len(looks) == 1 else 97.5
    verb = {
        "use": "Use the synthetic images",
        "use_with_care": "Use the synthetic images with care",
        "do_not_use": "Do not use the synthetic images",
    }[decision]
    sentence = (
        f"{verb}: the best way to use them ({winner}) changed balanced accuracy by {points:+.2f} "
        f"points ({level} % interval {low:+.2f} to {high:+.2f}) against the best baseline, "
        "real_augmented."
    )
    total = sum(training)
    return {
        "decision": decision,
        "sentence": sentence,
        "reasons": list(reasons),
        "best_baseline": "real_augmented",
        "best_synthetic": winner,
        "winning_share": share,
        "gain_points": points,
        "interval_points": [low, high],
        "confidence": 0.95,
        "level": level / 100,
        "twin": "real_augmented",
        "own_gain_points": points + 0.25,
        "own_interval_points": [low + 0.5, high + 0.5],
        "tail_gain_points": 1.5 * points,
        "tail_interval_points": [1.5 * low - 1, 1.5 * high + 1],
        "tail_classes": [classes[k] for k in order[:3]],
        "per_class": [
            _class(classes[k], training[k], test_images, points, k in regressed, order.index(k))
            for k in range(len(classes))
        ],
        "arms": arms,
        "corruptions": [
            {"name": name, "baseline": before, "synthetic": before + gained}
            for name, before, gained in _CORRUPTIONS
        ],
        "power": {
            "minimum_detectable_points": 1.9,
            "power": 0.8,
            "discordant_share": 0.09,
            "seeds": seeds,
            "test_images": test_images * len(classes),
            **({} if test_units is None else {"test_units": test_units}),
            "sentence": f"With {seeds} seeds and {test_images * len(classes):,} test images, "
            "a gain of 1.90 points or more would be shown in 80 of 100 such comparisons.",
        },
        "looks": [
            {
                "seeds": count,
                "gain_points": points + 0.3 * (seeds - count) / seeds,
                "low_points": points - (points - low) * (seeds / count) ** 0.7,
                "high_points": points + (high - points) * (seeds / count) ** 0.7,
                "decided": count == seeds,
            }
            for count in looks
        ],
        "learning_curve": None if worth is None else _curve(total, base, worth, worth_of or winner),
        "n": {
            "training": total,
            "validation": 27 * len(classes),
            "test": test_images * len(classes),
            "synthetic": synthetic,
            "base_images": 1400 if "base_images" in baselines else 0,
            "seeds": seeds,
            "splits": 1,
            "bootstrap_resamples": 2000,
        },
        "seeds": list(range(seeds)),
        "steps": 308,
        "synthetic_available": synthetic > 0,
    }


def write_controls(artifacts: Path, rows: Sequence[tuple] = CONTROLS) -> Path:
    """Write controls/controls.json; return its path."""
    keys = ("name", "kind", "gain_points", "decision", "as_expected")
    found = [
        {
            **dict(zip(keys, row, strict=True)),
            "low_points": row[2] - 2.0,
            "high_points": row[2] + 2.0,
        }
        for row in rows
    ]
    path = artifacts / "controls" / "controls.json"
    write_json(path, {"rows": found})
    return path


def write_findings(root: Path, fake: Fake | None = None, **changes: Any) -> dict[str, Path]:
    """Write the folders prepare to evaluate, with a verdict of `fake_verdict`."""
    fake = fake or Fake()
    folders = write_stages(root, fake)
    rewrite_verdict(folders, fake, **changes)
    return folders


def rewrite_verdict(folders: dict[str, Path], fake: Fake, **changes: Any) -> None:
    """Put a verdict of `fake_verdict` into a finished evaluate folder."""
    given = {"decision": fake.decision, "gain": fake.gain, "share": fake.share, **changes}
    if fake.base == "pool":  # then the arms of the pool take part by default
        given.setdefault("baselines", [*_BASELINES, "pseudo_labels", "retrieval"])
    verdict = fake_verdict(fake.classes, fake.training, fake.held_out, sum(fake.accepted), **given)
    write_json(folders["evaluate"] / "verdict.json", verdict)
    finish(folders["evaluate"], fake.params)


def write_all(root: Path, fake: Fake | None = None, **changes: Any) -> dict[str, Path]:
    """Write the folders prepare to assemble; the last is the stage's own work."""
    fake = fake or Fake()
    decision = changes.pop("decision", fake.decision)
    plain = "do_not_use" if decision == "do_not_use" else "use"
    folders = write_findings(root, fake, decision=plain, **changes)
    assemble(AssembleParams(), dict(folders), root / "assemble", NullTracker())
    folders = {**folders, "assemble": root / "assemble"}
    if decision != plain:  # the same dataset, with another word for it
        rewrite_verdict(folders, fake, decision=decision, **changes)
        finish(folders["assemble"], fake.params)
    return folders


def _spread(mean: float, sd: float) -> dict[str, float]:
    return {"mean": float(min(max(mean, 0.0), 1.0)), "sd": sd}


def _class(
    name: str, training: int, test: int, gain: float, regressed: bool, place: int
) -> dict[str, Any]:
    """Return a class's row; `place` 0 is the thinnest, which gains most."""
    points = -3.2 if regressed else gain * 2.6 * 0.6**place
    wide = 4.5 if place < 2 else 3.0
    if regressed:
        wide = 1.6
    recall = 0.62 + 0.33 * (1 - 0.7**place)
    return {
        "name": name,
        "training_images": training,
        "test_images": test,
        "baseline_recall": recall,
        "synthetic_recall": recall + points / 100,
        "baseline_precision": 0.9,
        "synthetic_precision": 0.9 + points / 300,
        "gain_points": points,
        "low_points": points - wide,
        "high_points": points + wide,
        "simultaneous_low_points": points - 1.5 * wide,
        "simultaneous_high_points": points + 1.5 * wide,
        "regressed": regressed,
    }


def _curve(total: int, base: float, worth: float, arm: str) -> dict[str, Any]:
    points = [
        {
            "real_images": part * total,
            "balanced_accuracy": base - 0.09 * (part**-0.6 - 1),
            "low": base - 0.09 * (part**-0.6 - 1) - 0.012,
            "high": base - 0.09 * (part**-0.6 - 1) + 0.012,
        }
        for part in (0.25, 0.5, 0.75, 1.0)
    ]
    return {
        "arm": arm,
        "points": points,
        "worth_images": worth,
        "worth_low": 0.4 * worth,
        "worth_high": 1.7 * worth,
        "beyond": False,
        "sentence": f"The synthetic images do as much as {worth:.0f} more labelled images would "
        f"(interval {0.4 * worth:.0f} to {1.7 * worth:.0f}).",
    }
