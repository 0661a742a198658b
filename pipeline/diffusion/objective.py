"""The training loss: a denoising error, weighted by noise level."""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.device import Precision, autocast
from pipeline.diffusion.augmentation import Augmentation
from pipeline.diffusion.noise import TIMESTEPS, Levels, NoiseProcess, Weighting

_COMMITMENT = 0.25  # gamma of Qin et al. 2023, equation 8


@dataclass(frozen=True)
class Batch:
    """Everything random of a training step, drawn at once, so that it can be cut into parts.

    Attributes:
        images: (N, C, H, W) in [-1, 1], augmented.
        labels: (N,) int64, some of them the null class.
        noise: (N, C, H, W) unit noise.
        levels: noise levels.
        vector: (N, 7) parameters of the augmentation; None where the network is told of none.
        others: (N,) labels drawn evenly over the classes, for class balancing; None without it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    noise: torch.Tensor
    levels: Levels
    vector: torch.Tensor | None
    others: torch.Tensor | None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the images `start` to `stop` and what was drawn for them."""
        rows = slice(start, stop)
        return Batch(
            self.images[rows],
            self.labels[rows],
            self.noise[rows],
            self.levels.part(rows),
            None if self.vector is None else self.vector[rows],
            None if self.others is None else self.others[rows],
        )


@dataclass(frozen=True)
class Objective:
    """How far the network's prediction is from its target.

    Attributes:
        process: noise levels, and what the network predicts.
        weighting: of the noise levels.
        min_snr_gamma: cap of the signal-to-noise ratio in min-SNR weighting.
        label_dropout: share of labels replaced by the null class.
        null_class: label of the null class; the classes are the labels below it.
        precision: of the network's arithmetic; the error is always float32.
        augmentation: None where images stay as they are.
        class_balance: tau of the class-balancing regulariser; 0 is none.
    """

    process: NoiseProcess
    weighting: Weighting
    min_snr_gamma: float
    label_dropout: float
    null_class: int
    precision: Precision
    augmentation: Augmentation | None = None
    class_balance: float = 0.0

    def draw(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Batch:
        """Draw levels, noise, dropped labels and augmentation for a batch.

        Args:
            images: (N, C, H, W) in [-1, 1], on the training device.
            labels: (N,) int64, likewise.
            generator: CPU generator: the same draws on every device.
        """
        device, count = images.device, len(images)

        def moved(drawn: torch.Tensor) -> torch.Tensor:
            if device.type != "cuda":
                return drawn
            return drawn.pin_memory().to(device, non_blocking=True)

        levels = self.process.draw(count, generator)
        noise = moved(torch.randn(images.shape, generator=generator))
        dropped = moved(torch.rand(count, generator=generator) < self.label_dropout)
        vector = others = None
        if self.augmentation is not None:
            vector = moved(self.augmentation.draw(count, generator))
            images = self.augmentation.apply(images, vector)
        if self.class_balance > 0:
            others = moved(torch.randint(self.null_class, (count,), generator=generator))
        return Batch(
            images,
            torch.where(dropped, self.null_class, labels),
            noise,
            Levels(moved(levels.signal), moved(levels.noise), moved(levels.time)),
            vector,
            others,
        )

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            model: called as `model(x, time, class_labels=..., return_dict=False)`.
            batch: of `draw`.
        """
        noisy = self.process.diffuse(batch.images, batch.noise, batch.levels)
        predicted = self._predict(model, noisy, batch.levels, batch.labels, batch.vector)
        target = self.process.target(batch.images, batch.noise, batch.levels)
        loss = self._weighted(predicted - target, batch.levels)
        if batch.others is not None:
            loss = loss + self._imbalance(model, noisy, batch, predicted, batch.others)
        return loss

    @torch.no_grad()
    def error(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        noise: torch.Tensor,
        levels: Levels,
    ) -> torch.Tensor:
        """Return the mean weighted squared error of images as they are, for given noise."""
        noisy = self.process.diffuse(images, noise, levels)
        predicted = self._predict(model, noisy, levels, labels, None)
        return self._weighted(predicted - self.process.target(images, noise, levels), levels)

    def _predict(
        self,
        model: nn.Module,
        noisy: torch.Tensor,
        levels: Levels,
        labels: torch.Tensor,
        vector: torch.Tensor | None,
    ) -> torch.Tensor:
        condition = labels if vector is None else (labels, vector)
        seen = self.process.network_input(noisy, levels)
        with autocast(noisy.device, self.precision):
            (predicted,) = model(seen, levels.time, class_labels=condition, return_dict=False)
        out: torch.Tensor = predicted.float()
        return out

    def _weighted(self, difference: torch.Tensor, levels: Levels) -> torch.Tensor:
        weight = self.process.weight(levels, self.weighting, self.min_snr_gamma)
        return (weight * difference.square().mean(dim=(1, 2, 3))).mean()

    def _imbalance(
        self,
        model: nn.Module,
        noisy: torch.Tensor,
        batch: Batch,
        predicted: torch.Tensor,
        others: torch.Tensor,
    ) -> torch.Tensor:
        """Return the class-balancing term, Qin et al. 2023, equation 8.

        tau t / T (|f(x, y) - sg f(x, y')|**2 + gamma |sg f(x, y) - f(x, y')|**2), y' even over the
        classes: what a thin class is taught draws on what the thick ones know. It is taken in the
        units of the prediction, and weighted as the loss is. Rows of the null class have none.
        """
        predicted_other = self._predict(model, noisy, batch.levels, others, batch.vector)
        labelled = (batch.labels != self.null_class).float() * batch.levels.time / TIMESTEPS
        pull = (predicted - predicted_other.detach()).square().mean(dim=(1, 2, 3))
        commit = (predicted.detach() - predicted_other).square().mean(dim=(1, 2, 3))
        weight = self.process.weight(batch.levels, self.weighting, self.min_snr_gamma)
        term = labelled * weight * (pull + _COMMITMENT * commit)
        return self.class_balance * term.mean()
