import numpy as np
import pytest

from pipeline.downstream.compare import Gain, paired_gain
from pipeline.errors import StageError


def compare(a, b, labels, classes=2, resamples=400, confidence=0.95, seed=0) -> Gain:
    random = np.random.default_rng(seed)
    return paired_gain(a, b, labels, classes, resamples, confidence, random)


def simulate(random, seeds: int, images: int, gain: float = 0.0):
    """Arms that err on the same hard images; the seed moves the level of each run."""
    labels = np.arange(images) % 2
    ease = random.uniform(0.4, 1.0, images)
    level = random.normal(0, 0.03, (2, seeds, 1))
    a = random.uniform(size=(seeds, images)) < ease - 0.1 + level[0]
    b = random.uniform(size=(seeds, images)) < ease - 0.1 + gain + level[1]
    return a, b, labels


def test_identical_predictions_gain_nothing_with_certainty() -> None:
    a, _, labels = simulate(np.random.default_rng(0), 4, 60)
    gain = compare(a, a, labels)
    for interval in (gain.balanced_accuracy, *gain.classes):
        assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert (gain.seeds, gain.images, gain.resamples, gain.confidence) == (4, 60, 400, 0.95)


def test_always_right_against_always_wrong_gains_one() -> None:
    labels = np.array([0, 0, 0, 1])
    wrong, right = np.zeros((3, 4), dtype=bool), np.ones((3, 4), dtype=bool)
    gain = compare(wrong, right, labels).balanced_accuracy
    assert (gain.value, gain.low, gain.high) == (1.0, 1.0, 1.0)
    assert compare(right, wrong, labels).balanced_accuracy.value == -1.0


def test_a_gain_in_one_class_only_is_shared_by_all() -> None:
    # Class 0 of 6 images gains wholly, class 1 of 2 images not at all: balanced, so one half.
    labels = np.array([0] * 6 + [1] * 2)
    a = np.zeros((2, 8), dtype=bool)
    gain = compare(a, np.tile(labels == 0, (2, 1)), labels)
    assert gain.balanced_accuracy.value == 0.5
    assert [interval.value for interval in gain.classes] == [1.0, 0.0]
    # Stratified by class: no resample can change the classes' weights.
    assert gain.balanced_accuracy.low == gain.balanced_accuracy.high == 0.5


def test_the_spread_over_images_has_its_closed_form() -> None:
    # One class, both seeds alike, a gain on a quarter of n images: binomial with p = 1/4.
    n = 400
    a = np.zeros((2, n), dtype=bool)
    b = np.tile(np.arange(n) < n // 4, (2, 1))
    gain = compare(a, b, np.zeros(n, dtype=np.int64), 1, 20_000, 0.6826895).balanced_accuracy
    deviation = np.sqrt(0.25 * 0.75 / n)
    assert gain.high - gain.low == pytest.approx(2 * deviation, rel=0.06)
    assert (gain.low + gain.high) / 2 == pytest.approx(0.25, abs=0.003)


def test_the_spread_over_seeds_has_its_closed_form() -> None:
    # Seed 0 gains on every image and seed 1 on none: a resample has 0, 1/2 or 1 (1/4, 1/2, 1/4).
    n = 10
    b = np.stack([np.ones(n, dtype=bool), np.zeros(n, dtype=bool)])
    labels = np.arange(n) % 2
    gain = compare(np.zeros_like(b), b, labels, confidence=0.9).balanced_accuracy
    assert (gain.value, gain.low, gain.high) == (0.5, 0.0, 1.0)
    # The seeds drawn are the same for all classes, so classes do not average them out.
    inner = compare(np.zeros_like(b), b, labels, confidence=0.4).balanced_accuracy
    assert (inner.low, inner.high) == (0.5, 0.5)


def test_more_images_narrow_the_interval() -> None:
    widths = []
    for images in (50, 800):
        a, b, labels = simulate(np.random.default_rng(1), 4, images, 0.05)
        gain = compare(a, b, labels).balanced_accuracy
        widths.append(gain.high - gain.low)
    assert widths[1] < 0.6 * widths[0]


def test_a_higher_confidence_widens_the_interval() -> None:
    a, b, labels = simulate(np.random.default_rng(1), 4, 100, 0.05)
    narrow = compare(a, b, labels, confidence=0.5).balanced_accuracy
    wide = compare(a, b, labels, confidence=0.99).balanced_accuracy
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairing_is_used() -> None:
    # The arms differ on few images; against a shuffled partner they differ on many.
    random = np.random.default_rng(2)
    a, _, labels = simulate(random, 4, 200)
    b = a.copy()
    b[:, :4] = True
    paired = compare(a, b, labels).balanced_accuracy
    shuffled = compare(a, b[:, random.permutation(200)], labels).balanced_accuracy
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_coverage_is_near_nominal() -> None:
    covered = 0
    trials = 200
    for trial in range(trials):
        a, b, labels = simulate(np.random.default_rng(trial), 10, 120)
        gain = compare(a, b, labels, resamples=300, confidence=0.9, seed=trial).balanced_accuracy
        covered += gain.low <= 0.0 <= gain.high
    assert 0.84 <= covered / trials <= 0.97


def test_the_seed_decides_the_resamples() -> None:
    a, b, labels = simulate(np.random.default_rng(1), 4, 100, 0.05)
    assert compare(a, b, labels, seed=1) == compare(a, b, labels, seed=1)
    assert compare(a, b, labels, seed=1) != compare(a, b, labels, seed=2)


def test_arms_that_do_not_pair_are_refused() -> None:
    a = np.zeros((2, 4), dtype=bool)
    with pytest.raises(StageError, match="do not pair"):
        compare(a, np.zeros((3, 4), dtype=bool), np.array([0, 0, 1, 1]))
    with pytest.raises(StageError, match="a class has no test image"):
        compare(a, a, np.zeros(4, dtype=np.int64))
