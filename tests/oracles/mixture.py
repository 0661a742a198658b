"""Data whose best denoiser is known: a Gaussian mixture over vectors, in float64."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm


@dataclass(frozen=True)
class Mixture:
    """Weights (K,), means (K, D) and one covariance (D, D) for all components."""

    weights: torch.Tensor
    means: torch.Tensor
    covariance: torch.Tensor

    def draw(self, count, generator):
        """Return (count, D) exact samples."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, len(self.covariance), generator=generator, dtype=torch.float64)
        return self.means[chosen] + noise @ torch.linalg.cholesky(self.covariance).T

    def clean(self, x, signal, noise):
        """Return E[x_0 | x] of x (N, D) = signal x_0 + noise e, by Bayes' rule."""
        spread = signal**2 * self.covariance + noise**2 * torch.eye(len(self.covariance)).double()
        gain = signal * self.covariance @ torch.linalg.inv(spread)
        gaps = x[:, None, :] - signal * self.means[None]  # (N, K, D)
        near = -0.5 * torch.einsum("nkd,de,nke->nk", gaps, torch.linalg.inv(spread), gaps)
        share = torch.softmax(near + self.weights.log(), dim=1)
        each = self.means[None] + torch.einsum("de,nke->nkd", gain, gaps)
        return (share[..., None] * each).sum(dim=1)

    def cdf(self, axis):
        """Return the distribution function of one coordinate, for arrays."""
        sd = float(self.covariance[axis, axis]) ** 0.5
        means, weights = self.means[:, axis].numpy(), self.weights.numpy()
        return lambda x: (weights * norm.cdf(np.asarray(x)[:, None], means, sd)).sum(axis=1)


def three_modes():
    """Return a mixture of uneven modes inside [-1, 1], correlated."""
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-0.6, 0.2], [0.1, -0.5], [0.6, 0.5]], dtype=torch.float64),
        torch.tensor([[0.01, 0.004], [0.004, 0.02]], dtype=torch.float64),
    )
