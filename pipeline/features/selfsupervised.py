"""An encoder trained here without labels, on the training rows and the pool.

VICReg (Bardes, Ponce and LeCun 2022): two augmented views of an image must get near projections,
while every dimension keeps its spread and no two say the same. It needs no negatives and no large
batch, which suits a few hundred images. The network is the judge's body, so it is as quick, and
it is no judge: no label has touched it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.augment import build_augmentation
from pipeline.data.images import Images, to_model
from pipeline.device import autocast, pick_precision
from pipeline.errors import InputError, StageError
from pipeline.features.classifier import SmallCNN, build_classifier, embed
from pipeline.features.frozen import Encoder, Features
from pipeline.features.weight_files import digest_tensors
from pipeline.hashing import digest_json
from pipeline.seeds import derive_seed, numpy_generator, torch_generator

MINIMUM_ROWS = 64
_BASE_CHANNELS = 32
_WIDTH = 4 * _BASE_CHANNELS  # channels of the body's last map
_BATCH_IMAGES = 128
_PROJECTED = 256  # width of the projections that the loss sees
_LEARNING_RATE = 2.0e-3
_WEIGHT_DECAY = 1.0e-4
_WARMUP_SHARE = 0.1  # of the steps
# Lambda, mu and nu of Bardes et al. 2022, section 4.2, and the margin and epsilon of equation 1.
_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0
_SPREAD, _EPSILON = 1.0, 1.0e-4


@dataclass(frozen=True)
class SelfSupervision:
    """How the encoder is trained.

    Attributes:
        steps: optimiser steps, of 128 images seen twice each.
        seed: of weights, batches and views.
        horizontal_flip: whether an image and its mirror image mean the same.
    """

    steps: int
    seed: int
    horizontal_flip: bool


def selfsupervised_encoder(
    images: Images,
    settings: SelfSupervision,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> Encoder:
    """Return an encoder trained without labels on `images`, D = 128.

    A function of its arguments alone on one machine: views, batches and weights are seeded.

    Args:
        images: (N, H, W, C) uint8, training and pool rows together; never held-out rows.
        settings: steps, seed, flips.
        device: where to train and to embed.
        on_step: told the number of finished steps after each one.

    Raises:
        InputError: fewer than 64 images.
        StageError: the loss is not finite.
    """
    if len(images) < MINIMUM_ROWS:
        raise InputError(
            f"selfsupervised: {len(images)} training and pool rows; it needs at least "
            f"{MINIMUM_ROWS}; add unlabelled images to the pool, or use the encoder `domain`"
        )
    model = _fit(images, settings, device, on_step)

    def function(rows: Images) -> Features:
        # Averaged over the cells: where a thing stands says little of what it is, and distances
        # and covariances of 128 features need fewer rows than those of 1,152 (docs/encoders.md).
        features: Features = embed(model, rows).reshape(len(rows), _WIDTH, -1).mean(axis=2)
        return features

    identity = [digest_tensors(model.body.state_dict()), pick_precision("auto", device)]
    digest = digest_json(["selfsupervised", images.shape[1:], *identity])
    return Encoder("selfsupervised", digest, _WIDTH, function)


def vicreg_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss of two views' projections, both (B, P) with B >= 2.

    Bardes et al. 2022, equation 6: 25 times the mean squared gap between the views, plus 25 times
    the shortfall of each dimension's deviation from 1 (equation 1), plus the squared covariances
    off the diagonal over P (equation 4), the last two of both views.
    """
    gap = functional.mse_loss(first, second)
    variance, covariance = first.new_zeros(()), first.new_zeros(())
    for view in (first, second):
        centred = view - view.mean(0)
        deviation = (centred.square().sum(0) / (len(view) - 1) + _EPSILON).sqrt()  # (P,)
        variance = variance + functional.relu(_SPREAD - deviation).mean()
        products = centred.T @ centred / (len(view) - 1)  # (P, P)
        off_diagonal = products.square().sum() - products.diagonal().square().sum()
        covariance = covariance + off_diagonal / view.shape[1]
    return _INVARIANCE * gap + _VARIANCE * variance + _COVARIANCE * covariance


def _fit(
    images: Images,
    settings: SelfSupervision,
    device: torch.device,
    on_step: Callable[[int], None] | None,
) -> SmallCNN:
    seed, (_, side, _, channels) = settings.seed, images.shape
    model = build_classifier(
        channels, 1, _BASE_CHANNELS, side, derive_seed(seed, "selfsupervised", "weights")
    )
    projector = _projector(model.head.in_features, seed).to(device)
    model.to(device).train()
    optimiser = torch.optim.AdamW(
        [*model.body.parameters(), *projector.parameters()],
        lr=_LEARNING_RATE,
        weight_decay=_WEIGHT_DECAY,
    )
    precision = pick_precision("auto", device)
    augment = build_augmentation("strong", settings.horizontal_flip)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * _rate_share(step, settings.steps)
        random = numpy_generator(seed, "selfsupervised", "rows", step)
        rows = random.choice(len(images), min(_BATCH_IMAGES, len(images)), replace=False)
        twice = augment(
            np.concatenate([images[rows], images[rows]]),
            derive_seed(seed, "selfsupervised", "views", step),
        )
        with autocast(device, precision):
            projected = projector(model.features(to_model(twice).to(device)))  # (2 B, P)
        loss = vicreg_loss(*projected.float().chunk(2))
        if not bool(loss.isfinite()):
            raise StageError(
                f"selfsupervised: the loss is {loss.item()} at step {step}; look for broken "
                "images, or use another seed"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if on_step is not None:
            on_step(step + 1)
    return model.eval()


def _projector(width: int, seed: int) -> nn.Sequential:
    """Return the part that the loss works on and that is thrown away afterwards."""
    with torch.device("meta"):
        projector = nn.Sequential(
            nn.Linear(width, _PROJECTED, bias=False),
            nn.BatchNorm1d(_PROJECTED),
            nn.ReLU(),
            nn.Linear(_PROJECTED, _PROJECTED, bias=False),
        )
    projector = projector.to_empty(device="cpu")
    generator = torch_generator(seed, "selfsupervised", "projector")
    for module in projector:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()
    return projector


def _rate_share(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step`: a linear rise, then half a cosine to zero."""
    warmup = max(1, round(steps * _WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step + 1 - warmup) / max(1, steps - warmup + 1)))
