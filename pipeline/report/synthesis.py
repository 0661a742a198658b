"""What the stage synthesize found, as pages and cards read it."""

from pipeline.report.quality import QualityRow
from pipeline.report.record import Record

# Thresholds that a score may not exceed; it may not fall below the others.
_AT_MOST = frozenset({"dark", "bright", "rough", "support_distance", "class_ratio"})
_BY_CLASS = "confidence_"  # followed by a label


class ClassAccount(Record):
    """What became of one class's candidates."""

    name: str
    wanted: int
    candidates: int
    accepted: int
    shortfall: int
    reasons: dict[str, int]


class RuleAccount(Record):
    """What one rule of acceptance did.

    Attributes:
        rule: its name.
        rejected: candidates that it was the first to reject.
        alone: candidates that it would reject by itself.
        validation_share: share of real held-out rows that it would reject; None: unknown.
    """

    rule: str
    rejected: int
    alone: int
    validation_share: float | None


class TriedImages(Record):
    """A number of synthetic images of a class, and what it brought on validation rows."""

    images: int
    shrunk_points: float
    error_points: float


class ClassPlan(Record):
    """How many images a class was found to need.

    Attributes:
        name: class name.
        training_images: real ones.
        images: planned ones.
        tried: what was tried, the fewest images first.
        confirmed_points: change of its recall on validation rows with the whole plan.
    """

    name: str
    training_images: int
    images: int
    tried: list[TriedImages]
    confirmed_points: float | None


class Plan(Record):
    """The plan of all classes."""

    classes: list[ClassPlan]
    reason: str
    budget_images: int | None
    margin_points: float
    confirmed_points: float | None

    @property
    def sizes(self) -> int:
        """Return how many sizes were tried, at least 1."""
        return max((len(one.tried) for one in self.classes), default=0) or 1


class TriedGuidance(Record):
    """A setting that the search for guidance tried.

    Attributes:
        guidance: in words.
        evaluations: network evaluations an image.
        images: samples that it drew.
        kernel_distance: of these to the validation rows, low is good.
        coverage: share of validation rows that they come near to, in [0, 1].
        copy_share: share of them that are copies, in [0, 1].
        round: the last that it took part in, counted from 1.
        chosen: is it the one?
    """

    guidance: str
    evaluations: int
    images: int
    kernel_distance: float
    coverage: float
    copy_share: float
    round: int
    chosen: bool


class Synthesis(Record):
    """synthesize/summary.json.

    Attributes:
        generator: teacher or student.
        mode: what the images were drawn from.
        sampler: by name.
        sampler_steps: network evaluations an image, guidance not counted.
        guidance: of the sampler, in words.
        guidance_reason: why, in words, where it was searched for.
        search: what was tried, in order; empty where guidance was set.
        quality: metrics of the accepted images; empty where none were measured.
        rules: what each rule of acceptance did, in the order in which they are asked.
        plan: how many images each class was found to need; None where nobody asked.
        encoder_warning: which classes the encoder does not tell apart.
    """

    generator_digest: str
    rounds: int
    candidates: int
    accepted: int
    acceptance_rate: float
    judge_validation_accuracy: float
    thresholds: dict[str, float]
    classes: list[ClassAccount]
    generator: str
    mode: str
    sampler: str
    sampler_steps: int
    guidance: str
    guidance_reason: str | None = None
    search: list[TriedGuidance] = []
    quality: list[QualityRow] = []
    rules: list[RuleAccount] = []
    plan: Plan | None = None
    encoder_warning: str | None = None

    @property
    def limits(self) -> list[tuple[str, str]]:
        """Return each threshold's name and what it asks for, those of the classes as one."""
        by_class = [v for name, v in self.thresholds.items() if name.startswith(_BY_CLASS)]
        shown = [
            (name, f"at {'most' if name in _AT_MOST else 'least'} {value:.3g}")
            for name, value in self.thresholds.items()
            if not name.startswith(_BY_CLASS)
        ]
        if by_class:
            least, most = f"{min(by_class):.3g}", f"{max(by_class):.3g}"
            span = least if least == most else f"{least} to {most}, by class"
            shown.append((_BY_CLASS.rstrip("_"), f"at least {span}"))
        return sorted(shown)
