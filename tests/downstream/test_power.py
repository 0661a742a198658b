import numpy as np
import pytest
from oracles.outcomes import draw_outcomes

from pipeline.downstream.compare import paired_gains
from pipeline.downstream.power import Power, discordance, minimum_detectable, seeds_for
from pipeline.errors import StageError


def as_predictions(split, arm="0"):
    classes = split.labels.max() + 1
    return np.where(split.correct[arm], split.labels, (split.labels + 1) % classes)


def test_it_shrinks_with_images_seeds_and_agreement() -> None:
    base = minimum_detectable([20] * 5, 4, 0.1, 0.01, 0.95)
    assert minimum_detectable([80] * 5, 4, 0.1, 0.01, 0.95) < 0.8 * base
    assert minimum_detectable([20] * 5, 16, 0.1, 0.01, 0.95) < base
    assert minimum_detectable([20] * 5, 4, 0.02, 0.01, 0.95) < 0.8 * base
    assert minimum_detectable([20] * 5, 4, 0.1, 0.05, 0.95) > 1.2 * base
    assert minimum_detectable([20] * 5, 4, 0.1, 0.01, 0.99) > base
    assert minimum_detectable([20] * 5, 4, 0.1, 0.01, 0.95, 0.95) > base
    assert minimum_detectable([1, 1], 2, 1.0, 0.25, 0.95) == 100.0


def test_thin_classes_count_most() -> None:
    even = minimum_detectable([50] * 4, 4, 0.1, 0.01, 0.95)
    assert minimum_detectable([95, 95, 5, 5], 4, 0.1, 0.01, 0.95) > 1.4 * even


def test_the_stated_gain_is_found_about_four_times_of_five() -> None:
    # The truth is told (a pilot of 40 seeds and many images), so the formula alone is tried.
    random = np.random.default_rng(0)
    pilot = draw_outcomes(random, 40, 400)
    share, seed_sd = discordance(as_predictions(pilot), pilot.labels)
    points = minimum_detectable([30] * 5, 4, share, seed_sd, 0.95)
    trials, found = 150, 0
    for _ in range(trials):
        split = draw_outcomes(random, 4, 30, gain=points / 100)
        gain = paired_gains([split], "0", ["1"], 5, [0], 200, 0.95, random)["1"]
        found += gain.balanced_accuracy.low > 0
    # A standard error of 3 %, and a formula that is a few points off.
    assert 0.68 < found / trials < 0.92


def test_discordance_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    predicted = np.stack([labels, labels])
    predicted[1, 0] = 1  # one image of four, none of two: mean 1 / 8
    share, _ = discordance(predicted, labels)
    assert share == pytest.approx((6 / 8 + 0.5) / 7)
    # Which wrong class it is does not matter, and being wrong together is no disagreement.
    three = np.array([0, 1, 2])
    same, _ = discordance(np.array([[1, 1, 2], [2, 1, 2]]), three)
    assert same == pytest.approx(0.5 / 4)


def test_the_seed_deviation_is_that_of_whole_trainings() -> None:
    random = np.random.default_rng(1)
    still = draw_outcomes(random, 12, 300, class_sd=0.0)
    moved = draw_outcomes(random, 12, 300, class_sd=0.4)
    sds = [discordance(as_predictions(split), split.labels)[1] for split in (still, moved)]
    # 0.4 in the latent is 8.4 points of a class (density of the latent at 0.8 times 0.4), twice
    # for two trainings, over five classes.
    assert 0.03 < sds[1] < 0.085
    assert sds[0] < 0.4 * sds[1]


def test_agreement_among_few_is_no_proof_and_stays_within_bounds() -> None:
    labels = np.arange(6) % 2
    share, seed_sd = discordance(np.stack([labels, labels]), labels)
    assert share == pytest.approx(0.5 / 7)
    assert 0 < seed_sd <= 0.25
    apart = np.stack([labels, 1 - labels])
    assert discordance(apart, labels) == (pytest.approx(6.5 / 7), 0.25)


def test_seeds_for_is_the_fewest_that_do() -> None:
    args = ([30] * 5, 0.1, 0.02, 0.95)
    seeds = seeds_for(5.0, *args)
    assert seeds is not None
    assert minimum_detectable(args[0], seeds, *args[1:]) <= 5.0
    assert minimum_detectable(args[0], seeds - 1, *args[1:]) > 5.0
    assert seeds_for(0.1, *args) is None


def test_the_sentence_says_what_and_with_what() -> None:
    sentence = Power(2.34, 0.8, 0.1, 4, 300, 300).sentence()
    assert "4 seeds and 300 test images" in sentence
    assert "2.3 points" in sentence
    assert "80 of 100" in sentence


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(StageError, match="it takes two seeds"):
        minimum_detectable([10, 10], 1, 0.1, 0.01, 0.95)
    with pytest.raises(StageError, match="discordant share 0"):
        minimum_detectable([10, 10], 2, 0.0, 0.01, 0.95)
    with pytest.raises(StageError, match="do not pair"):
        discordance(np.zeros((1, 3), dtype=np.int64), np.zeros(3, dtype=np.int64))
    with pytest.raises(StageError, match="no validation rows"):
        discordance(np.zeros((2, 0), dtype=np.int64), np.zeros(0, dtype=np.int64))
