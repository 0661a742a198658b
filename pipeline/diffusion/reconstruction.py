"""How well a network denoises single images: what a membership attack looks at.

A network denoises an image that it has learnt by heart better than one like it (Carlini et al.
2023, "Extracting training data from diffusion models", section 5; Matsumoto et al. 2023,
"Membership inference attacks against diffusion models", section 4). No shadow networks are
trained: the loss itself is the score, as Yeom et al. 2018 have it.
"""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.images import Images, to_model
from pipeline.device import Precision
from pipeline.diffusion.checkpoints import Generator
from pipeline.diffusion.noise import Levels
from pipeline.diffusion.objective import Objective
from pipeline.errors import StageError
from pipeline.seeds import torch_generator

LEVELS = 8
DRAWS = 2
_GAMMA = 5.0  # Hang et al. 2023: their choice


def reconstruction_losses(
    generator: Generator,
    images: Images,
    labels: npt.NDArray[np.integer],
    seed: int,
    device: torch.device,
    precision: Precision = "float32",
    levels: int = LEVELS,
    draws: int = DRAWS,
) -> npt.NDArray[np.float64]:
    """Return the mean denoising loss of each image, (N,) float64, >= 0; low where it is known.

    The min-SNR weighted squared error (Hang et al. 2023), over `levels` noise levels spread over
    what training draws and `draws` noises at each. Every image gets the same noises, in this call
    and in any other with the same seed: what differs between two images is the images. So losses
    of training and of held-out images compare; `pipeline.metrics.membership` does that.

    An image takes levels x draws network evaluations, 16 by default, whatever the other images.

    Args:
        generator: the network, on `device`, and its noise process.
        images: (N, H, W, C) uint8, as they are, without augmentation.
        labels: (N,) their classes; the network is told them.
        seed: root seed of the noises.
        device: where the network is.
        precision: of its arithmetic.
        levels: noise levels, >= 1.
        draws: noises at each, >= 1.

    Raises:
        StageError: images and labels differ in number, or no level or draw is asked for.
    """
    if len(images) != len(labels):
        raise StageError(f"reconstruction: {len(images)} images, but {len(labels)} labels")
    if min(levels, draws) < 1:
        raise StageError(f"reconstruction: {levels} levels, {draws} draws; take at least 1 of each")
    spec, model = generator.spec, generator.model
    objective = Objective(
        spec.process, "min_snr", _GAMMA, label_dropout=0.0, null_class=0, precision=precision
    )
    shape = (levels * draws, images.shape[3], *images.shape[1:3])
    noise = torch.randn(shape, generator=torch_generator(seed, "reconstruction")).to(device)
    spread = spec.process.spread(levels)
    at = Levels(*(one.repeat(draws) for one in (spread.signal, spread.noise, spread.time)))
    at = at.to(device)
    trains = model.training
    model.eval()  # dropout would give each image noise of its own
    losses = np.empty(len(images))
    for row, label in enumerate(labels.tolist()):
        one = to_model(images[row : row + 1]).to(device).expand(shape)
        told = torch.full((len(noise),), label, device=device)
        losses[row] = objective.error(model, one, told, noise, at).item()
    model.train(trains)
    return losses
