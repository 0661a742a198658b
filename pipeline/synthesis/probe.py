"""A look at a generator while it trains: does it copy, and how near is it to held-out images?"""

import math

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.synthesis.measures import Embed, Measures, draw_samples

_PURPOSE = "probe"


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
        self._seed, self._device = seed, device
        self._measures = Measures(training, heldout, embed)
        self.labels = self._measures.labels(images, seed, _PURPOSE)

    def __call__(self, model: UNet2DModel) -> tuple[float, float]:
        """Return (share of copies, kernel distance to the held-out rows).

        NaN for the distance where no class has two held-out rows and two samples.
        """
        images, measures = self.draw(model), self._measures
        share = measures.copy_share(images, self.labels)
        if not measures.comparable(self.labels):
            return share, math.nan
        return share, measures.kernel(measures.features(images), self.labels).value

    def draw(self, model: UNet2DModel) -> Images:
        """Return the samples, (N, H, W, C) uint8."""
        return draw_samples(
            model,
            None,
            self._spec,
            self.labels,
            self._settings,
            self._seed,
            _PURPOSE,
            self._device,
        )
