"""The regimes that were measured: which set, how much was gained, how sure that is."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.data.images import ImageMode
from pipeline.errors import InputError
from pipeline.params import ArmName

# No part of a stage's sources, on purpose: no setting follows from it and no stage writes what it
# says, so that another regime makes nothing stale.
REGIMES = Path(__file__).with_name("regimes.json")

Count = Annotated[int, Field(ge=1)]
# What the generator started from: nothing, the set's own unlabelled images, or a network that has
# learned from other people's images, which no baseline sees.
BaseKind = Literal["none", "pool", "elsewhere"]
Decision = Literal["use", "use_with_care", "do_not_use"]  # those of a verdict


class Regime(BaseModel):
    """A set on which arms that use the generator were compared with the best baseline.

    Gains are of balanced accuracy on test, tail gains of recall in the three thinnest classes; in
    points, with 95 % intervals.

    Attributes:
        name: for people.
        labelled: training images.
        classes: number of classes.
        smallest: training images of the smallest class.
        largest: training images of the largest class.
        base: what the generator started from.
        pool: unlabelled images that it learned from first; 0 where there are none.
        image_size_px: side of the square images.
        image_mode: L (grey) or RGB.
        way: the best arm that uses the generator, chosen on validation.
        best_baseline: the best arm that does not.
        gain_points: of `way` over `best_baseline`.
        gain_low: low end of its interval.
        gain_high: high end.
        tail_gain_points: the same in the thinnest classes.
        tail_low: low end of its interval.
        tail_high: high end.
        decision: of the verdict on all splits, which also asks for a gain over the arm's twin.
        minutes: that the run took.
        seeds: paired seeds of a split.
        splits: test sets, each with a generator of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1, max_length=60)]
    labelled: Count
    classes: Annotated[int, Field(ge=2)]
    smallest: Count
    largest: Count
    base: BaseKind
    pool: Annotated[int, Field(ge=0)]
    image_size_px: Annotated[int, Field(ge=8, le=128, multiple_of=4)]
    image_mode: ImageMode
    way: ArmName
    best_baseline: ArmName
    gain_points: float
    gain_low: float
    gain_high: float
    tail_gain_points: float
    tail_low: float
    tail_high: float
    decision: Decision
    minutes: Annotated[float, Field(gt=0)]
    seeds: Count
    splits: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.gain_low <= self.gain_points <= self.gain_high:
            raise ValueError("gain_points must lie between gain_low and gain_high")
        if not self.tail_low <= self.tail_gain_points <= self.tail_high:
            raise ValueError("tail_gain_points must lie between tail_low and tail_high")
        if self.decision != "do_not_use" and self.gain_low < 0:
            raise ValueError(f"decision is {self.decision}, though gain_low lies below 0")
        if not self.smallest <= self.labelled / self.classes <= self.largest:
            raise ValueError("labelled / classes must lie between smallest and largest")
        if (self.base == "pool") != bool(self.pool):
            raise ValueError("pool is for base = pool, which needs one")
        return self


def read_regimes(path: Path = REGIMES) -> tuple[Regime, ...]:
    """Return the measured regimes.

    Raises:
        InputError: the file is missing, damaged, or names a regime twice.
    """
    try:
        regimes = TypeAdapter(tuple[Regime, ...]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: not a list of measured regimes ({error})") from None
    twice = [name for name, count in Counter(one.name for one in regimes).items() if count > 1]
    if twice:
        raise InputError(f"{path}: two regimes named {twice[0]!r}; give each its own name")
    return regimes
