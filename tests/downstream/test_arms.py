from dataclasses import replace

import numpy as np
import pytest

from pipeline.downstream.arms import (
    OF_BASE,
    OF_POOL,
    Arm,
    Draw,
    Family,
    Pools,
    draw_rows,
    make_pools,
    plan_arms,
    rows_kept,
)
from pipeline.errors import StageError
from pipeline.params import DEFAULT_ARMS, ELSEWHERE, ON_TOP_OF

# Real rows: class 0 has 0..7, class 1 has 8..9, class 2 has 10. Synthetic: 11..13 of 1, 14 of 2.
LABELS = np.array([0] * 8 + [1] * 2 + [2] + [1] * 3 + [2], dtype=np.int64)
SYNTHETIC = np.arange(len(LABELS)) >= 11
POOLS = make_pools(LABELS, SYNTHETIC, 3)
N = 20_000
RATES = (3e-3, 1e-3)
NAMES = ("real", "real_balanced", "real_augmented", "mixed", "pretrained", "synthetic_only")


def family(name: str) -> Family:
    planned = plan_arms((*NAMES, *DEFAULT_ARMS), (0.5, 0.25), RATES)
    return next(found for found in planned if found.arm.name == name)


def arm(name: str, **changes) -> Arm:
    return replace(family(name).arm, **changes)


def draws(one: Arm, pools: Pools = POOLS, seed: int = 0) -> Draw:
    return draw_rows(one, pools, N, np.random.default_rng(seed))


def draw(one: Arm, pools: Pools = POOLS, seed: int = 0) -> np.ndarray:
    return draws(one, pools, seed).rows()


def shares_of(rows: np.ndarray) -> np.ndarray:
    return np.bincount(LABELS[rows], minlength=3) / len(rows)


def test_arms_stand_in_order_and_once() -> None:
    planned = plan_arms(("real", "mixed", "real", "synthetic_only"), (0.25,), RATES)
    assert [one.arm.name for one in planned] == ["real", "mixed", "synthetic_only"]
    assert [one.arm.role for one in planned] == ["baseline", "synthetic", "synthetic_only"]
    assert [one.arm.share for one in planned] == [None, 0.25, 1.0]
    assert [one.arm.balanced for one in planned] == [False, True, True]


@pytest.mark.parametrize(
    ("names", "policy"),
    [
        (("real", "mixed"), "none"),
        (("real", "real_augmented", "real_augmented_strong", "mixed"), "light"),
        (("real_augmented_strong", "mixed"), "strong"),
    ],
)
def test_a_mixed_arm_is_augmented_only_as_far_as_a_baseline_is(names, policy) -> None:
    assert plan_arms(names, (0.5,), RATES)[-1].arm.augmentation == policy


def test_every_arm_is_searched_over_the_same_rates_and_then_its_own_knob() -> None:
    for one in plan_arms(DEFAULT_ARMS, (0.5, 0.25, 0.75), RATES):
        first = one.first_round()
        assert [found.learning_rate for found in first] == list(RATES)
        assert first[0] == one.arm
        second = one.second_round(first[1])
        assert second[0] == first[1]
        assert {found.learning_rate for found in second} == {RATES[1]}
        assert len(set(second)) == (3 if one.field else 1)
        assert len({found.key() for found in (*first, *second)}) == len({*first, *second})


FOUND = (*OF_POOL, OF_BASE)  # real rows from elsewhere


def test_params_know_which_arms_need_other_images() -> None:
    assert FOUND == ELSEWHERE
    planned = [one.arm for one in plan_arms(DEFAULT_ARMS, (0.5,), RATES)]
    assert {one.name: one.beside for one in planned if one.beside} == ON_TOP_OF


def test_arms_of_found_rows_may_train_as_each_other_baseline_does() -> None:
    of_found = [one for one in plan_arms(DEFAULT_ARMS, (0.5,), RATES) if one.arm.added in FOUND]
    assert len(of_found) == len(FOUND)
    for one in of_found:
        best = replace(one.arm, learning_rate=RATES[1], share=0.25)
        tried = one.third_round(best)
        assert tried[0] == best
        assert [(found.augmentation, found.mix, found.strength) for found in tried[1:]] == [
            ("strong", "none", 0.0),
            ("light", "mixup", 0.2),
            ("light", "cutmix", 0.5),
        ]
        assert {(found.learning_rate, found.share) for found in tried} == {(RATES[1], 0.25)}


def test_no_other_arm_and_no_way_that_no_baseline_goes() -> None:
    for one in plan_arms(DEFAULT_ARMS, (0.5,), RATES):
        assert one.arm.added in FOUND or one.third_round(one.arm) == (one.arm,)
    lone = plan_arms(("real_augmented", "pseudo_labels"), (0.5,), RATES)[1]
    assert lone.third_round(lone.arm) == (lone.arm,)
    strong = plan_arms(("real_augmented_strong", "pseudo_labels"), (0.5,), RATES)[1]
    assert strong.third_round(strong.arm) == (strong.arm,)


def test_only_synthetic_arms_see_synthetic_rows() -> None:
    for one in plan_arms(DEFAULT_ARMS, (0.5,), RATES):
        assert (one.arm.added == "synthetic") == (one.arm.role != "baseline")


def test_real_draws_rows_uniformly() -> None:
    rows = draw(arm("real"))
    assert not SYNTHETIC[rows].any()
    np.testing.assert_allclose(np.bincount(rows, minlength=11) / N, 1 / 11, atol=0.01)


def test_balanced_draws_classes_uniformly_and_rows_within() -> None:
    rows = draw(arm("real_balanced"))
    assert not SYNTHETIC[rows].any()
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    within = np.bincount(rows[LABELS[rows] == 0], minlength=8) / (LABELS[rows] == 0).sum()
    np.testing.assert_allclose(within, 1 / 8, atol=0.02)


def test_mixed_draws_the_share_of_each_class_that_has_synthetic_rows() -> None:
    rows = draw(arm("mixed", share=0.25))
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    for label, share in ((0, 0.0), (1, 0.25), (2, 0.25)):
        assert SYNTHETIC[rows][LABELS[rows] == label].mean() == pytest.approx(share, abs=0.02)


def test_rows_of_other_kinds_are_no_real_rows() -> None:
    smote = np.arange(len(LABELS)) == 10
    pools = make_pools(LABELS, SYNTHETIC, 3, {"smote": smote})
    assert [len(rows) for rows in pools.real] == [8, 2, 0]
    rows = draw(Arm("smote", "baseline", 0.5, "none", True, "smote"), pools)
    assert not SYNTHETIC[rows].any()
    assert (rows[LABELS[rows] == 2] == 10).all()


def test_of_two_added_kinds_each_is_drawn_as_often() -> None:
    beside = np.array([11, 12, 13])  # of class 1
    none = beside[:0]
    synthetic = (none, np.array([8, 9, 9]), np.array([14]))
    pools = Pools(POOLS.real, {"synthetic": synthetic, OF_BASE: (none, beside, none)})
    one = arm("mixed_base", share=0.8)
    assert one.synthetic_share() == pytest.approx(0.4 / 0.6)  # two kinds of three
    found = draws(one, pools)
    rows = found.added[found.use_added & (LABELS[found.rows()] == 1)]
    of_beside = np.isin(rows, beside)
    assert of_beside.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(
        np.bincount(rows[of_beside] - 11, minlength=3) / of_beside.sum(), 1 / 3, atol=0.03
    )
    assert (rows[~of_beside] == 9).mean() == pytest.approx(2 / 3, abs=0.03)
    # Class 2 has synthetic rows alone, class 0 real ones.
    of_two = found.rows()[found.use_added & (LABELS[found.rows()] == 2)]
    assert set(of_two) == {14}
    assert not found.use_added[LABELS[found.real] == 0].any()
    # Real rows stay those of the other arms.
    assert (found.real == draws(arm("mixed")).real).all()
    # So do added ones, where both draw one of the kind.
    twin = draws(arm("base_images", share=0.4), pools)
    same = twin.use_added & (LABELS[twin.rows()] == 1)
    assert same.any()
    assert (found.rows()[same] == twin.rows()[same]).all()
    mixed = draws(arm("mixed", share=0.8), pools)
    same = found.use_added & (found.added < 10) & (LABELS[found.rows()] == 1)
    assert (found.rows()[same] == mixed.rows()[same]).all()


def test_an_arm_is_augmented_and_mixed_as_another() -> None:
    one = arm("mixed_base", share=0.25, learning_rate=0.5)
    changed = one.trained_as(arm("mixed_cutmix"))
    assert changed == replace(one, mix="cutmix", strength=0.5)


def test_without_synthetic_rows_an_arm_of_two_kinds_is_its_twin() -> None:
    added = {OF_BASE: tuple(POOLS.added["synthetic"])}
    pools = Pools(POOLS.real, added)
    assert (draw(arm("mixed_base"), pools) == draw(arm("base_images"), pools)).all()
    assert (draw(arm("mixed_pool"), pools) == draw(arm("real_augmented"), pools)).all()


def test_synthetic_only_draws_from_its_classes_alone() -> None:
    rows = draw(arm("synthetic_only"))
    assert SYNTHETIC[rows].all()
    np.testing.assert_allclose(shares_of(rows), [0, 0.5, 0.5], atol=0.015)


def test_pretrained_sees_synthetic_rows_first_and_real_ones_after() -> None:
    one = arm("pretrained", share=0.25)
    for step in range(8):
        rows = draw(one.at_step(step, 8))
        assert (SYNTHETIC[rows] == ((LABELS[rows] > 0) & (step < 2))).all()
    assert arm("mixed").at_step(0, 8) == arm("mixed")


def test_arms_are_paired_draw_by_draw() -> None:
    balanced, augmented = draw(arm("real_balanced")), draw(arm("real_augmented"))
    mixed = draw(arm("mixed"))
    assert (balanced == augmented).all()
    assert (LABELS[mixed] == LABELS[balanced]).all()
    served_real = ~SYNTHETIC[mixed]
    assert (mixed[served_real] == balanced[served_real]).all()
    # A larger share only turns further draws synthetic.
    assert (SYNTHETIC[draw(arm("mixed", share=0.25))] <= SYNTHETIC[mixed]).all()


def test_without_synthetic_rows_mixed_is_the_augmented_baseline() -> None:
    pools = make_pools(LABELS[:11], SYNTHETIC[:11], 3)
    assert (draw(arm("mixed"), pools) == draw(arm("real_augmented"), pools)).all()


def test_a_class_with_synthetic_rows_only_serves_those() -> None:
    pools = Pools((POOLS.real[0], POOLS.real[1], POOLS.real[2][:0]), POOLS.added)
    rows = draw(arm("mixed", share=0.25), pools)
    assert SYNTHETIC[rows][LABELS[rows] == 2].all()
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    found = shares_of(draw(arm("real_balanced"), pools))
    np.testing.assert_allclose(found, [0.5, 0.5, 0], atol=0.015)


def test_fractions_are_nested_and_leave_no_class_empty() -> None:
    assert rows_kept(0.5, 5) == 2
    assert rows_kept(0.1, 2) == 1  # one at least
    quarter, half = (POOLS.fraction(f, np.random.default_rng(3)) for f in (0.25, 0.5))
    assert [len(rows) for rows in quarter.real] == [2, 1, 1]
    assert [len(rows) for rows in half.real] == [4, 1, 1]
    for few, more in zip(quarter.real, half.real, strict=True):
        assert set(few) <= set(more)
    assert quarter.added == POOLS.added


def test_the_generator_decides() -> None:
    one = arm("mixed")
    assert (draw(one, seed=1) == draw(one, seed=1)).all()
    assert (draw(one, seed=1) != draw(one, seed=2)).any()


def test_an_arm_without_rows_is_refused() -> None:
    empty = Pools(POOLS.real, {"synthetic": tuple(rows[:0] for rows in POOLS.real)})
    with pytest.raises(StageError, match="synthetic_only: there are no rows to draw from"):
        draw(arm("synthetic_only"), empty)


def test_a_twin_is_a_baseline_that_trains_alike() -> None:
    planned = {one.arm.name: one.arm for one in plan_arms(DEFAULT_ARMS, (0.5,), RATES)}
    for one in planned.values():
        twin = one.twin()
        if one.role != "synthetic":
            assert twin is None
        else:
            assert twin is not None
            other = planned[twin]
            assert other.role == "baseline"
            assert (other.augmentation, other.mix) == (one.augmentation, one.mix)
            assert other.added == one.beside
    assert planned["mixed_cutmix"].twin() == "cutmix"
    assert planned["mixed_mixup"].twin() == "mixup"
    assert planned["mixed_pool"].twin() == "pseudo_labels_soft"
    assert planned["mixed_base"].twin() == "base_images"
