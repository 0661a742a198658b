"""MixUp and CutMix: batches whose rows are two images at once."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.features.classifier import Batch


def mix_rows(
    batch: Batch, how: Literal["mixup", "cutmix"], alpha: float, random: np.random.Generator
) -> Batch:
    """Return the batch with each row mixed with another row of it; probabilities are blended too.

    mixup (Zhang et al. 2018, equation 1): lambda x_i + (1 - lambda) x_j, lambda from Beta(alpha,
    alpha) for each row. cutmix (Yun et al. 2019, equations 1 and 2): a box of x_j, of 1 - lambda of
    the area before it is cut off at the border, is pasted into x_i; lambda is then the share that
    is left of x_i.

    Args:
        batch: images (B, C, H, W) and labels (B,).
        how: which of the two.
        alpha: of the Beta distribution, > 0.
        random: generator of the pairs and lambdas.
    """
    count = len(batch.labels)
    partner = torch.from_numpy(random.permutation(count))
    lambdas = random.beta(alpha, alpha, count)
    if how == "mixup":
        mix = torch.from_numpy(lambdas).float()
        weight = mix[:, None, None, None]
        images = weight * batch.images + (1 - weight) * batch.images[partner]
    else:
        boxes = _boxes(lambdas, batch.images.shape[2], batch.images.shape[3], random)
        images = torch.where(boxes[:, None], batch.images[partner], batch.images)
        mix = 1.0 - boxes.float().mean(dim=(1, 2))
    if batch.targets is not None:
        left = mix.float()[:, None]
        targets = left * batch.targets + (1 - left) * batch.targets[partner]
        return Batch(images, batch.labels, weights=batch.weights, targets=targets)
    return Batch(images, batch.labels, batch.labels[partner], mix, batch.weights)


def _boxes(
    lambdas: npt.NDArray[np.float64], height: int, width: int, random: np.random.Generator
) -> torch.Tensor:
    """Return (B, H, W) masks of boxes around random centres."""
    sides = np.sqrt(1.0 - lambdas)[:, None]
    centres = random.random((2, len(lambdas), 1))

    def inside(length: int, centre: npt.NDArray[np.float64]) -> torch.Tensor:
        places = np.arange(length)[None] + 0.5
        return torch.from_numpy(np.abs(places - centre * length) < sides * length / 2)

    return inside(height, centres[0])[:, :, None] & inside(width, centres[1])[:, None, :]
