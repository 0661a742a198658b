"""The judge: a classifier trained on the real training rows, and the encoder made from it."""

from collections.abc import Callable

import numpy as np
import torch

from pipeline.data.augment import build_augmentation
from pipeline.data.images import to_model
from pipeline.data.store import Samples
from pipeline.features.classifier import (
    FitSettings,
    SmallCNN,
    build_classifier,
    fit_classifier,
)
from pipeline.seeds import derive_seed, numpy_generator

_BASE_CHANNELS = 32
_BATCH_IMAGES = 64
_LEARNING_RATE = 3.0e-3
_WEIGHT_DECAY = 0.01


def fit_judge(
    training: Samples,
    classes: int,
    steps: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[int], None],
) -> SmallCNN:
    """Return a classifier of the training rows, all classes drawn alike, lightly augmented."""
    _, side, _, channels = training.images.shape
    model = build_classifier(
        channels, classes, _BASE_CHANNELS, side, derive_seed(seed, "judge", "weights")
    ).to(device)
    counts = np.bincount(training.labels, minlength=classes)
    chances = 1.0 / counts[training.labels]
    chances /= chances.sum()
    augment = build_augmentation("light", horizontal_flip=False)

    def next_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = numpy_generator(seed, "judge", step)
        rows = random.choice(len(chances), size=_BATCH_IMAGES, p=chances)
        images = augment(training.images[rows], derive_seed(seed, "judge", "augment", step))
        return to_model(images), torch.from_numpy(training.labels[rows])

    settings = FitSettings(steps, _LEARNING_RATE, _WEIGHT_DECAY, seed)
    fit_classifier(model, next_batch, settings, on_step)
    return model
