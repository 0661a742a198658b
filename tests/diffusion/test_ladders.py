"""Ladders of noise levels: rungs, spacings, strengths."""

import math

import pytest
import torch

from pipeline.diffusion.ladders import ladder_of, make_ladder
from pipeline.diffusion.noise import TIMESTEPS, NoiseProcess
from pipeline.errors import InputError

SCHEDULES = ["linear", "cosine", "sigmoid", "lognormal"]
SPACINGS = ["even", "quadratic", "karras", "logsnr"]
COSINE = NoiseProcess("cosine", "velocity")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("rungs", [1, 2, 3, 20, 500, 1000])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_rungs_are_distinct_and_fall_to_the_clean_image(
    schedule, spacing, rungs, zero_terminal_snr
):
    process = NoiseProcess(schedule, "velocity", zero_terminal_snr)
    ladder = make_ladder(process, rungs, spacing)
    assert len(ladder) == rungs
    assert len(set(ladder.times)) == rungs
    assert list(ladder.times) == sorted(ladder.times, reverse=True)
    assert ladder.times[-1] >= 0
    assert ladder.times[0] < TIMESTEPS
    assert (ladder.signal[-1], ladder.noise[-1]) == (1.0, 0.0)
    assert math.isinf(ladder.log_ratio(rungs))
    sigmas = [ladder.sigma(rung) for rung in range(rungs + 1)]
    assert all(math.isfinite(sigma) for sigma in sigmas)
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_levels_are_those_of_the_noise_process(schedule, zero_terminal_snr):
    process = NoiseProcess(schedule, "velocity", zero_terminal_snr)
    ladder = ladder_of(process, tuple(range(TIMESTEPS - 1, -1, -1)))
    levels = process.at(torch.tensor(ladder.times))
    assert torch.tensor(ladder.signal[:-1]) == pytest.approx(levels.signal, abs=1e-4)
    assert torch.tensor(ladder.noise[:-1]) == pytest.approx(levels.noise, abs=1e-4)


def test_each_spacing_is_what_it_says():
    even = make_ladder(COSINE, 10, "even").times
    assert even == (999, 899, 799, 699, 599, 499, 399, 299, 199, 99)
    quadratic = make_ladder(COSINE, 10, "quadratic").times
    assert quadratic == tuple(round(1000 * (i / 10) ** 2) - 1 for i in range(10, 0, -1))
    karras = make_ladder(COSINE, 10, "karras")
    roots = [karras.sigma(rung) ** (1 / 7) for rung in range(10)]
    gaps = [a - b for a, b in zip(roots, roots[1:], strict=False)]
    # Whole time steps are coarse at both ends.
    assert gaps[2:-2] == pytest.approx([sum(gaps) / len(gaps)] * 5, rel=0.05)
    assert karras.sigma(0) == pytest.approx(80, rel=0.2)
    logsnr = make_ladder(COSINE, 10, "logsnr")
    logs = [logsnr.log_ratio(rung) for rung in range(10)]
    gaps = [b - a for a, b in zip(logs, logs[1:], strict=False)]
    assert gaps[2:-2] == pytest.approx([sum(gaps) / len(gaps)] * 5, rel=0.05)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_strength_is_a_share_of_the_time_and_of_the_rungs(spacing):
    whole, half = make_ladder(COSINE, 20, spacing), make_ladder(COSINE, 20, spacing, 0.5)
    assert len(half) == 10
    assert half.times[0] == 499
    assert make_ladder(COSINE, 20, spacing, 1.0) == whole
    assert len(make_ladder(COSINE, 20, spacing, 0.01)) == 1
    nothing = make_ladder(COSINE, 20, spacing, 0.0)
    assert (len(nothing), nothing.signal, nothing.noise) == (0, (1.0,), (0.0,))


@pytest.mark.parametrize("rungs", [0, 1001])
def test_steps_above_the_number_of_levels_are_refused(rungs):
    with pytest.raises(InputError, match=rf"sampler steps = {rungs}: .* use 1 to 1000"):
        make_ladder(COSINE, rungs, "even")


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(InputError, match="must lie between 0"):
        make_ladder(COSINE, 20, "even", strength)
