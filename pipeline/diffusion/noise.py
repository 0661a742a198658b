"""The forward process: the one place that defines a noise level.

q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I) for t in 0..T-1, with a_t the cumulative product of
1 - beta_t, written alpha-bar in Ho et al. 2020. Losses and samplers both take their levels here.
"""

import math
from typing import Literal

import torch

ScheduleName = Literal["linear", "cosine", "sigmoid"]
Prediction = Literal["noise", "velocity", "sample"]

TIMESTEPS = 1000
_MAX_BETA = 0.999  # Nichol and Dhariwal 2021, section 3.2: no singularity at the last step


def make_betas(name: ScheduleName, timesteps: int = TIMESTEPS) -> torch.Tensor:
    """Return beta_t, (T,) float64 in (0, 0.999].

    linear: Ho et al. 2020, section 4, with its end points scaled by 1000 / T.
    cosine: Nichol and Dhariwal 2021, equation 17, s = 0.008.
    sigmoid: Jabri et al. 2022, appendix B, start -3, end 3, tau 1.
    """
    if name == "linear":
        scale = 1000 / timesteps
        return torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    if name == "cosine":
        kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
        kept = (high - torch.sigmoid(time * 6 - 3)) / (high - low)
    kept = kept / kept[0]
    return (1 - kept[1:] / kept[:-1].clamp(min=1e-12)).clamp(1e-8, _MAX_BETA)


class NoiseLevels:
    """The noise levels of a schedule, as float32 tables on a device."""

    def __init__(self, name: ScheduleName, device: torch.device) -> None:
        """Compute the tables in float64 and keep them in float32."""
        self.betas = make_betas(name)
        kept = torch.cumprod(1 - self.betas, dim=0)
        self.signal = kept.sqrt().float().to(device)
        self.noise = (1 - kept).sqrt().float().to(device)
        self.snr = (kept / (1 - kept)).float().to(device)

    def diffuse(
        self, images: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """Return x_t for x_0 (N, C, H, W), noise of the same shape and t (N,). Ho 2020, eq. 4."""
        return _wide(self.signal[time]) * images + _wide(self.noise[time]) * noise

    def target(
        self,
        images: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        prediction: Prediction,
    ) -> torch.Tensor:
        """Return what the network should say, (N, C, H, W).

        velocity: v = sqrt(a) noise - sqrt(1 - a) x_0, Salimans and Ho 2022, appendix D.
        """
        if prediction == "noise":
            return noise
        if prediction == "sample":
            return images
        return _wide(self.signal[time]) * noise - _wide(self.noise[time]) * images

    def clean(
        self,
        noisy: torch.Tensor,
        predicted: torch.Tensor,
        time: torch.Tensor,
        prediction: Prediction,
    ) -> torch.Tensor:
        """Return the x_0 that a prediction for x_t means, (N, C, H, W)."""
        signal, noise = _wide(self.signal[time]), _wide(self.noise[time])
        if prediction == "noise":
            return (noisy - noise * predicted) / signal
        if prediction == "sample":
            return predicted
        return signal * noisy - noise * predicted

    def min_snr_weight(
        self, time: torch.Tensor, gamma: float, prediction: Prediction
    ) -> torch.Tensor:
        """Return the min-SNR weight of the squared error, (N,). Hang et al. 2023, section 3.4.

        The weight min(SNR, gamma) of the x_0 error, in the units of the prediction.
        """
        snr = self.snr[time]
        capped = snr.clamp(max=gamma)
        if prediction == "sample":
            return capped
        return capped / (snr if prediction == "noise" else snr + 1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]
