import numpy as np
import pytest

from pipeline.downstream.arms import Arm, Pools, draw_rows, make_pools, plan_arms
from pipeline.errors import StageError

# Real rows: class 0 has 0..7, class 1 has 8..9, class 2 has 10. Synthetic: 11..13 of 1, 14 of 2.
LABELS = np.array([0] * 8 + [1] * 2 + [2] + [1] * 3 + [2], dtype=np.int64)
SYNTHETIC = np.arange(len(LABELS)) >= 11
POOLS = make_pools(LABELS, SYNTHETIC, 3)
N = 20_000


def arm(name: str, shares: tuple[float, ...] = (0.25, 0.5)) -> Arm:
    planned = plan_arms(
        ("real", "real_balanced", "real_augmented", "mixed", "synthetic_only"), shares
    )
    return next(found for found in planned if found.name == name)


def draw(name: str, pools: Pools = POOLS, seed: int = 0) -> np.ndarray:
    return draw_rows(arm(name), pools, N, np.random.default_rng(seed))


def shares_of(rows: np.ndarray) -> np.ndarray:
    return np.bincount(LABELS[rows], minlength=3) / len(rows)


def test_arms_are_spelt_out_in_order() -> None:
    planned = plan_arms(("real", "real_augmented_strong", "mixed", "synthetic_only"), (0.25, 0.125))
    assert [a.name for a in planned] == [
        "real",
        "real_augmented_strong",
        "mixed_25",
        "mixed_12.5",
        "synthetic_only",
    ]
    assert [a.role for a in planned] == ["baseline", "baseline", "mixed", "mixed", "synthetic_only"]
    assert [a.share for a in planned] == [None, None, 0.25, 0.125, 1.0]
    assert [a.balanced for a in planned] == [False, True, True, True, True]


def test_repeated_arms_and_shares_are_trained_once() -> None:
    planned = plan_arms(("real", "mixed", "real", "mixed"), (0.5, 0.5))
    assert [a.name for a in planned] == ["real", "mixed_50"]


@pytest.mark.parametrize(
    ("names", "policy"),
    [
        (("real", "mixed"), "none"),
        (("real", "real_augmented", "real_augmented_strong", "mixed"), "light"),
        (("real_augmented_strong", "mixed"), "strong"),
    ],
)
def test_a_mixed_arm_is_augmented_only_as_far_as_a_baseline_is(names, policy) -> None:
    assert plan_arms(names, (0.5,))[-1].augmentation == policy


def test_real_draws_rows_uniformly() -> None:
    rows = draw("real")
    assert not SYNTHETIC[rows].any()
    np.testing.assert_allclose(np.bincount(rows, minlength=11) / N, 1 / 11, atol=0.01)


def test_balanced_draws_classes_uniformly_and_rows_within() -> None:
    rows = draw("real_balanced")
    assert not SYNTHETIC[rows].any()
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    within = np.bincount(rows[LABELS[rows] == 0], minlength=8) / (LABELS[rows] == 0).sum()
    np.testing.assert_allclose(within, 1 / 8, atol=0.02)


def test_mixed_draws_the_share_of_each_class_that_has_synthetic_rows() -> None:
    rows = draw("mixed_25")
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    for label, share in ((0, 0.0), (1, 0.25), (2, 0.25)):
        assert SYNTHETIC[rows][LABELS[rows] == label].mean() == pytest.approx(share, abs=0.02)


def test_synthetic_only_draws_from_its_classes_alone() -> None:
    rows = draw("synthetic_only")
    assert SYNTHETIC[rows].all()
    np.testing.assert_allclose(shares_of(rows), [0, 0.5, 0.5], atol=0.015)


def test_arms_are_paired_draw_by_draw() -> None:
    balanced, augmented, mixed = draw("real_balanced"), draw("real_augmented"), draw("mixed_50")
    assert (balanced == augmented).all()
    assert (LABELS[mixed] == LABELS[balanced]).all()
    served_real = ~SYNTHETIC[mixed]
    assert (mixed[served_real] == balanced[served_real]).all()
    # A larger share only turns further draws synthetic.
    assert (SYNTHETIC[draw("mixed_25")] <= SYNTHETIC[mixed]).all()


def test_without_synthetic_rows_mixed_is_the_augmented_baseline() -> None:
    pools = make_pools(LABELS[:11], SYNTHETIC[:11], 3)
    assert (draw("mixed_50", pools) == draw("real_augmented", pools)).all()


def test_a_class_with_synthetic_rows_only_serves_those() -> None:
    pools = Pools((POOLS.real[0], POOLS.real[1], POOLS.real[2][:0]), POOLS.synthetic)
    rows = draw("mixed_25", pools)
    assert SYNTHETIC[rows][LABELS[rows] == 2].all()
    np.testing.assert_allclose(shares_of(rows), 1 / 3, atol=0.015)
    np.testing.assert_allclose(shares_of(draw("real_balanced", pools)), [0.5, 0.5, 0], atol=0.015)


def test_the_generator_decides() -> None:
    assert (draw("mixed_50", seed=1) == draw("mixed_50", seed=1)).all()
    assert (draw("mixed_50", seed=1) != draw("mixed_50", seed=2)).any()


def test_an_arm_without_rows_is_refused() -> None:
    empty = Pools(POOLS.real, tuple(rows[:0] for rows in POOLS.synthetic))
    with pytest.raises(StageError, match="synthetic_only: there are no rows to draw from"):
        draw("synthetic_only", empty)
