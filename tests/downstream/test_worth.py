import numpy as np
import pytest
from scipy.optimize import least_squares

from pipeline.downstream.worth import fit_power_laws, worth_in_images
from pipeline.errors import StageError

IMAGES = np.array([50.0, 100.0, 200.0, 400.0])


def law(n, a=0.9, b=0.6, c=0.4):
    return a - b * np.asarray(n, dtype=np.float64) ** -c


def measure(target, noise=0.0, seeds=4, seed=0, images=IMAGES):
    """Worth of an arm as good as `target` real images, along a known law."""
    random = np.random.default_rng(seed)
    accuracy = law(images)[:, None] + random.normal(0, noise, (len(images), seeds))
    synthetic = law(target) + random.normal(0, noise, seeds)
    return worth_in_images(images, accuracy, synthetic, int(images.max()), random)


def test_an_exact_law_is_read_back() -> None:
    worth = measure(540)
    assert worth.worth == pytest.approx(140, rel=0.05)
    assert worth.low == worth.high == worth.worth
    assert not worth.beyond
    assert [point.real_images for point in worth.points] == IMAGES.tolist()
    assert worth.points[-1].balanced_accuracy == pytest.approx(law(400))
    assert worth.sentence().startswith("The synthetic images are worth about 1")


def test_the_order_of_sizes_does_not_matter() -> None:
    random, order = np.random.default_rng(0), [2, 0, 3, 1]
    accuracy = law(IMAGES)[:, None] + random.normal(0, 0.003, (4, 3))
    synthetic = np.full(3, law(500))
    one, other = (
        worth_in_images(IMAGES[o], accuracy[o], synthetic, 400, np.random.default_rng(1))
        for o in ([0, 1, 2, 3], order)
    )
    assert one == other


def test_no_gain_is_worth_nothing() -> None:
    worth = measure(300)
    assert (worth.worth, worth.low, worth.high, worth.beyond) == (0.0, 0.0, 0.0, False)
    assert "worth no extra labelled images" in worth.sentence()


def test_more_than_the_curve_can_tell_is_capped_and_said() -> None:
    worth = measure(3000)
    assert (worth.worth, worth.beyond) == (pytest.approx(400), True)
    assert worth.sentence() == (
        "The synthetic images are worth 400 more labelled images or more, as many again as there "
        "are (interval from 400 on)."
    )


def test_a_flat_curve_is_no_yardstick() -> None:
    random = np.random.default_rng(0)
    flat = np.full((4, 3), 0.8)
    falling = np.array([0.85, 0.84, 0.83, 0.82])[:, None] + np.zeros((4, 3))
    for accuracy in (flat, falling):
        worth = worth_in_images(IMAGES, accuracy, np.full(3, 0.9), 400, random)
        assert (worth.worth, worth.low, worth.high, worth.beyond) == (None, None, None, False)
        assert len(worth.points) == 4
        assert "cannot be told" in worth.sentence()
    two = worth_in_images(
        IMAGES[2:], law(IMAGES[2:])[:, None] + np.zeros(2), flat[:2, 0], 400, random
    )
    assert two.worth is None


def test_seeds_that_differ_widen_the_interval_and_it_holds_the_truth_mostly() -> None:
    found = [measure(500, 0.002, seed=seed) for seed in range(60)]
    assert all(w.low <= w.worth <= w.high for w in found)
    assert np.mean([w.low <= 100 <= w.high for w in found]) > 0.75
    quiet = np.median([w.high - w.low for w in found])
    loud = np.median([(w := measure(500, 0.006, seed=s)).high - w.low for s in range(60)])
    assert loud > 1.5 * quiet


def test_the_points_carry_t_intervals() -> None:
    accuracy = np.array([[0.5, 0.7], [0.7, 0.7], [0.8, 0.8]])
    points = worth_in_images(
        IMAGES[1:], accuracy, np.array([0.8, 0.8]), 400, np.random.default_rng(0)
    ).points
    # Two seeds, 0.1 from their mean: t(0.975, 1) = 12.7 standard errors of 0.1, clipped.
    assert (points[0].low, points[0].high) == (0.0, 1.0)
    assert (points[1].low, points[1].high) == pytest.approx((0.7, 0.7))


def test_the_fit_is_as_good_as_a_descent_and_keeps_its_bounds() -> None:
    random = np.random.default_rng(3)
    sizes = IMAGES / 400
    curves = np.clip(law(IMAGES) + random.normal(0, 0.03, (30, 4)), 0, 1)
    a, b, c = fit_power_laws(sizes, curves)
    assert ((a <= 1) & (b >= 0) & (c >= 0.1) & (c <= 2)).all()
    for i, curve in enumerate(curves):
        ours = np.sum((a[i] - b[i] * sizes ** -c[i] - curve) ** 2)
        descent = least_squares(
            lambda p, y=curve: p[0] - p[1] * sizes ** -p[2] - y,
            (0.85, 0.05, 0.5),
            bounds=((-np.inf, 0, 0.1), (1, np.inf, 2)),
        )
        assert ours <= 2 * descent.cost * 1.01 + 1e-7


def test_what_does_not_pair_is_refused() -> None:
    random = np.random.default_rng(0)
    with pytest.raises(StageError, match="do not pair"):
        worth_in_images(IMAGES, np.zeros((4, 3)), np.zeros(2), 400, random)
    with pytest.raises(StageError, match="two seeds or more"):
        worth_in_images(IMAGES, np.zeros((4, 1)), np.zeros(1), 400, random)
    with pytest.raises(StageError, match="end with all 500"):
        worth_in_images(IMAGES, np.zeros((4, 2)), np.zeros(2), 500, random)


def test_other_test_images_widen_the_interval_as_far_as_they_move_the_gain() -> None:
    random = np.random.default_rng(0)
    accuracy, synthetic = law(IMAGES)[:, None] + np.zeros(4), np.full(4, law(540))

    def width(other: np.ndarray | None) -> float:
        worth = worth_in_images(IMAGES, accuracy, synthetic, 400, np.random.default_rng(1), other)
        assert worth.worth == pytest.approx(140, rel=0.05)
        return worth.high - worth.low

    together = np.tile(random.normal(0, 0.005, (300, 1)), (1, 5))
    apart = together.copy()
    apart[:, -1] += random.normal(0, 0.005, 300)
    assert width(None) == 0
    assert width(together) < 0.1 * width(apart)  # easier for the curve and the arm alike
    assert width(apart) > 50
    with pytest.raises(StageError, match=r"4 sizes and \(300, 4\) do not pair"):
        width(apart[:, 1:])
