"""A look at a generator while it trains: does it copy, and how near is it to held-out images?"""

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
from pipeline.metrics.kernel import class_kernel_distance
from pipeline.metrics.memorization import COPY_RATIO, RealIndex
from pipeline.seeds import numpy_generator, torch_generator

Embed = Callable[[Images], npt.NDArray[np.floating]]

_BATCH_IMAGES = 64


class Probe:
    """Draws the same samples at every call, but for the network, and measures them.

    The labels are those of the held-out rows, repeated in turn, so that samples and held-out rows
    hold the classes in the same shares.
    """

    def __init__(
        self,
        spec: GeneratorSpec,
        training: Samples,
        heldout: Samples,
        embed: Embed,
        settings: SamplerSettings,
        images: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Lay out the real rows.

        Args:
            spec: of the generator.
            training: rows that it is trained on; what comes too near them is a copy.
            heldout: real rows that it is not trained on, at least one.
            embed: (N, H, W, C) uint8 -> (N, D) features for the kernel distance.
            settings: of the sampler.
            images: samples to draw.
            seed: root seed.
            device: where the network is.
        """
        self._spec, self._settings = spec, settings
        self._seed, self._device, self._embed = seed, device, embed
        # Each class as often as the held-out rows have it, in an order of its own.
        order = numpy_generator(seed, "probe").permutation(len(heldout))
        self.labels = np.resize(heldout.labels[order], images)
        self._pixels = RealIndex(flat_pixels(training.images))
        features = np.asarray(embed(heldout.images), dtype=np.float64)
        # The polynomial kernel counts on features of order one.
        self._scale = 1 / max(math.sqrt(float(np.mean(features**2))), 1e-12)
        self._real, self._real_labels = features * self._scale, heldout.labels
        enough = np.bincount(heldout.labels) >= 2
        self._comparable = bool(
            np.any(enough & (np.bincount(self.labels, minlength=len(enough)) >= 2))
        )

    def __call__(self, model: UNet2DModel) -> tuple[float, float]:
        """Return (share of copies, kernel distance to the held-out rows).

        The share of copies is the mean over classes, so that a thin class counts as much as a thick
        one. The kernel distance is taken class by class: an image of another class than it was
        asked for counts as wrong. NaN where no class has two held-out rows and two samples.
        """
        images = self.draw(model)
        ratio = self._pixels.nearest(flat_pixels(images)).ratio
        copied = ratio < COPY_RATIO
        share = float(np.mean([copied[self.labels == c].mean() for c in set(self.labels)]))
        if not self._comparable:
            return share, math.nan
        fake = np.asarray(self._embed(images), dtype=np.float64) * self._scale
        return share, class_kernel_distance(self._real, self._real_labels, fake, self.labels)

    def draw(self, model: UNet2DModel) -> Images:
        """Return the samples, (N, H, W, C) uint8."""
        parts: list[Images] = []
        for start in range(0, len(self.labels), _BATCH_IMAGES):
            labels = torch.from_numpy(self.labels[start : start + _BATCH_IMAGES])
            noise = [torch_generator(self._seed, "probe", start + i) for i in range(len(labels))]
            drawn = sample(model, self._spec, labels, noise, self._settings, self._device)
            parts.append(from_model(drawn))
        return np.concatenate(parts)
