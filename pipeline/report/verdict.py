"""What the comparison found: evaluate/verdict.json and controls.json, read back and checked.

Recalls and accuracies lie in [0, 1]; `*_points` are percentage points. A gain is what the best arm
with synthetic images, or any other arm, has more than the best baseline.
"""

from collections.abc import Sequence
from typing import Literal

from pipeline.report.record import Record

Decision = Literal["use", "use_with_care", "do_not_use"]
Role = Literal["baseline", "synthetic", "synthetic_only"]

# Arms that learn from the pool, in words, and the one that learns from the base's own images. The
# report imports nothing of pipeline.downstream; a test holds them equal to what is there.
POOL_ARMS = {
    "pseudo_labels": "pseudo-labels",
    "pseudo_labels_soft": "soft pseudo-labels",
    "retrieval": "retrieval",
}
OF_BASE = "base_images"


class Spread(Record):
    """Mean and sample standard deviation over seeds (and splits), in [0, 1]."""

    mean: float
    sd: float


class ArmResult(Record):
    """One arm of the comparison.

    Attributes:
        name: of the arm.
        role: `synthetic` arms may win; `synthetic_only` is there for comparison alone.
        description: what it does, in plain words.
        share: chance that a draw is no real row; None where there is no such chance.
        settings: what its search on validation rows found.
        seeds: how many times it was trained.
        calibration_error: expected, over 15 bins; low is good.
        worst_group_recall: recall of the group that fares worst; None without groups.
        corrupted_balanced_accuracy: mean over simple corruptions of the test images.
        gain_points: over the best baseline; None for that baseline itself.
        low_points: of the interval that holds for all arms at once.
        high_points: likewise.
    """

    name: str
    role: Role
    description: str
    share: float | None
    settings: dict[str, float | str]
    seeds: int
    validation_balanced_accuracy: Spread
    test_balanced_accuracy: Spread
    test_macro_f1: Spread
    tail_recall: Spread
    test_auroc: Spread | None
    calibration_error: Spread | None
    worst_group_recall: Spread | None
    corrupted_balanced_accuracy: Spread | None
    gain_points: float | None
    low_points: float | None
    high_points: float | None


class ClassGain(Record):
    """Gain in recall of one class.

    Attributes:
        low_points: of its own interval.
        high_points: likewise.
        simultaneous_low_points: of the interval that holds for all classes at once.
        simultaneous_high_points: likewise.
        regressed: does it lose more than the margin allows?
    """

    name: str
    training_images: int
    test_images: int
    baseline_recall: float
    synthetic_recall: float
    baseline_precision: float
    synthetic_precision: float
    gain_points: float
    low_points: float
    high_points: float
    simultaneous_low_points: float
    simultaneous_high_points: float
    regressed: bool


class Corruption(Record):
    """Balanced accuracy of the two compared arms under one corruption of the test images."""

    name: str
    baseline: float
    synthetic: float


class Power(Record):
    """What gain the comparison could have seen.

    Attributes:
        minimum_detectable_points: smallest gain that would be shown with the chance `power`.
        power: that chance.
        discordant_share: share of test images on which two arms differ, as it was assumed.
        test_units: test images, those of one class and group counted once; None of an older run.
    """

    minimum_detectable_points: float
    power: float
    discordant_share: float
    seeds: int
    test_images: int
    test_units: int | None = None
    sentence: str


class Look(Record):
    """The gain after some seeds, and whether it decided."""

    seeds: int
    gain_points: float
    low_points: float
    high_points: float
    decided: bool


class CurvePoint(Record):
    """Balanced accuracy of the best baseline with fewer real images."""

    real_images: float
    balanced_accuracy: float
    low: float
    high: float


class LearningCurve(Record):
    """How many labelled images the synthetic ones are worth.

    Attributes:
        arm: of the two kinds of images alone, whose worth it is.
        worth_images: further labelled images that would bring as much; None: it cannot be told.
        beyond: does the interval reach beyond what the curve can tell?
    """

    arm: str
    points: list[CurvePoint]
    worth_images: float | None
    worth_low: float | None
    worth_high: float | None
    beyond: bool
    sentence: str


class Sizes(Record):
    """How much the verdict rests on."""

    training: int
    validation: int
    test: int
    synthetic: int
    base_images: int
    seeds: int
    splits: int
    bootstrap_resamples: int


class Verdict(Record):
    """evaluate/verdict.json.

    Attributes:
        reasons: why care is needed, or why not; may be empty.
        winning_share: share of synthetic ones among the best synthetic arm's draws of real and
            synthetic images.
        interval_points: of the gain over the best baseline; its low end must be above zero.
        twin: the same training as the best synthetic arm's, without synthetic images.
        own_gain_points: gain over the twin; None where it took no part.
        own_interval_points: of that gain; its low end must be above zero too.
        confidence: as it was asked for.
        level: of the interval, at least `confidence`: more where seeds were added after a look.
    """

    decision: Decision
    sentence: str
    reasons: list[str]
    best_baseline: str
    best_synthetic: str
    winning_share: float
    gain_points: float
    interval_points: tuple[float, float]
    confidence: float
    level: float
    twin: str | None = None
    own_gain_points: float | None = None
    own_interval_points: tuple[float, float] | None = None
    tail_gain_points: float
    tail_interval_points: tuple[float, float]
    tail_classes: list[str]
    per_class: list[ClassGain]
    arms: list[ArmResult]
    corruptions: list[Corruption]
    power: Power
    looks: list[Look]
    learning_curve: LearningCurve | None
    n: Sizes
    steps: int
    synthetic_available: bool

    def arm(self, name: str) -> ArmResult | None:
        """Return the arm of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def pool_arms(self) -> list[str]:
        """Return, in words, the arms that learned from the pool."""
        return [words for name, words in POOL_ARMS.items() if self.arm(name)]


class Control(Record):
    """A comparison whose answer is known beforehand.

    Attributes:
        kind: a `negative` one must not be accepted, a `positive` one must.
        as_expected: was it so?
    """

    name: str
    kind: Literal["negative", "positive"]
    gain_points: float
    low_points: float
    high_points: float
    decision: Decision
    as_expected: bool


class Controls(Record):
    """controls.json."""

    rows: list[Control]


def ordered_arms(verdict: Verdict) -> list[ArmResult]:
    """Return the arms as they are shown: the winner, its rivals, then those of real images.

    Rivals and baselines stand by their gain, the largest first; the best baseline leads its own.
    """
    places = {"synthetic": 0, "baseline": 1, "synthetic_only": 2}

    def place(arm: ArmResult) -> tuple[int, bool, float]:
        compared = arm.name in (verdict.best_synthetic, verdict.best_baseline)
        return places[arm.role], not compared, -(arm.gain_points or 0.0)

    return sorted(verdict.arms, key=place)


def thinnest_first(verdict: Verdict) -> Sequence[ClassGain]:
    """Return the classes, the one with the fewest training images first."""
    return sorted(verdict.per_class, key=lambda one: one.training_images)
