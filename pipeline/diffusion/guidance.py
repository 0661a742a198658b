"""Guidance: what the network sees in a noisy image, drawn away from what a worse one sees.

Classifier-free guidance (Ho and Salimans 2022) compares with the null class of the same network,
autoguidance (Karras et al. 2024) with a weaker network and the same class. Either acts inside an
interval of noise levels alone (Kynkaanniemi et al. 2024); outside it the second pass is not run.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.diffusion.ladders import Ladder
from pipeline.diffusion.network import Network
from pipeline.diffusion.noise import NoiseProcess

GuideName = Literal["null_class", "weaker"]


@dataclass(frozen=True)
class Guidance:
    """How much, and where.

    Attributes:
        weight: w of guide + w (network - guide); 1 is no guidance. Ho and Salimans 2022, equation
            6, with w = 1 + their w; Karras et al. 2024, equation 3.
        low: guidance acts above this sigma = noise / signal,
        high: and up to this one.
        guide: what is compared with.
    """

    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf
    guide: GuideName = "null_class"

    def acts(self, sigma: float) -> bool:
        """Say whether guidance acts at a noise level."""
        return self.weight != 1.0 and self.low < sigma <= self.high

    def describe(self) -> str:
        """Return the guidance in words."""
        if self.weight == 1.0:
            return "no guidance"
        name = "autoguidance" if self.guide == "weaker" else "classifier-free guidance"
        where = ""
        if self.low > 0 or self.high < math.inf:
            where = f" at sigma {self.low:g} to {self.high:g}"
        return f"{name} {self.weight:g}{where}"


class Denoiser:
    """Sees the clean image in a noisy one: the network, its guide, and clipping to [-1, 1]."""

    def __init__(
        self,
        network: Network,
        weaker: Network | None,
        process: NoiseProcess,
        ladder: Ladder,
        labels: torch.Tensor,
        null_class: int,
        guidance: Guidance,
    ) -> None:
        """Take what a batch of images needs.

        Args:
            network: the generator's.
            weaker: what autoguidance compares with.
            process: what the network predicts.
            ladder: noise levels.
            labels: (N,) int64, on the network's device.
            null_class: label of the null class.
            guidance: how much, and where.

        Raises:
            ValueError: autoguidance without a weaker network.
        """
        if weaker is None and guidance.guide == "weaker" and guidance.weight != 1.0:
            raise ValueError("autoguidance needs a weaker network")
        self._network, self._weaker, self._process = network, weaker, process
        self._ladder, self._labels, self._guidance = ladder, labels, guidance
        self._null = torch.full_like(labels, null_class)

    def __call__(self, x: torch.Tensor, rung: int) -> torch.Tensor:
        """Return x_0 in [-1, 1] for x (N, C, H, W) at a rung of the ladder."""
        times = torch.full((len(x),), self._ladder.times[rung])
        levels = self._process.at(times).to(x.device)
        seen = self._process.network_input(x, levels)
        predicted = self._predict(seen, levels.time, self._ladder.sigma(rung))
        return self._process.clean(x, predicted, levels).clamp(-1.0, 1.0)

    def _predict(self, seen: torch.Tensor, time: torch.Tensor, sigma: float) -> torch.Tensor:
        if not self._guidance.acts(sigma):
            return self._network(seen, time, self._labels)
        weight = self._guidance.weight
        if self._weaker is None or self._guidance.guide == "null_class":
            return classifier_free(self._network, seen, time, self._labels, self._null, weight)
        guide = self._weaker(seen, time, self._labels)
        return guide + weight * (self._network(seen, time, self._labels) - guide)


def classifier_free(
    network: Network,
    seen: torch.Tensor,
    time: torch.Tensor,
    labels: torch.Tensor,
    null: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """Return the prediction drawn away from that for `null`, (N,) labels of the null class."""
    # One network call for both halves.
    predicted, guide = network(
        torch.cat([seen, seen]), torch.cat([time, time]), torch.cat([labels, null])
    ).chunk(2)
    return guide + weight * (predicted - guide)
