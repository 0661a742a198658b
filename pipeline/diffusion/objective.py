"""The training loss: a denoising error, weighted by noise level."""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.device import Precision, autocast
from pipeline.diffusion.noise import TIMESTEPS, NoiseLevels, Prediction


@dataclass(frozen=True)
class Objective:
    """How far the network's prediction is from its target.

    Attributes:
        levels: the forward process.
        prediction: what the network predicts.
        min_snr_gamma: cap of min-SNR weighting; None weighs all levels alike.
        label_dropout: share of labels replaced by the null class.
        null_class: label of the null class.
        precision: of the network's arithmetic; the error is always float32.
    """

    levels: NoiseLevels
    prediction: Prediction
    min_snr_gamma: float | None
    label_dropout: float
    null_class: int
    precision: Precision

    def __call__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            model: called as `model(x_t, t, class_labels=labels)`.
            images: (N, C, H, W) in [-1, 1].
            labels: (N,) int64.
            generator: CPU generator of times, noise and dropped labels.
        """
        time = torch.randint(TIMESTEPS, (len(images),), generator=generator).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        dropped = torch.rand(len(images), generator=generator) < self.label_dropout
        labels = torch.where(dropped.to(images.device), self.null_class, labels)
        return self.error(model, images, labels, time, noise)

    def error(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        time: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean weighted squared error for given times (N,) and noise."""
        noisy = self.levels.diffuse(images, noise, time)
        with autocast(images.device, self.precision):
            predicted = model(noisy, time, class_labels=labels).sample
        target = self.levels.target(images, noise, time, self.prediction)
        error = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma is not None:
            error = error * self.levels.min_snr_weight(time, self.min_snr_gamma, self.prediction)
        mean: torch.Tensor = error.mean()
        return mean
