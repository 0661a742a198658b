from dataclasses import replace

import numpy as np
import pytest
from oracles.outcomes import draw_outcomes
from scipy.stats import t

from pipeline.downstream.compare import (
    ArmGain,
    SplitOutcomes,
    count_units,
    paired_gains,
    resampled_accuracies,
    unseen_difference,
)
from pipeline.errors import StageError


def outcomes(labels, **correct) -> SplitOutcomes:
    ids = np.array([f"{i:05d}" for i in range(len(labels))])
    return SplitOutcomes(np.asarray(labels), ids, correct)


def gains(splits, others=("b",), classes=2, tail=(0,), confidence=0.95, seed=0, resamples=400):
    splits = [splits] if isinstance(splits, SplitOutcomes) else splits
    random = np.random.default_rng(seed)
    first = "0" if "0" in splits[0].correct else "a"
    return paired_gains(splits, first, others, classes, tail, resamples, confidence, random)


def compare(a, b, labels, classes=2, **settings) -> ArmGain:
    return gains(outcomes(labels, a=a, b=b), classes=classes, **settings)["b"]


def ends(interval):
    return interval.value, interval.low, interval.high


def test_identical_predictions_gain_nothing_with_the_allowance_for_what_was_not_seen() -> None:
    a = np.random.default_rng(0).uniform(size=(4, 60)) < 0.8
    gain = compare(a, a, np.arange(60) % 2)
    # None of n images differs: exactly what Clopper and Pearson allow for 0 of n.
    for interval, n in ((gain.balanced_accuracy, 60), (gain.tail, 30), (gain.classes[1], 30)):
        allowance = 1 - 0.025 ** (1 / n)
        assert ends(interval) == pytest.approx((0.0, -allowance, allowance))
    assert gain.standard_error == 0.0
    np.testing.assert_array_equal(gain.draws, np.zeros(400))
    assert gain.classes_simultaneous[0].high >= gain.classes[0].high


def test_always_right_against_always_wrong_gains_one() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    wrong, right = np.zeros((3, 5), dtype=bool), np.ones((3, 5), dtype=bool)
    gain = compare(wrong, right, labels)
    assert ends(gain.balanced_accuracy) == pytest.approx((1.0, 0.025 ** (1 / 5), 1.0))
    # The lower end of Clopper and Pearson for 3 of 3.
    assert ends(gain.classes[0]) == pytest.approx((1.0, 0.025 ** (1 / 3), 1.0))
    assert compare(right, wrong, labels).balanced_accuracy.value == -1.0


def test_a_gain_in_one_class_only_is_shared_by_all() -> None:
    # Class 0 of 6 images gains wholly, class 1 of 2 images not at all: balanced, so one half.
    labels = np.array([0] * 6 + [1] * 2)
    gain = compare(np.zeros((2, 8), dtype=bool), np.tile(labels == 0, (2, 1)), labels, tail=(1,))
    assert gain.balanced_accuracy.value == pytest.approx(0.5)
    assert [interval.value for interval in gain.classes] == pytest.approx([1.0, 0.0])
    assert gain.tail.value == 0.0
    # Stratified: no resample changes the weights of the classes.
    assert gain.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_spread_over_images_has_its_closed_form() -> None:
    # Seeds alike, a gain on a quarter of n images: a mean of n, with n - 1 below.
    n = 400
    b = np.tile(np.arange(n) < n // 4, (2, 1))
    gain = compare(np.zeros((2, n), dtype=bool), b, np.zeros(n, dtype=np.int64), 1, resamples=9000)
    assert gain.standard_error == pytest.approx(np.sqrt(0.25 * 0.75 / (n - 1)))
    half = t.ppf(0.975, n - 1) * gain.standard_error
    assert gain.balanced_accuracy.low == pytest.approx(0.25 - half, abs=0.004)
    assert gain.balanced_accuracy.high == pytest.approx(0.25 + half, abs=0.004)
    assert gain.draws.std() == pytest.approx(gain.standard_error)


def test_the_spread_over_seeds_is_the_t_interval() -> None:
    # All images of a seed gain or none: S numbers, and the t interval with S - 1.
    n, won = 300, np.array([True, True, True, False, True])
    b = np.tile(won[:, None], (1, n))
    gain = compare(np.zeros_like(b), b, np.arange(n) % 2, resamples=9000)
    error = won.std(ddof=1) / np.sqrt(5)
    assert gain.standard_error == pytest.approx(error)
    assert gain.balanced_accuracy.low == pytest.approx(0.8 - t.ppf(0.975, 4) * error, abs=0.03)
    assert gain.balanced_accuracy.high == 1.0  # clipped


def test_the_variance_agrees_with_the_two_way_layout() -> None:
    # One class: (MS_seeds + MS_images - MS_both) / (S n), the textbook's mean squares.
    random = np.random.default_rng(3)
    level = np.array([0.1, -0.1, 0.2, -0.2])[:, None] + random.uniform(-0.3, 0.3, 50)
    b = random.uniform(size=(4, 50)) < 0.5 + level
    d = b.astype(float)
    seeds, images = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    ms_seeds = 50 * np.sum((seeds - d.mean()) ** 2) / 3
    ms_images = 4 * np.sum((images - d.mean()) ** 2) / 49
    ms_both = np.sum((d - seeds - images + d.mean()) ** 2) / (3 * 49)
    assert ms_seeds > ms_both  # else nothing is left of the seeds, and this shows nothing
    gain = compare(np.zeros_like(b), b, np.zeros(50, dtype=np.int64), 1)
    expected = np.sqrt((ms_seeds + ms_images - ms_both) / 200)
    assert gain.standard_error == pytest.approx(expected)


def test_a_split_seen_twice_tells_no_more_about_images() -> None:
    # Two splits with the same test images and outcomes: as wide as one split of agreeing seeds.
    one = draw_outcomes(np.random.default_rng(1), 1, 40)
    twice = gains([one, one], ["1"], 5)["1"]
    seeds = replace(one, correct={arm: np.tile(c, (2, 1)) for arm, c in one.correct.items()})
    assert twice.standard_error == pytest.approx(gains(seeds, ["1"], 5)["1"].standard_error)
    # Under other ids they count as other images, and halve the variance.
    other = replace(one, ids=np.char.add("x", one.ids))
    apart = gains([one, other], ["1"], 5)["1"]
    assert apart.standard_error == pytest.approx(twice.standard_error / np.sqrt(2), rel=0.02)
    assert apart.balanced_accuracy.value == pytest.approx(twice.balanced_accuracy.value)


def test_splits_that_disagree_widen_the_interval() -> None:
    random = np.random.default_rng(5)
    a = random.uniform(size=(3, 80)) < 0.6
    labels = np.arange(80) % 2
    better, worse = a | (random.uniform(size=80) < 0.5), a & (random.uniform(size=80) < 0.5)
    same = gains([outcomes(labels, a=a, b=better)] * 2)["b"]
    mixed = gains([outcomes(labels, a=a, b=better), outcomes(labels, a=a, b=worse)])["b"]
    assert mixed.standard_error > 3 * same.standard_error


def test_all_arms_and_all_classes_at_once_are_no_narrower() -> None:
    split = draw_outcomes(np.random.default_rng(2), 4, 60, arms=6)
    many = gains(split, [str(arm) for arm in range(1, 7)], 5)
    wider = 0
    for gain in many.values():
        for own, at_once in (
            (gain.balanced_accuracy, gain.simultaneous),
            *zip(gain.classes, gain.classes_simultaneous, strict=True),
        ):
            assert at_once.low <= own.low <= own.value <= own.high <= at_once.high
        own, at_once = gain.balanced_accuracy, gain.simultaneous
        wider += at_once.high - at_once.low > 1.15 * (own.high - own.low)
    assert wider == 6
    # Copies of one arm are one question: the correction sees that, and Bonferroni would not.
    copies = replace(split, correct={k: split.correct[min(k, "1")] for k in split.correct})
    like = gains(copies, [str(arm) for arm in range(1, 7)], 5, resamples=4000)["1"]
    own, at_once = like.balanced_accuracy, like.simultaneous
    assert at_once.high - at_once.low == pytest.approx(own.high - own.low, rel=0.05)


def test_more_images_and_a_lower_confidence_narrow_the_interval() -> None:
    def width(images, confidence=0.95):
        split = draw_outcomes(np.random.default_rng(1), 4, images, class_sd=0.0)
        found = gains(split, ["1"], 5, confidence=confidence)["1"].balanced_accuracy
        return found.high - found.low

    assert width(400) < 0.6 * width(25)
    assert width(50, 0.5) < 0.6 * width(50) < width(50) < width(50, 0.99)


def test_pairing_is_used() -> None:
    # The arms differ on few images; against a shuffled partner they differ on many.
    random = np.random.default_rng(2)
    a = random.uniform(size=(4, 200)) < random.uniform(0.3, 1, 200)
    b = a.copy()
    b[:, :4] = True
    labels = np.arange(200) % 2
    paired = compare(a, b, labels).standard_error
    assert paired < 0.5 * compare(a, b[:, random.permutation(200)], labels).standard_error


def test_false_gains_are_as_rare_as_stated_with_few_seeds() -> None:
    trials, wrong = 150, []
    for trial in range(trials):
        split = draw_outcomes(np.random.default_rng(trial), 3, 20, arms=3)
        found = gains(split, ["1", "2", "3"], 5, seed=trial, resamples=200)
        for gain in found.values():
            overall = gain.balanced_accuracy
            wrong.append(overall.low > 0 or overall.high < 0)
    # Both sides: 5 % is meant; 450 correlated trials have a standard error of about 1.3 %.
    assert 0.005 < np.mean(wrong) < 0.085


def test_the_seed_decides_the_resamples_and_arms_do_not_move_each_other() -> None:
    split = draw_outcomes(np.random.default_rng(1), 4, 30, arms=2)
    first, again = gains(split, ["1"], 5, seed=1)["1"], gains(split, ["1"], 5, seed=1)["1"]
    np.testing.assert_array_equal(first.draws, again.draws)
    assert first.balanced_accuracy == again.balanced_accuracy
    assert gains(split, ["1"], 5, seed=2)["1"].balanced_accuracy != first.balanced_accuracy
    beside = gains(split, ["1", "2"], 5, seed=1)["1"]
    np.testing.assert_allclose(beside.draws, first.draws)


def test_a_single_test_image_does_not_break_it() -> None:
    a = np.zeros((2, 11), dtype=bool)
    b = np.random.default_rng(0).uniform(size=(2, 11)) < 0.3
    gain = compare(a, b, np.array([0] * 10 + [1]), tail=(1,))
    for interval in (gain.balanced_accuracy, gain.tail, *gain.classes_simultaneous):
        assert np.isfinite(ends(interval)).all()
    assert gain.classes[1].high - gain.classes[1].low >= 0.975


def test_what_does_not_pair_is_refused() -> None:
    a, labels = np.zeros((2, 4), dtype=bool), np.array([0, 0, 1, 1])
    with pytest.raises(StageError, match="do not pair"):
        compare(a, np.zeros((3, 4), dtype=bool), labels)
    with pytest.raises(StageError, match="a class without a test image"):
        compare(a, a, np.zeros(4, dtype=np.int64))
    with pytest.raises(StageError, match="train two seeds"):
        compare(a[:1], a[:1], labels)
    with pytest.raises(StageError, match="one other arm and one tail class"):
        compare(a, a, labels, tail=())
    with pytest.raises(StageError, match="confidence 1.0 must lie"):
        compare(a, a, labels, confidence=1.0)
    split = outcomes(labels, a=a, b=a)
    with pytest.raises(StageError, match="image 00000 has two labels"):
        gains([split, replace(split, labels=labels[::-1])])


def test_a_class_of_few_images_may_hide_as_much_as_it_could() -> None:
    counts = np.array([400, 5])
    alone = (1 - 0.025 ** (1 / 5)) / 2  # none of 5 differs, and the class counts for a half
    assert unseen_difference(counts, 0.05) == pytest.approx(alone)
    assert unseen_difference([400, 400], 0.05) == pytest.approx(1 - 0.025 ** (1 / 800))
    # Several small ones hide more than one of them: of two, both classes of five.
    assert unseen_difference([5, 900, 5], 0.05) == pytest.approx(2 / 3 * (1 - 0.025 ** (1 / 10)))
    # Class 0 gains on a quarter of its images, class 1 shows nothing.
    labels = np.repeat([0, 1], counts)
    b = np.tile(np.arange(405) < 100, (4, 1))
    gain = compare(np.zeros((4, 405), dtype=bool), b, labels, tail=(1,))
    assert gain.balanced_accuracy.value == pytest.approx(0.125)
    assert gain.balanced_accuracy.low == pytest.approx(0.125 - alone)
    assert gain.simultaneous.low <= gain.balanced_accuracy.low < 0
    many = compare(
        np.zeros((4, 800), dtype=bool),
        np.tile(np.arange(800) < 100, (4, 1)),
        np.repeat([0, 1], 400),
        tail=(1,),
    )
    assert many.balanced_accuracy.low > 0.1


def test_a_small_class_that_loses_is_rarely_called_a_gain() -> None:
    # Class 0 gains 10 points, class 1 of five images loses as many: nothing is gained.
    labels, said = np.repeat([0, 1], (400, 5)), []
    for trial in range(120):
        random = np.random.default_rng(trial)
        ease = random.normal(0, 1, 405)
        right = {
            arm: ease + random.normal(0, 0.4, 405) + random.normal(0, 0.5, (4, 405)) > bar
            for arm, bar in (("a", -1.2), ("b", np.where(labels == 0, -1.75, -0.76)))
        }
        found = gains(outcomes(labels, **right), tail=(1,), seed=trial, resamples=200)["b"]
        said.append(found.balanced_accuracy.low > 0)
    assert np.mean(said) < 0.05


def test_images_of_one_group_count_as_one() -> None:
    # Every image twice, under another id: as wide as once, where the group says so.
    random = np.random.default_rng(4)
    a, b = (np.tile(one, (4, 1)) for one in random.uniform(size=(2, 60)) < 0.7)  # seeds alike
    labels = np.arange(60) % 2
    once = compare(a, b, labels)
    ids = np.array([f"{i:05d}" for i in range(120)])
    twice = SplitOutcomes(np.tile(labels, 2), ids, {"a": np.tile(a, 2), "b": np.tile(b, 2)})
    pairs = replace(twice, groups=np.tile(ids[:60], 2))
    assert count_units(pairs, 2) == (30, 30)
    assert count_units(twice, 2) == (60, 60)
    found = gains(pairs)["b"]
    assert found.standard_error == pytest.approx(once.standard_error)
    assert ends(found.balanced_accuracy) == pytest.approx(ends(once.balanced_accuracy))
    assert gains(twice)["b"].standard_error == pytest.approx(
        once.standard_error / np.sqrt(2), rel=0.02
    )
    alone = replace(twice, groups=ids)
    assert ends(gains(alone)["b"].tail) == ends(gains(twice)["b"].tail)


def test_a_group_of_two_classes_is_a_unit_of_each() -> None:
    random = np.random.default_rng(4)
    a, b = random.uniform(size=(2, 4, 60)) < 0.7
    one = outcomes(np.arange(60) % 2, a=a, b=b)
    groups = np.array([f"patient {i // 6}" for i in range(60)])
    assert count_units(replace(one, groups=groups), 2) == (10, 10)
    wide, narrow = gains(replace(one, groups=groups))["b"], gains(one)["b"]
    assert wide.balanced_accuracy.value == narrow.balanced_accuracy.value
    assert wide.standard_error != narrow.standard_error
    # What none of thirty images shows: groups that differ are in the standard error.
    allowance = 1 - 0.025 ** (1 / 30)
    none = gains(replace(one, groups=groups, correct={"a": a, "b": a}))["b"]
    assert none.classes[0].high == pytest.approx(allowance)
    with pytest.raises(StageError, match="do not pair"):
        gains(replace(one, groups=groups[:-1]))


def test_other_test_images_move_accuracies_as_much_as_drawing_them_says() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], (300, 100))
    right = (random.uniform(size=(2, 400)) < 0.8).astype(float)
    one = outcomes(labels)
    moved = resampled_accuracies(right, one, 2, 4000, random)
    assert moved.shape == (4000, 2)
    recalls = [[right[arm, labels == k].mean() for k in (0, 1)] for arm in (0, 1)]
    for arm, (first, second) in enumerate(recalls):
        expected = np.sqrt(first * (1 - first) / 299 + second * (1 - second) / 99) / 2
        assert moved[:, arm].std() == pytest.approx(expected, rel=0.05)
        assert abs(moved[:, arm].mean()) < 0.1 * expected
    alike = resampled_accuracies(right[[0, 0]], one, 2, 100, random)
    np.testing.assert_allclose(alike[:, 0], alike[:, 1])
    # Ten images of one patient, all alike: as if there were a tenth of the images.
    groups = np.array([f"{i // 10}" for i in range(400)])
    tens = np.repeat(random.uniform(size=(1, 40)) < 0.8, 10, axis=1).astype(float)
    wide = resampled_accuracies(tens, replace(one, groups=groups), 2, 4000, random).std()
    narrow = resampled_accuracies(tens, one, 2, 4000, random).std()
    assert wide == pytest.approx(np.sqrt(10) * narrow, rel=0.15)


@pytest.mark.parametrize("groups", [2, 3, 4, 8])
def test_groups_that_differ_are_not_called_a_gain(groups: int) -> None:
    labels, said = np.repeat([0, 1], 100), []
    for trial in range(60):
        random = np.random.default_rng(trial)
        group = np.arange(200) % groups + groups * labels
        right = {
            arm: random.normal(0, 1, 200) + random.normal(0, 1.5, 2 * groups)[group] > -1
            for arm in ("a", "b")
        }
        one = outcomes(labels, **{arm: np.tile(each, (4, 1)) for arm, each in right.items()})
        named = replace(one, groups=[f"patient {k}" for k in group])
        said.append(
            [gains(each, resamples=100)["b"].balanced_accuracy.low > 0 for each in (named, one)]
        )
    as_groups, one_by_one = np.mean(said, axis=0)
    assert as_groups < 0.1 < one_by_one


def test_one_image_in_two_splits_is_one_unit_by_whatever_name_its_group_goes() -> None:
    random = np.random.default_rng(4)
    a, b = random.uniform(size=(2, 4, 80)) < 0.7
    one = outcomes(np.arange(80) % 2, a=a, b=b)
    pairs = replace(one, groups=[f"{i // 4}" for i in range(80)])
    other = replace(pairs, groups=[f"{i // 4} again" for i in range(80)])
    same, renamed = gains([pairs, pairs])["b"], gains([pairs, other])["b"]
    assert renamed.standard_error == pytest.approx(same.standard_error)
    # What is joined in one split is joined in all.
    assert gains([pairs, one])["b"].standard_error == pytest.approx(same.standard_error)
