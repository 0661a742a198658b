import math

import pytest

from pipeline.diffusion.stopping import (
    Check,
    choose,
    copies,
    copying_starts,
    describe,
    should_stop,
)

NAN = math.nan
LIMIT = 0.01


def check(step, quality=1.0, copied=0.0, heldout=0.5, training=0.5):
    return Check(step, 0.10, training, heldout, copied, quality)


def checks_of(*qualities, copied=None):
    return [
        check(100 * (i + 1), quality, copied[i] if copied else 0.0)
        for i, quality in enumerate(qualities)
    ]


def test_the_score_is_the_quality_then_the_heldout_loss_then_the_training_loss():
    assert check(1, quality=0.2, heldout=0.3, training=0.4).score == 0.2
    assert check(1, quality=NAN, heldout=0.3, training=0.4).score == 0.3
    assert check(1, quality=NAN, heldout=NAN, training=0.4).score == 0.4
    assert check(1, quality=-0.1).score == -0.1  # an unbiased distance may be negative


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, False), (0.01, False), (0.011, True), (1.0, True), (NAN, False)]
)
def test_a_network_copies_above_the_limit(share, expected):
    assert copies(check(1, copied=share), LIMIT) is expected


def test_the_best_of_those_that_do_not_copy_is_chosen():
    checks = checks_of(0.9, 0.4, 0.6, 0.1, 0.2, copied=[0, 0.01, 0, 0.02, 0.5])
    assert choose(checks, LIMIT).step == 200
    assert choose(checks, 0.02).step == 400
    assert choose(checks, 1.0).step == 400
    assert choose(checks[2:3], LIMIT).step == 300


def test_where_all_copy_the_one_that_does_least_is_chosen_whatever_its_quality():
    checks = checks_of(0.1, 0.9, 0.2, copied=[0.5, 0.2, 0.3])
    assert choose(checks, LIMIT).step == 200


def test_of_equals_the_earlier_is_chosen():
    assert choose(checks_of(0.4, 0.3, 0.3), LIMIT).step == 200
    assert choose(checks_of(0.4, 0.3, 0.3, copied=[0.5] * 3), LIMIT).step == 100


def test_without_quality_the_heldout_loss_decides():
    losses = [0.5, 0.3, 0.4]
    checks = [check(i, NAN, heldout=loss) for i, loss in enumerate(losses)]
    assert choose(checks, LIMIT).step == 1
    checks = [check(i, NAN, NAN, NAN, loss) for i, loss in enumerate([0.5, 0.3, 0.2])]
    assert choose(checks, LIMIT).step == 2


def test_training_stops_after_so_many_checks_without_improvement():
    checks = checks_of(0.9, 0.5, 0.6, 0.7, 0.5)
    assert [should_stop(checks[:n], LIMIT, 3) for n in range(1, 6)] == [False] * 4 + [True]
    assert [should_stop(checks[:n], LIMIT, 2) for n in range(1, 6)] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_patience_0_never_stops():
    assert not should_stop(checks_of(*[1.0] * 50), LIMIT, 0)


def test_a_lower_quality_within_the_patience_goes_on():
    assert not should_stop(checks_of(0.9, 0.5, 0.6, 0.4, 0.7), LIMIT, 3)
    assert should_stop(checks_of(0.9, 0.3, 0.6, 0.4, 0.7), LIMIT, 3)


def test_a_lower_heldout_loss_goes_on_as_well():
    losses = [0.5, 0.4, 0.38, 0.39]
    checks = [check(i, quality=1.0, heldout=loss) for i, loss in enumerate(losses)]
    assert not should_stop(checks, LIMIT, 2)
    assert should_stop([*checks, check(9, heldout=0.38)], LIMIT, 2)


def test_what_copies_improves_nothing_and_sets_no_mark():
    checks = checks_of(0.9, 0.5, 0.1, 0.1, copied=[0, 0, 0.3, 0.4])
    assert should_stop(checks, LIMIT, 2)
    # The best before was a copying one: an honest one that is worse still counts.
    checks = checks_of(0.1, 0.5, 0.6, copied=[0.9, 0, 0])
    assert not should_stop(checks, LIMIT, 2)
    # Copying all along ends as well.
    assert should_stop(checks_of(0.3, 0.2, 0.1, copied=[0.5] * 3), LIMIT, 2)


def test_without_heldout_rows_the_quality_or_the_training_loss_is_followed():
    falling = [check(i, NAN, NAN, NAN, 1 / (i + 1)) for i in range(6)]
    assert not should_stop(falling, LIMIT, 2)
    assert should_stop([*falling, *falling[:2]], LIMIT, 2)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.0, 0.0, 0.0], None),
        ([0.0, 0.2, 0.3], 200),
        ([0.2, 0.3, 0.0], None),
        ([0.2, 0.0, 0.3], 300),
        ([0.2, 0.3, 0.4], 100),
        ([0.0, 0.01, 0.011], 300),
        ([NAN, NAN, NAN], None),
        ([NAN, 0.5, 0.5], 200),
    ],
)
def test_copying_starts_where_every_later_check_copies(shares, expected):
    assert copying_starts(checks_of(*[1.0] * 3, copied=shares), LIMIT) == expected


def test_how_long_the_images_last_in_words():
    checks = [check(1900), check(4000, copied=0.005), check(6000, copied=0.3)]
    found = describe(checks, checks[0], 140, LIMIT)
    assert found == "with 140 images, best at step 1,900, copies from step 6,000"
    found = describe(checks[:2], checks[1], 12345, LIMIT)
    assert found == (
        "with 12,345 images, best at step 4,000, no copying up to step 4,000, where training ended"
    )
    unmeasured = [check(10, copied=NAN), check(20, copied=NAN)]
    found = describe(unmeasured, unmeasured[1], 9, LIMIT)
    assert found == "with 9 images, best at step 20"
