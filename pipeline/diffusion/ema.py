"""An exponential moving average of the weights, the ones that samples are drawn with."""

import copy

import torch
from torch import nn


class ExponentialAverage:
    """Average of a model's parameters, with a short memory in the first steps.

    decay_t = min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model's own weights."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._averages: list[torch.Tensor] = list(self.model.parameters())
        self._sources: list[torch.Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step number `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
