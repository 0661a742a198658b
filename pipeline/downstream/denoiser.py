"""A classifier that starts from the generator's network: what denoising has taught it of images.

A network that denoises images well knows what is in them, and a generator that learned from
unlabelled images knows more of them than any label tells. Baranchuk et al. 2022 (Label-Efficient
Semantic Segmentation with Diffusion Models) and Xiang et al. 2023 (Denoising Diffusion
Autoencoders are Unified Self-supervised Learners) read such networks around the middle and at
little noise; the latter fine-tune them too, as is done here.
"""

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from pipeline.diffusion.checkpoints import Generator, load_generator
from pipeline.features.classifier import Classifier
from pipeline.seeds import seeded_initialisers

_CELLS = 3  # side of the maps that are read, as in `SmallCNN`
_SIGMA = 0.03  # noise over signal that the network is told of; the images themselves are clean


class DenoiserClassifier(Classifier):
    """The way down of a UNet, its middle and the first block of the way up; then a linear head.

    The maps behind the middle and behind that block are averaged to 3 x 3 cells and normalised.
    """

    def __init__(self, generator: Generator) -> None:
        """Take over a generator's network, which is changed by training.

        Args:
            generator: on the CPU; its classes are those of the head, which starts at zero.
        """
        super().__init__()
        network, spec = generator.model, generator.spec
        self.network = network
        self.null_class = len(spec.classes)
        process = spec.process
        levels = process.at(torch.arange(process.betas.shape[0]))
        place = int((levels.noise / levels.signal - _SIGMA).abs().argmin())
        self._level = levels.part(slice(place, place + 1))
        self._process = process
        for weight in network.parameters():
            weight.requires_grad_(True)
        up = network.up_blocks[0]
        # What is read nowhere is neither trained nor kept.
        network.up_blocks = nn.ModuleList([up])
        network.conv_norm_out, network.conv_out = None, None
        width = (_width_behind(network.mid_block) + _width_behind(up)) * _CELLS**2
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, self.null_class)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) float32 features of (N, C, H, W) images in [-1, 1]."""
        network: UNet2DModel = self.network
        level = self._level.to(x.device)
        time = level.time.expand(len(x))
        embedded = network.time_embedding(network.time_proj(time).to(x.dtype))
        labels = torch.full((len(x),), self.null_class, device=x.device)
        embedded = embedded + network.class_embedding(labels)
        # Without noise at the network's own scale: x_0 times the signal is its mean.
        seen = self._process.network_input(level.signal.view(1, 1, 1, 1) * x, level)
        hidden = network.conv_in(seen)
        kept = (hidden,)
        for block in network.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=embedded)
            kept += more
        middle = network.mid_block(hidden, embedded)
        (up,) = network.up_blocks
        raised = up(middle, kept[-len(up.resnets) :], embedded)
        cells = [functional.adaptive_avg_pool2d(one, _CELLS).flatten(1) for one in (middle, raised)]
        found: Tensor = self.norm(torch.cat(cells, dim=1).float())
        return found


def start_from_generator(folder: Path, seed: int) -> DenoiserClassifier:
    """Return a classifier that starts from a saved generator, on the CPU, ready to be trained.

    Args:
        folder: of `save_generator`.
        seed: of what is drawn where it starts, though all that is new starts at zero or one.

    Raises:
        InputError: the folder is missing or damaged.
    """
    with seeded_initialisers(seed):
        return DenoiserClassifier(load_generator(folder, torch.device("cpu")))


def _width_behind(block: nn.Module) -> int:
    return int(block.resnets[-1].conv2.out_channels)
