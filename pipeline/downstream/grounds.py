"""What a verdict rests on, and what that comes to: a decision, a sentence, reasons.

The answer is `use` where the whole interval of the gain lies above zero, against the best baseline
and against the arm's twin, the same training without synthetic images: validation rows are few, and
may choose a baseline that lacks the augmentation which the synthetic arm has. It is `use_with_care`
where there is doubt, such as a class that surely loses or another baseline that did better on
test, and `do_not_use` otherwise.
One run and several pooled ones are judged by the same rules.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.downstream.compare import ArmGain, Interval

Decision = Literal["use", "use_with_care", "do_not_use"]

MINIMUM_TEST_IMAGES = 5
_ENOUGH_SEEDS = 4  # with fewer, an interval errs on one side in up to 7 %: docs/statistics.md
_ENOUGH_SPLITS = 3  # with two, in up to 5 % where splits differ for all classes at once
_POINTS = 100.0  # percentage points a unit
_NAMED = 3  # classes that a sentence names


class _Doubt(NamedTuple):
    """What makes `use` a `use_with_care`."""

    briefly: str  # for the sentence
    reason: str


@dataclass(frozen=True)
class Grounds:
    """What a verdict rests on.

    Attributes:
        baseline: name of the best arm without synthetic rows.
        synthetic: name of the best arm with them.
        gain: of `synthetic` over `baseline`, in [-1, 1].
        level: confidence of its interval, in (0, 1).
        twin: name of the same training without synthetic rows.
        own: gain of `synthetic` over its twin; None where the twin takes no part.
        others: name of the baseline whose other images `synthetic` is trained on too, if any.
        rival: name of a baseline that validation did not choose and that did better than
            `synthetic` on the test rows, if any.
        available: is there a synthetic row at all?
        few_tests: names of classes with fewer than `MINIMUM_TEST_IMAGES` test images, those of one
            group counted once.
        losers: names of classes that surely lose, by `regressed`.
        margin_points: loss of recall beyond which they do.
        seeds: paired repetitions; None of pooled runs, where splits take their place.
        splits: pooled runs; None of one run.
    """

    baseline: str
    synthetic: str
    gain: Interval
    level: float
    twin: str
    own: Interval | None
    others: str | None
    rival: str | None
    available: bool
    few_tests: tuple[str, ...]
    losers: tuple[str, ...]
    margin_points: float
    seeds: int | None
    splits: int | None = None

    def decision(self) -> Decision:
        """Return `use` where the interval of the gain lies above zero, else `do_not_use`.

        The gain over the twin has to be shown as well; neither needs a stricter level (Berger 1982,
        intersection-union). A class with fewer than `MINIMUM_TEST_IMAGES` test images, those of one
        group counted once, makes it `do_not_use`: a bootstrap of one or two images does not show
        how much they could have differed. Simulated without any effect, ten classes of one image
        said `use` in 35 % of all cases, of three in 5 %. Any doubt makes `use` a `use_with_care`.
        """
        shown = _is_shown(self.gain) and (self.own is None or _is_shown(self.own))
        if not shown or not self.available or self.few_tests:
            return "do_not_use"
        return "use_with_care" if self._doubts() else "use"

    def sentence(self) -> str:
        """Return the verdict in plain words."""
        if not self.available:
            return (
                "Do not use synthetic images: none was accepted, so there is nothing to add to the "
                f"best baseline, {self.baseline}."
            )
        points = in_points(self.gain)
        interval = f"{100 * self.level:.3g} % interval {points.low:+z.2f} to {points.high:+z.2f}"
        if self.decision() != "do_not_use":
            return (
                f"Use the synthetic images: the best way to use them ({self.synthetic}) raised "
                f"balanced accuracy by {points.value:+z.2f} points ({interval}) over the best "
                f"baseline, {self.baseline}.{self._care()}"
            )
        changed = (
            f"the best way to use them ({self.synthetic}) changed balanced accuracy by "
            f"{points.value:+z.2f} points ({interval}) against the best baseline, {self.baseline}."
        )
        if self.few_tests:
            return (
                "Do not use the synthetic images: there are too few test images to tell, fewer "
                f"than {MINIMUM_TEST_IMAGES} of class {_names(self.few_tests)} (those of one group "
                "count once); add images or raise prepare.test_fraction. "
                f"{changed[0].upper()}{changed[1:]}"
            )
        if _is_shown(self.gain):
            return (
                f"Do not use the synthetic images: {changed} Against {self.twin}, the same "
                "training without them, no gain is shown."
            )
        return f"Do not use the synthetic images: {changed}"

    def reasons(self) -> list[str]:
        """Return what speaks against the images or asks for care, a sentence each."""
        return [*self._objections(), *(doubt.reason for doubt in self._doubts())]

    def _care(self) -> str:
        briefly = [doubt.briefly for doubt in self._doubts()]
        return f" With care: {'; '.join(briefly)}." if briefly else ""

    def _objections(self) -> list[str]:
        found = []
        if not self.available:
            found.append("No synthetic image was accepted.")
        if self.few_tests:
            found.append(
                f"Too few test images of {_names(self.few_tests)} "
                f"(fewer than {MINIMUM_TEST_IMAGES})."
            )
        if self.available and self.gain.high < 0:
            found.append(
                "The whole interval of the gain lies below zero: the best baseline is better."
            )
        elif self.available and not _is_shown(self.gain):
            found.append("The interval of the gain holds zero: it may well be chance.")
        elif self.available and self.own is not None and not _is_shown(self.own):
            own = in_points(self.own)
            found.append(
                f"Against {self.twin}, the same training without synthetic images, the gain is "
                f"{own.value:+z.2f} points ({own.low:+z.2f} to {own.high:+z.2f}): it may be "
                "another's."
            )
        return found

    def _doubts(self) -> list[_Doubt]:
        found = []
        if self.losers:
            names = _names(self.losers)
            found.append(
                _Doubt(
                    f"{names} got worse",
                    f"{names}: surely worse, by more than {self.margin_points:g} points of recall.",
                )
            )
        if self.available and self.own is None:
            found.append(
                _Doubt(
                    f"it was not compared with {self.twin}",
                    f"{self.synthetic} was not compared with the same training without synthetic "
                    f"images; add {self.twin} to evaluate.arms.",
                )
            )
        if self.available and self.others is not None:
            found.append(
                _Doubt(
                    "it was trained on other images too",
                    f"{self.synthetic} was trained on other images too, as {self.others} is; the "
                    "dataset does not hold them, and what it brings alone is shown by other arms.",
                )
            )
        if self.available and self.rival is not None:
            found.append(
                _Doubt(
                    f"{self.rival} did better on test",
                    f"{self.rival} did better than {self.synthetic} on the test images, though not "
                    "on the validation images, which choose the best baseline: it may do as well.",
                )
            )
        if self.seeds is not None and self.seeds < _ENOUGH_SEEDS:
            found.append(
                _Doubt(
                    f"{self.seeds} seeds are few",
                    f"With {self.seeds} seeds the interval is not to be trusted; take "
                    f"{_ENOUGH_SEEDS} or more.",
                )
            )
        if self.splits is not None and self.splits < _ENOUGH_SPLITS:
            found.append(
                _Doubt(
                    f"{self.splits} splits are few",
                    f"{self.splits} splits tell little of how much splits differ; pool "
                    f"{_ENOUGH_SPLITS} or more.",
                )
            )
        return found


def regressed(gain: ArmGain, margin_points: float) -> tuple[int, ...]:
    """Return the classes that surely lose, and more than the margin.

    By the intervals that hold for all classes at once: of many classes, one loses by chance.
    """
    return tuple(
        k
        for k, one in enumerate(gain.classes_simultaneous)
        if one.high < 0 and _POINTS * one.value < -margin_points
    )


def better_rival(
    gains: Mapping[str, ArmGain], baselines: Collection[str], synthetic: str
) -> str | None:
    """Return the baseline that gained most on test, if that is more than the synthetic arm gained.

    To compare with it instead would be unfair, since the best of many on test is so by luck too.

    Args:
        gains: arm name -> its gain over the best baseline.
        baselines: names of the arms without synthetic rows.
        synthetic: name of the best arm with them.
    """
    others = {
        name: round(gain.balanced_accuracy.value, 12)  # a mean of many terms may differ in a bit
        for name, gain in gains.items()
        if name in baselines
    }
    best = max(others, key=others.__getitem__, default=None)
    reached = round(gains[synthetic].balanced_accuracy.value, 12)
    return best if best is not None and others[best] > reached else None


def in_points(interval: Interval) -> Interval:
    """Return an interval of a gain in [-1, 1] in percentage points."""
    return Interval(_POINTS * interval.value, _POINTS * interval.low, _POINTS * interval.high)


def few_tests(class_names: Sequence[str], test_units: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the classes with too few test images for any verdict but no.

    Args:
        class_names: name of each label.
        test_units: test images of each class, those of one group counted once.
    """
    pairs = zip(class_names, test_units, strict=True)
    return tuple(name for name, units in pairs if units < MINIMUM_TEST_IMAGES)


def _is_shown(gain: Interval) -> bool:
    return round(gain.low, 12) > 0.0  # rounded: a mean of many terms may miss zero by the last bit


def _names(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
