"""The search and the comparison, with classifiers that are right as often as a test says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.data.store import make_samples
from pipeline.downstream.arms import Arm, Pools, plan_arms
from pipeline.downstream.comparison import Comparison, HeldOut, compare
from pipeline.downstream.fitting import Pair, Predictions
from pipeline.downstream.training import Trainers
from pipeline.params import ArmName, EvaluateParams

LABELS = np.repeat([0, 1], 20)
MODULE = "pipeline.downstream.training"


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
    wrong: Callable[[Arm], int],
    *names: ArmName,
    training: tuple[int, ...] = (8, 12),
    trainers: type[Told] = Told,
    by_user: Callable[[Sequence[int]], dict[Pair, Predictions]] | None = None,
    max_seeds: int | None = None,
    groups: Sequence[str] | None = None,
) -> Comparison:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    test = make_samples(images, LABELS, "test", "real", groups)
    params = EvaluateParams(arms=names, seeds=2, bootstrap_resamples=100, max_seeds=max_seeds)
    families = plan_arms(names, params.mixed_shares, params.learning_rates)
    rows = HeldOut(LABELS, test, 2, (0,), training)
    told = cast(Trainers, trainers(wrong))
    return compare(families, params, told, rows, lambda *_: None, lambda _: None, by_user)


class Unlike(Told):
    """Test rows are another matter than validation rows: of those, `real` is wrong about 18."""

    def train(self, pairs: Sequence[Pair], on_done: Callable[[int, int], None]) -> dict[Pair, Any]:
        found = super().train(pairs, on_done)
        return {
            (arm, seed): replace(one, test=self.result(18).test) if arm.name == "real" else one
            for (arm, seed), one in found.items()
        }


def test_seeds_are_added_until_the_gain_over_the_twin_is_clear_too() -> None:
    wrong = {"real": 1, "real_augmented": 2, "mixed": 2}

    def told(arm: Arm) -> int:
        return wrong[arm.name]

    names: tuple[ArmName, ...] = ("real", "real_augmented", "mixed")
    found = compared(told, *names, trainers=Unlike, max_seeds=4)
    assert found.last().baseline.name == "real"
    assert [look.gain().balanced_accuracy.low > 0 for look in found.looks] == [True, True]
    assert [look.decided for look in found.looks] == [False, False]
    wrong["real_augmented"] = 19
    assert [
        look.decided for look in compared(told, *names, max_seeds=4, trainers=Unlike).looks
    ] == [True]


def test_images_of_one_group_count_once_for_what_can_be_found_and_for_the_gain() -> None:
    names: tuple[ArmName, ...] = ("real", "mixed")
    pairs = [f"patient {i // 2}" for i in range(40)]
    alone, grouped = (
        compared(lambda arm: 6 if arm.name == "real" else 2, *names, groups=one)
        for one in (None, pairs)
    )
    assert (alone.power.test_units, grouped.power.test_units) == (40, 20)
    assert grouped.power.minimum_detectable_points > alone.power.minimum_detectable_points
    assert "and 40 test images of 20 groups, a true gain" in grouped.power.sentence()
    assert "and 40 test images, a true gain" in alone.power.sentence()
    wide, narrow = (one.last().gain().standard_error for one in (grouped, alone))
    assert wide > 1.3 * narrow  # images of a pair are right together


class Backwards(Told):
    def train(self, pairs: Sequence[Pair], on_done: Callable[[int, int], None]) -> dict[Pair, Any]:
        return super().train(pairs[::-1], on_done)


@pytest.mark.parametrize("trainers", [Told, Backwards])
def test_of_equal_arms_the_first_is_the_best_whichever_was_done_first(trainers: Any) -> None:
    names: tuple[ArmName, ...] = ("real", "real_augmented", "cutmix", "mixed", "mixed_cutmix")
    found = compared(lambda arm: 4, *names, trainers=trainers)
    assert found.last().baseline.name == "real"
    assert found.last().synthetic.name == "mixed"
    assert [pair[0].name for pair in found.results if pair[1] == 0] == list(names)


def test_predictions_stand_in_the_order_that_was_asked_for(monkeypatch: Any) -> None:
    finished: list[Pair] = []

    def last_first(self: Trainers, pairs: Sequence[Pair]) -> Iterator[Pair]:
        for pair in pairs[::-1]:
            finished.append(pair)
            yield pair

    monkeypatch.setattr(f"{MODULE}.run_path", lambda runs, pair: pair)
    monkeypatch.setattr(f"{MODULE}.read_run", lambda path, _: path if path in finished else None)
    monkeypatch.setattr(Trainers, "_train_in_workers", last_first)
    trainers = object.__new__(Trainers)
    trainers.__dict__.update(
        _sources=SimpleNamespace(runs=Path("runs")),
        _device=torch.device("cpu"),
        _workers=2,
        bench=None,
    )
    asked: list[Pair] = [(Arm(name, "baseline"), 0) for name in ("real", "cutmix", "mixup")]
    assert list(trainers.train(asked, lambda *_: None)) == asked
    assert finished == asked[::-1]


def test_the_worth_is_not_told_by_a_script_of_the_users() -> None:
    names: tuple[ArmName, ...] = ("real_augmented", "mixed")

    def scripts(seeds: Sequence[int]) -> dict[Pair, Predictions]:
        arms = (
            Arm("mine", "baseline", by_user=True),
            Arm("mine_mixed", "synthetic", 0.5, added="synthetic", by_user=True),
        )
        return {(arm, seed): Told(len).result(1) for seed in seeds for arm in arms}

    found = compared(lambda arm: 12 if arm.real_fraction < 1 else 6, *names, by_user=scripts)
    assert found.last().synthetic.name == "mine_mixed"
    assert found.worth_arm is not None
    assert found.worth_arm.name == "mixed"
    assert found.worth is not None
    assert found.worth.worth == 0


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
