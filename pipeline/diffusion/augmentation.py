"""Augmentation that does not leak into the samples: the network is told of it.

Karras et al. 2022 (EDM), appendix F.2, after Jun et al. 2020: a training image is transformed at
random, the parameters of the transform are fed to the network, and sampling feeds noughts, which
ask for images as they are. Which transforms keep a label is for the user to say.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from torch.nn import functional

Transform = Literal["flip", "flip_vertical", "translate", "rotate", "scale"]
VECTOR = 7  # flip, flip_vertical, log2 scale, cos - 1, sin, shift right, shift down
_SHIFT_SD = 0.125  # of the side; EDM, table 6
_LOG2_SCALE_SD = 0.2  # likewise


@dataclass(frozen=True)
class Augmentation:
    """Which transforms are drawn, and how often.

    Attributes:
        transforms: names; none means that images stay as they are.
        probability: chance of each transform for each image, in [0, 1].
    """

    transforms: tuple[Transform, ...]
    probability: float

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return (N, 7) parameters; a row of noughts leaves its image as it is."""
        chosen = torch.rand((count, 5), generator=generator) < self.probability
        normal = torch.randn((count, 3), generator=generator)
        angle = (torch.rand(count, generator=generator) * 2 - 1) * math.pi
        names: tuple[Transform, ...] = ("flip", "flip_vertical", "scale", "rotate", "translate")
        for column, name in enumerate(names):
            chosen[:, column] &= name in self.transforms
        flips, scaled, turned, moved = chosen[:, :2], chosen[:, 2], chosen[:, 3], chosen[:, 4]
        angle = torch.where(turned, angle, 0.0)
        return torch.column_stack(
            [
                flips.float(),
                torch.where(scaled, normal[:, 0] * _LOG2_SCALE_SD, 0.0),
                angle.cos() - 1,
                angle.sin(),
                torch.where(moved[:, None], normal[:, 1:] * _SHIFT_SD, 0.0),
            ]
        )

    def apply(self, images: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Return the transformed images (N, C, H, W); what moves in from outside is mirrored."""
        flip, flip_vertical, log2_scale, cosine, sine, right, down = vector.unbind(1)
        cosine = cosine + 1
        shrink = torch.exp2(-log2_scale)
        mirror, upend = 1 - 2 * flip, 1 - 2 * flip_vertical
        # From each place of the result to where its value stands in the image: rows of (x, y, 1).
        # A shift of one side is 2 in the coordinates of affine_grid.
        x = torch.stack([mirror * shrink * cosine, mirror * shrink * sine, -2 * right], dim=1)
        y = torch.stack([-upend * shrink * sine, upend * shrink * cosine, -2 * down], dim=1)
        grid = functional.affine_grid(
            torch.stack([x, y], dim=1), list(images.shape), align_corners=False
        )
        moved = functional.grid_sample(
            images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        # Untouched images keep their very pixels, which a resampling would round.
        return torch.where((vector != 0).any(dim=1)[:, None, None, None], moved, images)


class LabelEmbedding(nn.Embedding):
    """The class embedding, plus what the parameters of an augmentation add to it.

    Called with labels (N,) int64 it is the plain class embedding; called with (labels, vector) it
    adds a linear map of the (N, 7) vector, without a bias, so that noughts add nothing.
    """

    def __init__(self, plain: nn.Embedding) -> None:
        """Take over the plain embedding's weights."""
        super().__init__(plain.num_embeddings, plain.embedding_dim, _weight=plain.weight)
        self.weight = plain.weight  # the parameter itself: its gradient flag comes along
        self.augmentation = nn.Linear(VECTOR, plain.embedding_dim, bias=False)
        nn.init.zeros_(self.augmentation.weight)

    def forward(self, input: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return (N, D) embeddings."""
        if isinstance(input, torch.Tensor):
            return super().forward(input)
        labels, vector = input
        return super().forward(labels) + cast("torch.Tensor", self.augmentation(vector))


def feed_augmentation(model: UNet2DModel) -> None:
    """Let the network be told of augmentations: `class_labels=(labels, vector)` from now on."""
    device = model.class_embedding.weight.device
    model.class_embedding = LabelEmbedding(model.class_embedding).to(device)


def forget_augmentation(model: UNet2DModel) -> None:
    """Make it a plain network again, which diffusers saves and loads."""
    embedding = model.class_embedding
    if isinstance(embedding, LabelEmbedding):
        plain = nn.Embedding(
            embedding.num_embeddings, embedding.embedding_dim, _weight=embedding.weight.data
        )
        model.class_embedding = plain.requires_grad_(embedding.weight.requires_grad)
