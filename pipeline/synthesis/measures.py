"""What samples of a generator are measured by: copies, kernel distance, coverage."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import Images, flat_pixels, from_model
from pipeline.data.store import Samples
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.metrics.kernel import ClassKernel, class_kernel
from pipeline.metrics.memorization import COPY_RATIO, RealIndex
from pipeline.metrics.prdc import class_covered
from pipeline.seeds import numpy_generator, torch_generator

Embed = Callable[[Images], npt.NDArray[np.floating]]
Labels = npt.NDArray[np.int64]
Features = npt.NDArray[np.float64]

_BATCH_IMAGES = 64


class Measures:
    """Compares samples with the rows that a network was trained on and with held-out ones."""

    def __init__(self, training: Samples, heldout: Samples, embed: Embed) -> None:
        """Lay out the real rows.

        Args:
            training: what comes too near them is a copy; at least two.
            heldout: real rows that the network was not trained on, at least one.
            embed: (N, H, W, C) uint8 -> (N, D) features of kernel distance and coverage.
        """
        self._embed, self._labels = embed, heldout.labels
        self._pixels = RealIndex(flat_pixels(training.images))
        features = np.asarray(embed(heldout.images), dtype=np.float64)
        # The polynomial kernel counts on features of order one.
        self._scale = 1 / max(math.sqrt(float(np.mean(features**2))), 1e-12)
        self._real = features * self._scale

    def labels(self, count: int, seed: int, purpose: str) -> Labels:
        """Return labels in the shares of the held-out rows, in an order of their own."""
        order = numpy_generator(seed, purpose).permutation(len(self._labels))
        return np.resize(self._labels[order], count)

    def comparable(self, labels: Labels) -> bool:
        """Say whether a class has two held-out rows and two samples: there is a distance then."""
        classes = max(int(self._labels.max()), int(labels.max())) + 1
        real, fake = (np.bincount(one, minlength=classes) for one in (self._labels, labels))
        return bool(np.any((real >= 2) & (fake >= 2)))

    def copy_share(self, images: Images, labels: Labels) -> float:
        """Return the share of copies, in [0, 1].

        The mean over classes, so that a thin class counts as much as a thick one.
        """
        copied = self._pixels.nearest(flat_pixels(images)).ratio < COPY_RATIO
        return float(np.mean([copied[labels == label].mean() for label in set(labels.tolist())]))

    def features(self, images: Images) -> Features:
        """Return the features of samples, (N, D), in the units of the held-out rows'."""
        return np.asarray(self._embed(images), dtype=np.float64) * self._scale

    def kernel(self, features: Features, labels: Labels) -> ClassKernel:
        """Return the kernel distance to the held-out rows, class by class.

        An image of another class than it was asked for counts as wrong.

        Raises:
            StageError: not `comparable`.
        """
        return class_kernel(self._real, self._labels, features, labels)

    def covered(self, features: Features, labels: Labels, k: int) -> Features:
        """Return 1 for each held-out row that a sample of its class comes near to, else 0.

        NaN in classes that cannot tell; see `class_covered`.
        """
        return class_covered(self._real, self._labels, features, labels, k)


def draw_samples(
    model: UNet2DModel,
    weaker: UNet2DModel | None,
    spec: GeneratorSpec,
    labels: Labels,
    settings: SamplerSettings,
    seed: int,
    purpose: str,
    device: torch.device,
    first: int = 0,
) -> Images:
    """Draw one image a label, (N, H, W, C) uint8; number i has noise of its own, by (purpose, i).

    Args:
        model: the network, on `device`.
        weaker: the network of autoguidance.
        spec: the generator's description.
        labels: (N,) classes.
        settings: of the sampler.
        seed: root seed.
        purpose: name of the noise.
        device: where the network is.
        first: number of the first image.
    """
    parts: list[Images] = []
    for start in range(0, len(labels), _BATCH_IMAGES):
        part = torch.from_numpy(labels[start : start + _BATCH_IMAGES])
        noise = [torch_generator(seed, purpose, first + start + i) for i in range(len(part))]
        parts.append(from_model(sample(model, spec, part, noise, settings, device, weaker)))
    return np.concatenate(parts)
