import numpy as np
import pytest

from pipeline.curation.limits import (
    COPY_COLUMNS,
    LIMITS,
    class_limits,
    fails,
    fit_limits,
    order_limit,
)

NAMES = [one.column for one in LIMITS]
RULES = [one.rule for one in LIMITS]


def columns(count, seed):
    random = np.random.default_rng(seed)
    return {name: 0.02 + random.random(count) for name in NAMES}  # above the floor


def fit(reference, share, rules=RULES, fixed=None):
    count = len(reference["confidence"])
    labels = np.arange(count) % 3
    fixed = np.zeros(count, dtype=bool) if fixed is None else fixed
    pools = {name: reference[name] for name in COPY_COLUMNS}
    return fit_limits(reference, labels, 3, pools, fixed, rules, share)


@pytest.mark.parametrize(("share", "rank"), [(0.01, 1), (0.05, 5), (0.1, 10), (0.0, 1)])
def test_the_limit_is_an_order_statistic(share, rank):
    values = np.random.default_rng(0).permutation(np.arange(1, 100))
    assert order_limit(values, share, "low") == rank
    assert order_limit(values, share, "high") == 100 - rank


def test_further_rows_fall_below_as_often_as_promised():
    random = np.random.default_rng(0)
    below = [random.random() < order_limit(random.random(99), 0.05, "low") for _ in range(4000)]
    assert np.mean(below) == pytest.approx(0.05, abs=0.012)


def test_a_class_that_is_less_sure_has_a_lower_limit_and_one_row_borrows_from_the_others():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 200, 1])
    values = np.where(labels == 0, 0.5, 0.1) + 0.4 * random.random(401)
    values[-1] = 0.9
    sure, unsure, lone = class_limits(values, labels, 3, 0.05)
    assert sure > 1.3 * unsure
    assert lone == pytest.approx(order_limit(values[:-1], 0.05, "low"), abs=0.02)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_all_rules_together_cost_what_was_allowed(share):
    reference = columns(1000, 0)
    limits = fit(reference, share)
    fresh, labels = columns(20_000, 1), np.arange(20_000) % 3
    lost = np.any([fails(fresh, labels, limits, rule) for rule in RULES], axis=0).mean()
    assert share / 2 < lost < share * 1.35 + 0.004


def test_a_lone_rule_gets_all_that_is_allowed_and_fixed_rules_are_paid_for():
    reference = columns(1000, 0)
    alone = fit(reference, 0.05, ["realism"])
    together = fit(reference, 0.05)
    assert alone["support_distance"] < together["support_distance"]
    fixed = np.arange(1000) < 45
    assert fit(reference, 0.05, fixed=fixed)["class_ratio"] > together["class_ratio"]


def test_closeness_has_a_floor_even_where_real_rows_repeat_themselves():
    reference = columns(100, 0) | {"near_closeness": np.zeros(100)}
    assert fit(reference, 0.05)["near_copy"] == 0.01


def test_one_row_is_enough_for_limits():
    assert set(fit(columns(1, 0), 0.05)) == {one.name for one in LIMITS}
