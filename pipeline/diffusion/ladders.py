"""Ladders: the falling noise levels that a sampler steps over, whatever the sampler."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.diffusion.noise import TIMESTEPS, NoiseProcess
from pipeline.errors import InputError

Spacing = Literal["even", "quadratic", "karras", "logsnr"]

_RHO = 7.0  # Karras et al. 2022, equation 5
_SIGMA_MAX = 80.0  # as there; more noise than this holds no picture


@dataclass(frozen=True)
class Ladder:
    """Noise levels of one sampling, the noisiest first; below the last rung lies the clean image.

    Attributes:
        times: whole time steps t of the rungs, falling, n of them.
        signal: n + 1 factors of the clean image; the last is 1.
        noise: n + 1 factors of the unit noise; the last is 0.
    """

    times: tuple[int, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]

    def __len__(self) -> int:
        """Return n, the number of rungs."""
        return len(self.times)

    def sigma(self, rung: int) -> float:
        """Return noise / signal of a rung; nought below the last."""
        return self.noise[rung] / self.signal[rung]

    def log_ratio(self, rung: int) -> float:
        """Return ln(signal / noise), the lambda of Lu et al. 2022; infinite below the last rung."""
        noise = self.noise[rung]
        return math.log(self.signal[rung] / noise) if noise else math.inf


def make_ladder(
    process: NoiseProcess, rungs: int, spacing: Spacing, strength: float = 1.0
) -> Ladder:
    """Return a ladder of a noise process.

    even: gaps of T / n, from the last time step down ("trailing").
    quadratic: gaps shrink towards the clean image, Song et al. 2021, appendix D.2. Even gaps jump
        from a noise level as large as fine detail straight to the mean: 20 of them left 74 % of the
        spread of data whose standard deviation is 0.1, these leave 103 % (docs/log.md).
    karras: even in sigma**(1 / 7), Karras et al. 2022, equation 5.
    logsnr: even in the logarithm of signal over noise, Lu et al. 2022.

    Args:
        process: the noise process.
        rungs: of the whole way, at least 1.
        spacing: of the rungs.
        strength: share of the time that is stepped back, in [0, 1]: below 1, the ladder begins at
            strength * T and has the same share of the rungs; 0 has none (SDEdit, Meng et al. 2022).

    Raises:
        InputError: more rungs than noise levels, or a strength outside [0, 1].
    """
    if not 1 <= rungs <= TIMESTEPS:
        raise InputError(
            f"sampler steps = {rungs}: there are {TIMESTEPS} noise levels; use 1 to {TIMESTEPS}"
        )
    if not 0 <= strength <= 1:
        raise InputError(f"strength = {strength:g}: must lie between 0 (no change) and 1 (anew)")
    levels = round(strength * TIMESTEPS)
    if not levels:
        return Ladder((), (1.0,), (0.0,))
    count = min(max(1, round(rungs * strength)), levels)
    kept = torch.cumprod(1 - process.betas, dim=0)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    if spacing == "even" or spacing == "quadratic":
        power = 2 if spacing == "quadratic" else 1
        wanted = [round(levels * (i / count) ** power) - 1 for i in range(1, count + 1)]
    else:
        wanted = _by_sigma(noise / signal, levels, count, spacing)
    return ladder_of(process, _distinct(wanted, levels))


def ladder_of(process: NoiseProcess, times: tuple[int, ...]) -> Ladder:
    """Return the ladder of given time steps, falling, in [0, T)."""
    kept = torch.cumprod(1 - process.betas, dim=0)[list(times)]
    return Ladder(
        times,
        (*kept.sqrt().tolist(), 1.0),
        (*(1 - kept).sqrt().tolist(), 0.0),
    )


def _by_sigma(
    sigmas: torch.Tensor, levels: int, count: int, spacing: Literal["karras", "logsnr"]
) -> list[int]:
    """Return rising time steps whose sigma is nearest to even ones on a bent scale."""
    usable = sigmas[:levels]
    low, high = float(usable[0]), min(float(usable[-1]), _SIGMA_MAX)
    share = (
        torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.ones(1).double()
    )
    if spacing == "karras":
        bent = low ** (1 / _RHO) + share * (high ** (1 / _RHO) - low ** (1 / _RHO))
        wanted = bent**_RHO
    else:
        wanted = torch.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    distance = (usable.log()[None, :] - wanted.log()[:, None]).abs()
    return [int(t) for t in distance.argmin(dim=1)]


def _distinct(rising: list[int], levels: int) -> tuple[int, ...]:
    """Return the time steps, falling, moved apart where several fell on one."""
    times = list(rising)
    for i in range(len(times)):
        times[i] = max(times[i], times[i - 1] + 1 if i else 0)
    for i in reversed(range(len(times))):
        times[i] = min(times[i], times[i + 1] - 1 if i + 1 < len(times) else levels - 1)
    return tuple(reversed(times))
