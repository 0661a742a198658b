import numpy as np
import pytest
import torch

from pipeline.data.store import make_samples
from pipeline.features.judge import fit_ensemble

CPU = torch.device("cpu")


def draw(count, seed, classes=2, side=12, groups=None):
    """Soft blobs beside a bar whose place is the class: many distinct pictures a class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    y, x = np.mgrid[:side, :side] / side
    images = np.zeros((count, side, side))
    for i, label in enumerate(labels):
        images[i] += 120 * np.exp(-(((x - (label + 0.5) / classes) / 0.12) ** 2))
        for _ in range(4):
            top, left = random.uniform(0.05, 0.95, 2)
            away = (y - top) ** 2 + (x - left) ** 2
            images[i] += random.uniform(60, 130) * np.exp(-away / 0.02)
    images = np.clip(images + random.uniform(0, 6, images.shape), 0, 255)
    return make_samples(images.astype(np.uint8)[..., None], labels, "train", "real", groups)


@pytest.fixture(scope="session")
def blobs():
    """Draws samples of the blob classes."""
    return draw


@pytest.fixture(scope="session")
def fitted():
    """Training rows, validation rows and judges of them."""
    training, validation = draw(60, 0), draw(120, 1)
    return training, validation, fit_ensemble(training, 2, 60, 3, 0, CPU, lambda step: None)
