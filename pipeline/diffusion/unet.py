"""The network: diffusers' `UNet2DModel`, sized from the images."""

from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.images import CHANNELS, ImageMode
from pipeline.seeds import seeded_initialisers

_COARSEST_PX = 8  # the side is halved at least once, then until it is this or less
_GROUP_CHANNELS = 8  # channels that one group norm shares


def default_base_channels(image_size_px: int) -> int:
    """Return the width of the first level: 32 trains in minutes on two cores up to 32 px."""
    return 32 if image_size_px <= 32 else 64


def level_sizes(image_size_px: int) -> list[int]:
    """Return the side of the feature maps at each level, for example [28, 14, 7]."""
    sizes = [image_size_px]
    while (sizes[-1] > _COARSEST_PX or len(sizes) == 1) and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def build_unet(
    image_size_px: int, image_mode: ImageMode, classes: int, base_channels: int | None, seed: int
) -> UNet2DModel:
    """Return a class-conditional network with seeded weights.

    Label `classes` is the null class: what the network is told when the label is dropped, for
    classifier-free guidance (Ho and Salimans 2022).
    """
    base = base_channels or default_base_channels(image_size_px)
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
            layers_per_block=1,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
            attention_head_dim=16 if base % 16 == 0 else 8,
            norm_num_groups=_GROUP_CHANNELS,
            num_class_embeds=classes + 1,
        )
