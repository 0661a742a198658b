"""The encoder that all kinds share: a frozen network, its identity, and images in batches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.images import Images
from pipeline.errors import InputError

Features = npt.NDArray[np.float32]  # (N, D)


@dataclass(frozen=True)
class Encoder:
    """A fixed function from images to features.

    Attributes:
        name: shown to people, such as "timm vit_small_patch14_dinov2".
        digest: identity of all that decides the features: weights and preprocessing. Features of
            two encoders may be compared, or one's cache used for the other, where it is equal.
        width: features of an image, D.
        function: (N, H, W, C) uint8 -> (N, D) float32; call `embed`, which checks both.
    """

    name: str
    digest: str
    width: int
    function: Callable[[Images], Features] = field(repr=False, compare=False)

    def embed(self, images: Images) -> Features:
        """Return (N, D) float32 features of (N, H, W, C) uint8 images, C = 1 or 3.

        Raises:
            InputError: images of another shape or type.
        """
        if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
            raise InputError(
                f"{self.name}: images of shape {images.shape} and type {images.dtype}; it takes "
                "(N, H, W, C) uint8 with 1 or 3 channels"
            )
        if not len(images):
            return np.zeros((0, self.width), dtype=np.float32)
        return self.function(images)


def run_frozen(
    forward: Callable[[Tensor], Tensor],
    images: Images,
    width: int,
    device: torch.device,
    batch_images: int,
) -> Features:
    """Return (N, D) float32: what `forward` makes of the pixels, batch by batch.

    In float32, without the shortened mantissa (TF32) that torch allows convolutions on CUDA:
    published reference numbers are in float32, and the digest of an encoder names no device.

    Args:
        forward: (B, 3, H, W) uint8 on `device` -> (B, D); its network is in eval mode there.
        images: (N, H, W, C) uint8; a grey channel is repeated to three.
        width: D.
        device: where to compute.
        batch_images: B.
    """
    rows = np.zeros((len(images), width), dtype=np.float32)
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), flags:
        for start in range(0, len(images), batch_images):
            part = np.ascontiguousarray(images[start : start + batch_images].transpose(0, 3, 1, 2))
            pixels = torch.from_numpy(part).to(device)  # (B, C, H, W)
            if pixels.shape[1] == 1:
                pixels = pixels.expand(-1, 3, -1, -1)
            rows[start : start + len(part)] = forward(pixels).float().cpu().numpy()
    return rows
