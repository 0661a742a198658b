"""The search and the comparison, with classifiers that are right as often as a test says."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from pipeline.data.store import make_samples
from pipeline.downstream.arms import Arm, Pools, plan_arms
from pipeline.downstream.comparison import Comparison, HeldOut, compare
from pipeline.downstream.fitting import Pair, Predictions
from pipeline.downstream.training import Trainers
from pipeline.params import ArmName, EvaluateParams

LABELS = np.repeat([0, 1], 20)


class Told:
    """Trainers whose classifiers are wrong about so many images of each class."""

    def __init__(self, wrong: Callable[[Arm], int]) -> None:
        self.wrong = wrong

    def train(self, pairs: Sequence[Pair], on_done: Callable[[int, int], None]) -> dict[Pair, Any]:
        on_done(len(pairs), len(pairs))
        return {pair: self.result(self.wrong(pair[0])) for pair in pairs}

    def result(self, wrong: int) -> Predictions:
        found = np.where(np.arange(40) % 20 < wrong, 1 - LABELS, LABELS)
        chances = np.eye(2, dtype=np.float16)[found]
        none = np.zeros((0, 0), dtype=np.int64)
        return Predictions(found, found, chances, chances, none)


def compared(
    wrong: Callable[[Arm], int], *names: ArmName, training: tuple[int, ...] = (8, 12)
) -> Comparison:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    test = make_samples(images, LABELS, "test", "real")
    params = EvaluateParams(arms=names, seeds=2, bootstrap_resamples=100)
    families = plan_arms(names, params.mixed_shares, params.learning_rates)
    rows = HeldOut(LABELS, test, 2, (0,), training)
    trainers = cast(Trainers, Told(wrong))
    return compare(families, params, trainers, rows, lambda *_: None, lambda _: None)


def test_an_arm_on_top_of_other_images_trains_as_these_do_best() -> None:
    def wrong(arm: Arm) -> int:
        if arm.name == "base_images":
            return 1 if arm.mix == "cutmix" else 5
        if arm.name == "mixed_base":
            return 9 if arm.mix == "cutmix" else 2
        return 8

    found = compared(wrong, "real_augmented", "cutmix", "base_images", "mixed", "mixed_base")
    arms = {arm.name: arm for arm in found.arms}
    assert (arms["base_images"].mix, arms["mixed_base"].mix) == ("cutmix", "cutmix")
    assert arms["mixed_base"].strength == arms["base_images"].strength == 0.5
    assert sum(one.chosen for one in found.tried) == len(found.arms) == 5


def test_what_the_images_are_worth_is_told_by_an_arm_that_sees_no_others() -> None:
    def wrong(arm: Arm) -> int:
        if arm.real_fraction < 1:
            return 12
        return {"mixed_base": 1, "mixed": 4}.get(arm.name, 6)

    found = compared(wrong, "real_augmented", "base_images", "mixed", "mixed_base")
    assert found.last().synthetic.name == "mixed_base"
    assert found.worth is not None
    assert found.worth_arm is not None
    assert found.worth_arm.name == "mixed"


@pytest.mark.parametrize(
    ("training", "images"),
    [
        ((5, 5), [2, 4, 8, 10]),  # whole images: 1, 2 and 4 of 5 at a quarter, a half, three
        ((2, 2), [2, 4]),  # a quarter and a half are one image, three quarters are both
        ((2, 6), [3, 4, 6, 8]),
    ],
)
def test_the_learning_curve_tells_the_images_that_were_trained_on(training, images) -> None:
    trained = set()

    def wrong(arm: Arm) -> int:
        trained.add(arm.real_fraction)
        return round(8 / arm.real_fraction) - 4

    found = compared(wrong, "real_augmented", "mixed", training=training)
    assert found.worth is not None
    assert [point.real_images for point in found.worth.points] == images
    rows = [np.arange(n) for n in training]
    pools = Pools(tuple(rows), {})
    kept = [pools.fraction(f, np.random.default_rng(0)).real for f in sorted(trained)]
    assert [sum(map(len, one)) for one in kept] == images
