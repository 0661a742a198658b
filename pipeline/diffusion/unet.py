"""The network: diffusers' `UNet2DModel`, sized from the images."""

import math
from dataclasses import dataclass
from typing import Literal

from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import CHANNELS, ImageMode
from pipeline.seeds import seeded_initialisers

PresetName = Literal["small", "medium", "large"]

_COARSEST_PX = 8  # the side is halved at least once, then until it is this or less
_GROUP_CHANNELS = 8  # channels that one group norm shares
_SMALL_PX = 32  # up to this side the small network does,
_MANY_IMAGES = 100_000  # below this number of images
_FEW_IMAGES = 200  # so few are learnt by heart soon: the small network up to _LARGE_PX
_LARGE_PX = 64  # above this side the large network pays,
_LARGE_IMAGES = 4000  # from this number of images on
_UNDROPPED_IMAGES = 5000  # from here on, no dropout
_MOST_DROPOUT = 0.25


@dataclass(frozen=True)
class Preset:
    """A size of the network.

    Attributes:
        base_channels: width of the first level; the others have twice as many.
        layers: residual blocks a level.
    """

    base_channels: int
    layers: int


PRESETS: dict[PresetName, Preset] = {
    "small": Preset(32, 1),
    "medium": Preset(64, 1),
    "large": Preset(96, 2),
}


def choose_preset(image_size_px: int, images: int) -> tuple[PresetName, str]:
    """Return the preset for a side and a number of training images, and the reason in words."""
    seen = f"{images:,} images of {image_size_px} px"
    if image_size_px <= _SMALL_PX:
        if images < _MANY_IMAGES:
            return "small", f"{seen}: up to {_SMALL_PX} px, below {_MANY_IMAGES:,} images"
        return "medium", f"{seen}: from {_MANY_IMAGES:,} images on"
    if image_size_px <= _LARGE_PX and images < _FEW_IMAGES:
        return "small", f"{seen}: up to {_LARGE_PX} px, below {_FEW_IMAGES:,} images"
    if image_size_px > _LARGE_PX and images >= _LARGE_IMAGES:
        return "large", f"{seen}: above {_LARGE_PX} px, from {_LARGE_IMAGES:,} images on"
    return "medium", f"{seen}: above {_SMALL_PX} px"


def choose_dropout(images: int) -> float:
    """Return the dropout for a number of training images: the fewer, the more.

    0.1 log10(5,000 / n), in [0, 0.25]: none from 5,000 images on, 0.1 at 500, 0.2 at 50.
    """
    share = 0.1 * math.log10(_UNDROPPED_IMAGES / max(images, 1))
    return round(min(max(share, 0.0), _MOST_DROPOUT), 3)


def level_sizes(image_size_px: int) -> list[int]:
    """Return the side of the feature maps at each level, for example [28, 14, 7]."""
    sizes = [image_size_px]
    while (sizes[-1] > _COARSEST_PX or len(sizes) == 1) and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def build_unet(
    image_size_px: int,
    image_mode: ImageMode,
    classes: int,
    preset: Preset,
    seed: int,
    dropout: float = 0.0,
) -> UNet2DModel:
    """Return a class-conditional network with seeded weights.

    Label `classes` is the null class: what the network is told when the label is dropped, for
    classifier-free guidance (Ho and Salimans 2022).
    """
    base = preset.base_channels
    sizes = level_sizes(image_size_px)
    # At the coarsest level alone: at 8 px, one level more halved the speed of training.
    attention = [size == sizes[-1] for size in sizes]
    # Head and group sizes divide every width, which is a multiple of 8.
    widths = [base] + [base * 2] * (len(sizes) - 1)
    with seeded_initialisers(seed, "unet"):
        return UNet2DModel(
            sample_size=image_size_px,
            in_channels=CHANNELS[image_mode],
            out_channels=CHANNELS[image_mode],
            block_out_channels=widths,
            layers_per_block=preset.layers,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
            attention_head_dim=16 if base % 16 == 0 else 8,
            norm_num_groups=_GROUP_CHANNELS,
            num_class_embeds=classes + 1,
            dropout=dropout,
        )
