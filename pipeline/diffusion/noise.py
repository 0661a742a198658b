"""The noise process: the one place that defines a noise level.

x = signal x_0 + noise eps, with signal**2 + noise**2 = 1. The discrete schedules have T = 1000
levels, signal_t = sqrt(alpha-bar_t) in the words of Ho et al. 2020. The log-normal one draws
sigma = noise / signal freely, as Karras et al. 2022 (EDM) do; their x is ours over `signal`.
Losses and samplers both take their levels, targets and clean images here.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

ScheduleName = Literal["linear", "cosine", "sigmoid", "lognormal"]
Prediction = Literal["noise", "velocity", "sample", "edm"]
Weighting = Literal["min_snr", "uniform", "edm"]

TIMESTEPS = 1000
SIGMA_DATA = 0.5  # standard deviation of the data that EDM's preconditioning counts on
_MAX_BETA = 0.999  # Nichol and Dhariwal 2021, section 3.2: no singularity at the last step
# What a solver, which divides by the signal, is told instead of 1. A floor under alpha-bar would
# not do: several levels of `linear` lie below it, and a step between equal levels is 0 / 0.
_MAX_SOLVER_BETA = 1 - 2.0**-16
_LOG_SIGMA_MEAN, _LOG_SIGMA_SD = -1.2, 1.2  # Karras et al. 2022, table 1


def make_betas(
    name: ScheduleName, zero_terminal_snr: bool = False, timesteps: int = TIMESTEPS
) -> torch.Tensor:
    """Return beta_t, (T,) float64 in (0, 1], below 1 unless the last level is pure noise.

    linear: Ho et al. 2020, section 4, with its end points scaled by 1000 / T.
    cosine: Nichol and Dhariwal 2021, equation 17, s = 0.008.
    sigmoid: Jabri et al. 2022, appendix B, start -3, end 3, tau 1.
    lognormal: has no steps of its own; it is sampled on the levels of `cosine`.

    With `zero_terminal_snr`, sqrt(alpha-bar) is shifted and scaled so that its last value is nought
    and its first stays (Lin et al. 2024, algorithm 1).
    """
    if name == "linear":
        scale = 1000 / timesteps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    else:
        time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        if name == "sigmoid":
            low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
            kept = (high - torch.sigmoid(time * 6 - 3)) / (high - low)
        else:
            kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        kept = kept / kept[0]
        betas = (1 - kept[1:] / kept[:-1].clamp(min=1e-12)).clamp(1e-8, _MAX_BETA)
    if not zero_terminal_snr:
        return betas
    signal = torch.cumprod(1 - betas, dim=0).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    kept = signal.square()
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


@dataclass(frozen=True)
class Levels:
    """Noise levels of N images.

    Attributes:
        signal: (N,) factor of the clean image, in [0, 1].
        noise: (N,) factor of the unit noise, in (0, 1].
        time: (N,) what the network is told, in [0, 1000].
    """

    signal: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor

    @property
    def snr(self) -> torch.Tensor:
        """Return (N,) signal-to-noise ratios, signal**2 / noise**2 = 1 / sigma**2."""
        return (self.signal / self.noise).square()

    def part(self, rows: slice) -> "Levels":
        """Return the levels of some rows."""
        return Levels(self.signal[rows], self.noise[rows], self.time[rows])

    def to(self, device: torch.device) -> "Levels":
        """Return the levels on a device."""
        return Levels(*(one.to(device) for one in (self.signal, self.noise, self.time)))


@dataclass(frozen=True)
class NoiseProcess:
    """How images are noised, and what the network says of a noisy one.

    Attributes:
        schedule: which levels there are, and how often training draws each.
        prediction: what the network predicts. `edm` is the preconditioned network F of Karras et
            al. 2022, equation 7; with `SIGMA_DATA` = 1 it would be minus the velocity.
        zero_terminal_snr: is the last level pure noise?
    """

    schedule: ScheduleName
    prediction: Prediction
    zero_terminal_snr: bool = False

    @cached_property
    def betas(self) -> torch.Tensor:
        """Return beta_t of the levels that samplers step over, (T,) float64 in (0, 1)."""
        return make_betas(self.schedule, self.zero_terminal_snr).clamp(max=_MAX_SOLVER_BETA)

    @cached_property
    def _grid(self) -> Levels:
        kept = torch.cumprod(1 - make_betas(self.schedule, self.zero_terminal_snr), dim=0)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if self.schedule == "lognormal":
            time = _cosine_time(noise / signal)
        else:
            time = torch.arange(TIMESTEPS, dtype=torch.float64)
        return Levels(signal.float(), noise.float(), time.float())

    def at(self, steps: torch.Tensor) -> Levels:
        """Return the levels of whole time steps t, (N,) int64 in [0, T), on the CPU."""
        grid = self._grid
        return Levels(grid.signal[steps], grid.noise[steps], grid.time[steps])

    def draw(self, count: int, generator: torch.Generator) -> Levels:
        """Return levels as training draws them: even over t, or ln sigma ~ N(-1.2, 1.2**2)."""
        if self.schedule == "lognormal":
            return _log_normal(torch.randn(count, generator=generator, dtype=torch.float64))
        return self.at(torch.randint(TIMESTEPS, (count,), generator=generator))

    def spread(self, count: int) -> Levels:
        """Return the mid-points of `count` equal shares of what training draws, in rising noise.

        A stratified mean over levels has less noise than one over drawn levels.
        """
        shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if self.schedule == "lognormal":
            return _log_normal(torch.special.ndtri(shares))
        return self.at((shares * TIMESTEPS).long())

    def diffuse(self, images: torch.Tensor, noise: torch.Tensor, levels: Levels) -> torch.Tensor:
        """Return x for x_0 (N, C, H, W) and unit noise of the same shape. Ho et al. 2020, eq. 4."""
        return _wide(levels.signal) * images + _wide(levels.noise) * noise

    def network_input(self, noisy: torch.Tensor, levels: Levels) -> torch.Tensor:
        """Return what the network sees of x: x itself, or x at unit variance (EDM's c_in)."""
        return noisy / _wide(_spread_of_noisy(levels)) if self.prediction == "edm" else noisy

    def target(self, images: torch.Tensor, noise: torch.Tensor, levels: Levels) -> torch.Tensor:
        """Return what the network should say, (N, C, H, W).

        velocity: v = signal eps - noise x_0, Salimans and Ho 2022, appendix D.
        edm: F = (noise x_0 - s**2 signal eps) / (s total), with s = `SIGMA_DATA` and total the
        spread of x; equation 8 of Karras et al. 2022 without its division by sigma.
        """
        if self.prediction == "noise":
            return noise
        if self.prediction == "sample":
            return images
        if self.prediction == "velocity":
            return _wide(levels.signal) * noise - _wide(levels.noise) * images
        total = _spread_of_noisy(levels)
        clean = _wide(levels.noise / (SIGMA_DATA * total))
        return clean * images - _wide(SIGMA_DATA * levels.signal / total) * noise

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, levels: Levels) -> torch.Tensor:
        """Return the x_0 that a prediction for x means, (N, C, H, W)."""
        signal, noise = _wide(levels.signal), _wide(levels.noise)
        if self.prediction == "noise":
            return (noisy - noise * predicted) / signal
        if self.prediction == "sample":
            return predicted
        if self.prediction == "velocity":
            return signal * noisy - noise * predicted
        total = _wide(_spread_of_noisy(levels))
        skip = SIGMA_DATA**2 * signal / total.square()  # c_skip, in our units of x
        return skip * noisy + SIGMA_DATA * noise / total * predicted

    def weight(self, levels: Levels, weighting: Weighting, gamma: float) -> torch.Tensor:
        """Return the weight of the squared error of the prediction, (N,).

        Each weighting is one of the x_0 error, brought to the units of the prediction:
        min_snr: min(SNR, gamma), Hang et al. 2023, section 3.4.
        edm: (sigma**2 + s**2) / (sigma s)**2, Karras et al. 2022, table 1: all levels start alike.
        uniform: the plain error of whatever is predicted.
        """
        if weighting == "uniform":
            return torch.ones_like(levels.signal)
        total = _spread_of_noisy(levels)
        # How much larger a squared x_0 error is than the squared error of the prediction.
        scale = {
            "noise": levels.snr.reciprocal(),
            "velocity": levels.noise.square(),
            "sample": torch.ones_like(levels.signal),
            "edm": (SIGMA_DATA * levels.noise / total).square(),
        }[self.prediction]
        if weighting == "min_snr":
            return levels.snr.clamp(max=gamma) * scale
        return (total / (SIGMA_DATA * levels.noise)).square() * scale


def _log_normal(normal: torch.Tensor) -> Levels:
    sigma = torch.exp(_LOG_SIGMA_MEAN + _LOG_SIGMA_SD * normal)
    signal = (1 + sigma.square()).rsqrt()
    return Levels(signal.float(), (sigma * signal).float(), _cosine_time(sigma).float())


def _cosine_time(sigma: torch.Tensor) -> torch.Tensor:
    # EDM tells ln(sigma) / 4; the time at which a plain cosine schedule has this sigma says the
    # same, and lets a base that was trained on such a schedule keep what it knows of time.
    return TIMESTEPS * 2 / math.pi * torch.atan(sigma)


def _spread_of_noisy(levels: Levels) -> torch.Tensor:
    return (levels.noise.square() + (SIGMA_DATA * levels.signal).square()).sqrt()


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
