import math

import numpy as np
import pytest
import torch

from pipeline.diffusion.ema import (
    CANDIDATE_LENGTHS,
    LENGTHS,
    PowerAverages,
    find_recipe,
    power,
    reachable_lengths,
    rebuild,
)

STEPS = 600
CHECKS = [60, 120, 180, 240, 300, 360, 420, 480, 540, 600]


def walk(steps=STEPS, seed=0):
    """A smooth random walk, as weights do: a sum of steps that are themselves averaged."""
    random = np.random.default_rng(seed)
    speed, place, values = np.zeros(3), np.zeros(3), []
    for _ in range(steps):
        speed = 0.95 * speed + 0.05 * random.normal(size=3)
        place = place + speed
        values.append(place)
    return np.array(values)


def shares(steps, length):
    """The share of each step's weights in the average after `steps`, as equation 127 makes it."""
    gamma = power(length)
    kept = [(1 - 1 / t) ** (gamma + 1) for t in range(1, steps + 1)]
    return np.array([(1 - kept[t]) * math.prod(kept[t + 1 :]) for t in range(steps)])


def average(values, length):
    return shares(len(values), length) @ values


def follow(values, checks=(), dtype=torch.float64):
    """Return the running averages, and snapshots of both at the checks."""
    weight = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    averages, snapshots = PowerAverages({"w": weight}), []
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            weight.copy_(torch.from_numpy(value))
        averages.update(step)
        if step in checks:
            snapshots.append({name: one.clone() for name, one in averages.tensors().items()})
    return averages, snapshots


@pytest.mark.parametrize("length", [*CANDIDATE_LENGTHS, 0.25, 0.28])
def test_the_power_has_the_stated_relative_width(length):
    # EDM2, equation 123: sigma_rel of t ** gamma.
    gamma = power(length)
    assert gamma > 0
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(length)


def test_powers_in_numbers():
    # EDM2, section 3.1: sigma_rel of 0.05 and 0.10 are gamma = 16.97 and 6.94.
    assert [power(length) for length in LENGTHS] == pytest.approx([16.97, 6.94], abs=0.005)


@pytest.mark.parametrize("length", LENGTHS)
def test_running_averages_have_the_profile_of_their_length(length):
    profile, steps = shares(1000, length), np.arange(1, 1001)
    assert profile.sum() == pytest.approx(1)
    gamma = power(length)
    continuous = (gamma + 1) * (steps - 0.5) ** gamma / 1000 ** (gamma + 1)
    assert np.abs(profile - continuous).max() < 0.01 * profile.max()
    mean = profile @ steps
    assert math.sqrt(profile @ (steps - mean) ** 2) / 1000 == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_running_averages_are_the_explicit_ones(steps):
    values = walk(steps)
    averages, _ = follow(values)
    for i, length in enumerate(LENGTHS):
        found = averages.weights(i)["w"].numpy()
        assert np.allclose(found, average(values, length), rtol=1e-9, atol=1e-12)
    assert averages.tensors().keys() == {"0.w", "1.w"}


def test_the_first_step_replaces_the_start():
    weight = torch.nn.Parameter(torch.full((3,), 100.0))
    averages = PowerAverages({"w": weight})
    with torch.no_grad():
        weight.fill_(1.0)
    averages.update(1)
    assert torch.equal(averages.weights(0)["w"], torch.ones(3))
    assert torch.equal(averages.weights(1)["w"], torch.ones(3))


def test_averages_do_not_move_with_the_weights_and_come_back_from_a_checkpoint():
    values = walk(40)
    first, _ = follow(values[:20])
    kept = {name: one.clone() for name, one in first.tensors().items()}
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    resumed = PowerAverages({"w": weight})
    resumed.load(kept)
    with torch.no_grad():
        weight.fill_(7.0)
    for name, one in resumed.tensors().items():
        assert torch.equal(one, kept[name])
    for step, value in enumerate(values[20:], start=21):
        with torch.no_grad():
            weight.copy_(torch.from_numpy(value))
        resumed.update(step)
    unbroken, _ = follow(values)
    for name, one in unbroken.tensors().items():
        assert torch.equal(resumed.tensors()[name], one)


@pytest.mark.parametrize("which", [0, 1])
def test_a_tracked_length_is_rebuilt_from_its_own_snapshot(which):
    averages, snapshots = follow(walk(), CHECKS)
    recipe = find_recipe(CHECKS, LENGTHS[which])
    assert recipe.misfit == pytest.approx(0, abs=1e-9)
    wanted = np.zeros((len(CHECKS), 2))
    wanted[-1, which] = 1
    assert np.allclose(recipe.shares, wanted, atol=1e-6)
    found = rebuild(snapshots, recipe)
    assert found.keys() == {"w"}
    assert torch.allclose(found["w"], averages.weights(which)["w"], atol=1e-5)


@pytest.mark.parametrize("length", [0.075, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_other_lengths_are_rebuilt_as_if_they_had_been_tracked(length, seed):
    values = walk(seed=seed)
    _, snapshots = follow(values, CHECKS)
    expected = average(values, length)
    found = rebuild(snapshots, find_recipe(CHECKS, length))["w"].numpy()
    # How far apart the tracked averages are: what a rebuilt one must be much nearer than.
    scale = np.linalg.norm(average(values, 0.05) - average(values, 0.10))
    assert np.linalg.norm(found - expected) < 0.1 * scale
    for other in LENGTHS:
        assert np.linalg.norm(average(values, other) - expected) > 0.3 * scale


def test_the_average_of_an_earlier_step_is_rebuilt_from_the_snapshots_until_then():
    values = walk()
    _, snapshots = follow(values, CHECKS)
    found = rebuild(snapshots[:6], find_recipe(CHECKS[:6], 0.075))["w"].numpy()
    expected = average(values[:360], 0.075)
    scale = np.linalg.norm(average(values[:360], 0.05) - average(values[:360], 0.10))
    assert np.linalg.norm(found - expected) < 0.1 * scale


@pytest.mark.parametrize("length", CANDIDATE_LENGTHS)
@pytest.mark.parametrize("count", [1, 2, 5, 10, 40])
def test_shares_of_a_recipe_sum_to_one(length, count):
    recipe = find_recipe([10 * (i + 1) for i in range(count)], length)
    assert recipe.shares.shape == (count, 2)
    assert recipe.shares.sum() == pytest.approx(1)
    assert 0 <= recipe.misfit < 1


def test_the_misfit_is_that_of_the_profiles():
    steps, length, fine = [100, 200], 0.15, 20_000
    recipe = find_recipe(steps, length)
    time = (np.arange(fine) + 0.5) * 200 / fine

    def profile(end, one):
        gamma = power(one)
        return np.where(time <= end, (gamma + 1) * time**gamma / end ** (gamma + 1), 0.0)

    wanted = profile(200, length)
    made = sum(
        recipe.shares[i, j] * profile(end, one)
        for i, end in enumerate(steps)
        for j, one in enumerate(LENGTHS)
    )
    missed = ((made - wanted) ** 2).sum() / (wanted**2).sum()
    assert recipe.misfit == pytest.approx(missed, rel=1e-3)
    assert missed > 0.01


def test_more_snapshots_reach_more_lengths():
    reached = [
        reachable_lengths([100 * (i + 1) for i in range(count)]) for count in (1, 2, 3, 5, 10, 20)
    ]
    for fewer, more in zip(reached, reached[1:], strict=False):
        assert set(fewer) <= set(more)
    assert all(set(LENGTHS) <= set(one) for one in reached)
    assert len(reached[0]) < len(reached[-1])
    assert set(reached[-1]) == set(CANDIDATE_LENGTHS)
