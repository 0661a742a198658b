import math
from typing import Any

import pytest
from recipe.sets import facts, regime

from pipeline.recipe.expect import FARTHEST, expect


def test_a_set_of_the_same_facts_is_still_another_set() -> None:
    found = expect(facts(), "none", [regime()])
    assert found is not None
    assert (found.gain_points, found.tail_gain_points) == (2.0, 4.0)
    assert (found.regimes, found.used, found.distance) == (("stripes",), False, 0.0)
    # Variance: its own, (1 / 1.96)^2 and (2 / 1.96)^2, and 2 for what the facts do not say.
    reach, tail_reach = (1.0 + 1.96**2 * 2.0) ** 0.5, (4.0 + 1.96**2 * 2.0) ** 0.5
    assert (found.gain_low, found.gain_high) == pytest.approx((2 - reach, 2 + reach), abs=1e-3)
    assert (found.tail_low, found.tail_high) == pytest.approx(
        (4 - tail_reach, 4 + tail_reach), abs=1e-3
    )


def test_two_sets_that_lie_as_near_count_the_same() -> None:
    two = [
        regime(name="less", gain_points=0.0, gain_low=-1.0, gain_high=1.0),
        regime(name="more", gain_points=4.0, gain_low=3.0, gain_high=5.0),
    ]
    found = expect(facts(), "none", two)
    assert found is not None
    assert found.regimes == ("less", "more")
    assert found.gain_points == 2.0
    # Variance: that of each, (1 / 1.96)^2, that between them, 2^2, and the same for a third set.
    reach = (1.0 + 2 * (1.96 * 2.0) ** 2) ** 0.5
    assert found.gain_high - found.gain_points == pytest.approx(reach, abs=1e-3)


def test_the_nearer_set_counts_more() -> None:
    two = [
        regime(name="far", image_size_px=32, gain_points=-4.0, gain_low=-5.0, gain_high=-3.0),
        regime(name="here"),
    ]
    found = expect(facts(), "none", two)
    assert found is not None
    assert found.regimes == ("here", "far")
    # One doubling of the side is one bandwidth: weights 1 and exp(-1/2).
    share = 1 / (1 + 2.718281828**-0.5)
    assert found.gain_points == pytest.approx(2 * share - 4 * (1 - share), abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"labelled": 2000},
        {"labelled": 80},
        {"largest": 2000},
        {"image_size_px": 128},
        {"image_size_px": 64, "image_mode": "RGB"},
    ],
)
def test_nothing_is_expected_of_a_set_that_is_far_from_all(changes: dict[str, Any]) -> None:
    assert expect(facts(**changes), "none", [regime()]) is None


def test_nothing_is_expected_where_nothing_was_measured() -> None:
    assert expect(facts(), "none", []) is None


def test_what_is_just_near_enough_counts() -> None:
    assert FARTHEST == 2.0
    near = expect(facts(image_size_px=64), "none", [regime()])
    assert near is not None
    assert near.distance == 2.0
    assert expect(facts(image_size_px=68), "none", [regime()]) is None


def test_the_interval_grows_with_the_distance_where_sets_differ() -> None:
    regimes = [
        regime(),
        regime(name="other", image_size_px=128, gain_points=-3.0, gain_low=-4.0, gain_high=-2.0),
    ]
    widths = []
    for side in (16, 20, 32, 40):
        found = expect(facts(image_size_px=side), "none", regimes)
        assert found is not None
        widths.append(found.gain_high - found.gain_low)
    assert widths == sorted(widths)
    # Variance between the two, 2.5^2, is there already where nothing else differs.
    assert widths[0] == pytest.approx(2 * (1.0 + (1.96 * 2.5) ** 2) ** 0.5, abs=1e-3)
    assert widths[2] > widths[0] + 1.0


def test_a_base_of_the_pool_is_compared_with_such_alone() -> None:
    with_pool = regime(name="pool", pool=4000, gain_points=5.0, gain_low=4.0, gain_high=6.0)
    regimes = [regime(), with_pool]
    set_with_pool = facts(pool=4000)
    found = expect(set_with_pool, "pool", regimes)
    assert found is not None
    assert (found.regimes, found.gain_points) == (("pool",), 5.0)
    # A pool that is there but that the generator does not learn from is no such pool.
    found = expect(set_with_pool, "none", regimes)
    assert found is not None
    assert found.regimes == ("stripes",)
    assert expect(set_with_pool, "pool", [regime()]) is None


def test_the_order_of_the_regimes_changes_nothing() -> None:
    regimes = [regime(), regime(name="wide", image_size_px=24), regime(name="long", largest=200)]
    assert expect(facts(), "none", regimes) == expect(facts(), "none", regimes[::-1])


def test_classes_without_images_are_no_fault_here() -> None:
    assert expect(facts(smallest=0, largest=70), "none", [regime()]) is not None
    assert expect(facts(labelled=0, smallest=0, largest=0), "none", [regime()]) is None


def test_a_base_from_elsewhere_is_compared_with_its_like() -> None:
    known = regime(name="elsewhere", base="elsewhere", gain_points=5.0, gain_low=4.0, gain_high=6.0)
    regimes = [regime(), known]
    found = expect(facts(), "elsewhere", regimes)
    assert found is not None
    assert found.regimes == ("elsewhere",)
    plain = expect(facts(), "none", regimes)
    assert plain is not None
    assert plain.regimes == ("stripes",)


def test_one_regime_alone_is_less_sure_the_farther_it_is() -> None:
    for side, distance in ((16, 0.0), (32, 1.0), (64, 2.0)):
        found = expect(facts(image_size_px=side), "none", [regime()])
        assert found is not None
        assert found.gain_points == 2.0
        between = 2.0 * (2.0 - math.exp(-(distance**2) / 2))
        reach = (1.0 + 1.96**2 * between) ** 0.5
        assert found.gain_high - found.gain_points == pytest.approx(reach, abs=1e-3)


@pytest.mark.parametrize(
    ("decisions", "used"),
    [
        (("do_not_use", "do_not_use"), False),
        (("do_not_use", "use"), True),
        (("use_with_care", "do_not_use"), True),
    ],
)
def test_one_verdict_to_use_the_images_is_enough(decisions: tuple[str, str], used: bool) -> None:
    near, far = decisions
    regimes = [
        regime(name="near", decision=near),
        regime(name="far", image_size_px=32, decision=far),
        regime(name="beyond", image_size_px=128, decision="use"),
    ]
    found = expect(facts(), "none", regimes)
    assert found is not None
    assert (found.regimes, found.used) == (("near", "far"), used)
