"""Solvers against float64 oracles, diffusers' schedulers, and a mixture that is known exactly."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from oracles.mixture import three_modes
from scipy.stats import kstest

from pipeline.diffusion.ladders import ladder_of, make_ladder
from pipeline.diffusion.noise import TIMESTEPS, NoiseProcess
from pipeline.diffusion.solvers import count_rungs, ddim_step, default_spacing, get_solver

COSINE = NoiseProcess("cosine", "velocity")
EVALUATIONS = {
    "ddpm": 200,
    "ddim": 60,
    "dpmsolver++": 30,
    "dpmsolver++sde": 60,
    "unipc": 30,
    "heun": 59,
}


def noise_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def curved(x, rung, ladder):
    """A denoiser without any structure that a solver could profit from."""
    return 0.8 * torch.tanh(1.3 * ladder.signal[rung] * x + 0.2 * ladder.noise[rung])


def ancestral_oracle(x, ladder, denoise, draws):
    """Ho et al. 2020, equation 7, pixel by pixel, for the betas that the ladder's steps mean."""
    values = x.numpy().copy()
    for rung in range(len(ladder)):
        kept, below = ladder.signal[rung] ** 2, ladder.signal[rung + 1] ** 2
        alpha = kept / below
        beta = 1 - alpha
        clean = denoise(torch.from_numpy(values), rung).numpy()
        noise = next(draws) if rung + 1 < len(ladder) else np.zeros_like(values)
        out = np.empty_like(values)
        for at in np.ndindex(values.shape):
            mean = math.sqrt(below) * beta / (1 - kept) * clean[at]
            mean += math.sqrt(alpha) * (1 - below) / (1 - kept) * values[at]
            out[at] = mean + math.sqrt(beta * (1 - below) / (1 - kept)) * noise[at]
        values = out
    return values


def implicit_oracle(x, ladder, denoise, draws, eta):
    """Song et al. 2021, equations 12 and 16, pixel by pixel."""
    values = x.numpy().copy()
    for rung in range(len(ladder)):
        kept, below = ladder.signal[rung] ** 2, ladder.signal[rung + 1] ** 2
        clean = denoise(torch.from_numpy(values), rung).numpy()
        sigma = eta * math.sqrt((1 - below) / (1 - kept)) * math.sqrt(1 - kept / below)
        noise = next(draws) if sigma else np.zeros_like(values)
        out = np.empty_like(values)
        for at in np.ndindex(values.shape):
            epsilon = (values[at] - math.sqrt(kept) * clean[at]) / math.sqrt(1 - kept)
            towards = math.sqrt(max(0.0, 1 - below - sigma**2)) * epsilon
            out[at] = math.sqrt(below) * clean[at] + towards + sigma * noise[at]
        values = out
    return values


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("rungs", [7, 100])
def test_ddpm_is_the_ancestral_step_of_the_paper(schedule, rungs):
    ladder = make_ladder(NoiseProcess(schedule, "noise"), rungs, "quadratic")
    start = noise_of((2, 1, 3, 3), 1)()
    draw = noise_of(start.shape)
    found = get_solver("ddpm", 0.0)(ladder, start, lambda x, r: curved(x, r, ladder), draw)
    again = noise_of(start.shape)
    draws = (again().numpy() for _ in range(rungs))
    expected = ancestral_oracle(start, ladder, lambda x, r: curved(x, r, ladder), draws)
    assert found.numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rungs", [7, 30])
def test_ddim_is_the_step_of_the_paper(eta, rungs):
    ladder = make_ladder(COSINE, rungs, "even")
    start = noise_of((2, 1, 3, 3), 1)()
    denoise = lambda x, r: curved(x, r, ladder)  # noqa: E731
    found = get_solver("ddim", eta)(ladder, start, denoise, noise_of(start.shape))
    again = noise_of(start.shape)
    draws = (again().numpy() for _ in range(rungs))
    assert found.numpy() == pytest.approx(
        implicit_oracle(start, ladder, denoise, draws, eta), abs=1e-9
    )


def test_a_ddim_step_may_skip_rungs():
    ladder = make_ladder(COSINE, 10, "even")
    coarse = ladder_of(COSINE, ladder.times[::2])
    x, clean = noise_of((1, 1, 2, 2))(), torch.zeros(1, 1, 2, 2).double()
    assert torch.equal(ddim_step(x, clean, ladder, 4, to=6), ddim_step(x, clean, coarse, 2))


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("dpmsolver++", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)],
)
@pytest.mark.parametrize("rungs", [3, 12, 50])
def test_multistep_solvers_are_those_of_diffusers_on_the_same_levels(sampler, scheduler, rungs):
    ladder = make_ladder(COSINE, rungs, "quadratic")
    theirs = scheduler(
        num_train_timesteps=TIMESTEPS,
        trained_betas=COSINE.betas.numpy(),
        prediction_type="sample",
    )
    theirs.set_timesteps(rungs)
    theirs.timesteps = torch.tensor(ladder.times)
    theirs.sigmas = torch.tensor([ladder.sigma(rung) for rung in range(rungs + 1)]).double()
    start = noise_of((2, 1, 3, 3), 1)()
    expected = start
    for rung, time in enumerate(theirs.timesteps):
        expected = theirs.step(curved(expected, rung, ladder), time, expected).prev_sample
    found = get_solver(sampler, 0.0)(
        ladder, start, lambda x, r: curved(x, r, ladder), noise_of(start.shape)
    )
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_heun_is_algorithm_1_of_the_paper():
    ladder = make_ladder(COSINE, 9, "karras")
    start = noise_of((2, 1, 3, 3), 1)()

    def denoiser(scaled, sigma):  # D(x; sigma) in the paper's units
        rung = min(range(9), key=lambda r: abs(ladder.sigma(r) - sigma))
        return curved(scaled * ladder.signal[rung], rung, ladder)

    sigmas = [ladder.sigma(rung) for rung in range(10)]
    x = start / ladder.signal[0]
    for here, there in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - denoiser(x, here)) / here
        moved = x + (there - here) * slope
        if there != 0:
            second = (moved - denoiser(moved, there)) / there
            moved = x + (there - here) * (0.5 * slope + 0.5 * second)
        x = moved
    calls = []

    def denoise(noisy, rung):
        calls.append(rung)
        return curved(noisy, rung, ladder)

    found = get_solver("heun", 0.0)(ladder, start, denoise, noise_of(start.shape))
    assert found.numpy() == pytest.approx(x.numpy(), abs=1e-9)
    assert len(calls) == 17 == 2 * count_rungs("heun", 17) - 1


@pytest.mark.parametrize("sampler", list(EVALUATIONS))
@pytest.mark.parametrize("schedule", ["cosine", "lognormal"])
def test_samples_follow_the_distribution_of_a_known_mixture(sampler, schedule):
    mixture = three_modes()
    process = NoiseProcess(schedule, "velocity")
    rungs = count_rungs(sampler, EVALUATIONS[sampler])
    ladder = make_ladder(process, rungs, default_spacing(sampler))
    draw = noise_of((4000, 2))

    def denoise(x, rung):
        return mixture.clean(x, ladder.signal[rung], ladder.noise[rung])

    found = get_solver(sampler, 0.0)(ladder, draw(), denoise, draw)
    for axis in (0, 1):
        # 0.026 is what 4,000 exact samples exceed in one case of a hundred.
        assert kstest(found[:, axis].numpy(), mixture.cdf(axis)).statistic < 0.04
    gaps = (found[:, None] - mixture.means[None]).square().sum(dim=2)
    shares = torch.bincount(gaps.argmin(dim=1), minlength=3) / len(found)
    assert shares == pytest.approx(mixture.weights, abs=0.04)


def test_more_steps_of_every_solver_come_nearer_to_the_exact_path():
    # Without noise the way is an ordinary differential equation: many small steps show its end.
    mixture, draw = three_modes(), noise_of((500, 2))
    start = draw()

    def end(sampler, rungs, spacing="logsnr"):
        ladder = make_ladder(COSINE, rungs, spacing)
        denoise = lambda x, r: mixture.clean(x, ladder.signal[r], ladder.noise[r])  # noqa: E731
        return get_solver(sampler, 0.0)(ladder, start, denoise, draw)

    exact = end("ddim", 1000)
    for sampler in ("ddim", "dpmsolver++", "unipc", "heun"):
        errors = [(end(sampler, rungs) - exact).abs().mean().item() for rungs in (10, 20, 80)]
        assert errors[0] > errors[1] > errors[2]
    # The second order is worth its name.
    assert (end("dpmsolver++", 20) - exact).abs().mean() < (end("ddim", 20) - exact).abs().mean()


def test_a_consistency_function_gives_its_image_at_once_and_better_with_more_steps():
    ladder = make_ladder(COSINE, 4, "quadratic")
    answers = [torch.full((3, 1, 2, 2), float(value)) for value in (0.1, 0.2, 0.3, 0.4)]
    seen = []

    def denoise(x, rung):
        seen.append(x)
        return answers[rung]

    zero = lambda: torch.zeros(3, 1, 2, 2)  # noqa: E731
    found = get_solver("consistency", 0.0)(ladder, zero(), denoise, zero)
    assert torch.equal(found, answers[-1])
    assert seen[1] == pytest.approx(ladder.signal[1] * answers[0])


@pytest.mark.parametrize("sampler", [*EVALUATIONS, "consistency"])
def test_a_ladder_without_rungs_changes_nothing(sampler):
    start = torch.ones(1, 1, 2, 2)
    nothing = make_ladder(COSINE, 20, "even", 0.0)
    assert torch.equal(get_solver(sampler, 0.0)(nothing, start, None, None), start)
