"""The search and the comparison, with classifiers that are right as often as a test says."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from pipeline.data.store import make_samples
from pipeline.downstream.arms import Arm, plan_arms
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


def compared(wrong: Callable[[Arm], int], *names: ArmName) -> Comparison:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    test = make_samples(images, LABELS, "test", "real")
    params = EvaluateParams(arms=names, seeds=2, bootstrap_resamples=100)
    families = plan_arms(names, params.mixed_shares, params.learning_rates)
    rows = HeldOut(LABELS, test, 2, (0,), 20)
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
