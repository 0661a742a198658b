"""Solvers: ways down a ladder of noise levels, each a few lines on the clean image.

A solver asks `denoise(x, rung)` for the clean image x_0 that the network sees in x, and
`draw()` for unit noise of the shape of x. All coefficients are Python floats (float64), and
m_0 names the newest clean image, m_1 the one before, as in the papers.

diffusers has schedulers of the same names; tests hold these equal to them where both hold. Ours
take any ladder (theirs fail on trained betas with other spacings, and their DDIM leaves noise where
the steps do not divide T), any strength, and cost no quantile a step for clipping.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from pipeline.diffusion.ladders import Ladder, Spacing

SamplerName = Literal[
    "ddpm", "ddim", "dpmsolver++", "dpmsolver++sde", "unipc", "heun", "consistency"
]
Denoise = Callable[[torch.Tensor, int], torch.Tensor]
Draw = Callable[[], torch.Tensor]
Solver = Callable[[Ladder, torch.Tensor, Denoise, Draw], torch.Tensor]


def get_solver(name: SamplerName, eta: float) -> Solver:
    """Return a solver by name; `eta` is of ddim alone."""
    solvers: dict[SamplerName, Solver] = {
        "ddpm": partial(ddim, eta=1.0),
        "ddim": partial(ddim, eta=eta),
        "dpmsolver++": dpmsolver,
        "dpmsolver++sde": dpmsolver_sde,
        "unipc": unipc,
        "heun": heun,
        "consistency": consistency,
    }
    return solvers[name]


def default_spacing(name: SamplerName) -> Spacing:
    """Return the spacing that a sampler uses unless told otherwise."""
    return "karras" if name == "heun" else "quadratic"


def count_rungs(name: SamplerName, evaluations: int) -> int:
    """Return how many rungs a sampler descends with so many network evaluations an image."""
    return (evaluations + 1) // 2 if name == "heun" else evaluations


def ddim_step(
    x: torch.Tensor,
    clean: torch.Tensor,
    ladder: Ladder,
    rung: int,
    eta: float = 0.0,
    draw: Draw | None = None,
    to: int | None = None,
) -> torch.Tensor:
    """Return x at the rung `to` (the next one by default).

    Song et al. 2021, equations 12 and 16; eta = 1 is the ancestral step of DDPM, Ho et al. 2020,
    equation 7, on the time steps of the ladder.
    """
    below = rung + 1 if to is None else to
    signal, noise = ladder.signal[rung], ladder.noise[rung]
    next_signal, next_noise = ladder.signal[below], ladder.noise[below]
    epsilon = (x - signal * clean) / noise
    spread = eta * next_noise / noise * math.sqrt(max(0.0, 1 - (signal / next_signal) ** 2))
    x = next_signal * clean + math.sqrt(max(0.0, next_noise**2 - spread**2)) * epsilon
    if spread and draw is not None:
        x = x + spread * draw()
    return x


def ddim(
    ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw, eta: float = 0.0
) -> torch.Tensor:
    """DDIM, Song et al. 2021; with eta = 1 DDPM, Ho et al. 2020."""
    for rung in range(len(ladder)):
        x = ddim_step(x, denoise(x, rung), ladder, rung, eta, draw)
    return x


def dpmsolver(ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw) -> torch.Tensor:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2; the first and last steps are of order 1."""
    before = x
    for rung in range(len(ladder)):
        clean = denoise(x, rung)
        guess = clean + _slope(ladder, rung, clean, before) / 2
        gap = _gap(ladder, rung)
        x = ladder.noise[rung + 1] / ladder.noise[rung] * x
        x = x - ladder.signal[rung + 1] * math.expm1(-gap) * guess
        before = clean
    return x


def dpmsolver_sde(ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw) -> torch.Tensor:
    """SDE-DPM-Solver++(2M), Lu et al. 2022b, equation 18 and appendix."""
    before = x
    for rung in range(len(ladder)):
        clean = denoise(x, rung)
        guess = clean + _slope(ladder, rung, clean, before) / 2
        gap = _gap(ladder, rung)
        kept = -math.expm1(-2 * gap)  # 1 - e**(-2h)
        noise = ladder.noise[rung + 1]
        x = noise / ladder.noise[rung] * math.exp(-gap) * x
        x = x + ladder.signal[rung + 1] * kept * guess
        if noise:
            x = x + noise * math.sqrt(kept) * draw()
        before = clean
    return x


def unipc(ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw) -> torch.Tensor:
    """UniPC of order 2 with B(h) = e**h - 1, Zhao et al. 2023, algorithms 5 and 6 (x_0 form).

    Each evaluation serves twice: it corrects the step that led to it and predicts the next one.
    """
    clean = before = start = x
    for rung in range(len(ladder)):
        latest = denoise(x, rung)
        if rung:
            x = _correct(ladder, rung - 1, start, clean, before, latest)
        before, clean, start = clean, latest, x
        gap = _gap(ladder, rung)
        x = ladder.noise[rung + 1] / ladder.noise[rung] * start
        slope = _slope(ladder, rung, clean, before)
        x = x - ladder.signal[rung + 1] * math.expm1(-gap) * (clean + slope / 2)
    return x


def heun(ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw) -> torch.Tensor:
    """EDM's second-order deterministic sampler, Karras et al. 2022, algorithm 1.

    It works on x / signal, whose noise is sigma; the last step is Euler's.
    """
    scaled = x / ladder.signal[0] if len(ladder) else x
    for rung in range(len(ladder)):
        here, there = ladder.sigma(rung), ladder.sigma(rung + 1)
        slope = (scaled - denoise(scaled * ladder.signal[rung], rung)) / here
        moved = scaled + (there - here) * slope
        if there:
            clean = denoise(moved * ladder.signal[rung + 1], rung + 1)
            slope = (slope + (moved - clean) / there) / 2
            moved = scaled + (there - here) * slope
        scaled = moved
    return scaled


def consistency(ladder: Ladder, x: torch.Tensor, denoise: Denoise, draw: Draw) -> torch.Tensor:
    """Multistep consistency sampling, Song et al. 2023, algorithm 1: clean, then noised anew."""
    for rung in range(len(ladder)):
        x = denoise(x, rung)
        if ladder.noise[rung + 1]:
            x = ladder.signal[rung + 1] * x + ladder.noise[rung + 1] * draw()
    return x


def _gap(ladder: Ladder, rung: int) -> float:
    """Return h, the growth of ln(signal / noise) in the step below a rung; infinite at the last."""
    return ladder.log_ratio(rung + 1) - ladder.log_ratio(rung)


def _slope(
    ladder: Ladder, rung: int, clean: torch.Tensor, before: torch.Tensor
) -> torch.Tensor | float:
    """Return D_1 = (m_0 - m_1) / r, the change of x_0 over a step as long as the next one."""
    if rung == 0 or rung + 1 == len(ladder):
        return 0.0
    ratio = _gap(ladder, rung - 1) / _gap(ladder, rung)
    return (clean - before) / ratio


def _correct(
    ladder: Ladder,
    rung: int,
    start: torch.Tensor,
    clean: torch.Tensor,
    before: torch.Tensor,
    latest: torch.Tensor,
) -> torch.Tensor:
    """Return x below `rung` again, now that the clean image there is known (UniC)."""
    gap = _gap(ladder, rung)
    phi = math.expm1(-gap)  # -h phi_1(-h), which is B(h) too
    x = ladder.noise[rung + 1] / ladder.noise[rung] * start - ladder.signal[rung + 1] * phi * clean
    change = latest - clean
    if rung == 0:
        return x - ladder.signal[rung + 1] * phi * change / 2
    ratio = -_gap(ladder, rung - 1) / gap  # r_1 of the paper, below nought
    # Two equations for the weights of both differences, in closed form (Zhao et al. 2023, eq. 5).
    first = phi / -gap - 1
    sums = first / phi, 2 * (first / -gap - 0.5) / phi
    back = (sums[1] - sums[0]) / (ratio - 1)
    return x - ladder.signal[rung + 1] * phi * (
        back * (before - clean) / ratio + (sums[0] - back) * change
    )
