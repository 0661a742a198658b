"""The one place where images change representation: PNG bytes, uint8 arrays, [-1, 1] tensors."""

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch

Images = npt.NDArray[np.uint8]  # (N, H, W, C) or (H, W, C), C = 1 (grey) or 3 (colour)
ImageMode = Literal["L", "RGB"]
CHANNELS: dict[ImageMode, int] = {"L": 1, "RGB": 3}


def encode_png(image: Images) -> bytes:
    """Return the PNG bytes of one (H, W, C) uint8 image, C = 1 or 3."""
    import cv2  # half of Pillow's time; imported here, since it is not needed to read

    blue_first = np.ascontiguousarray(image[:, :, ::-1])
    sound, data = cv2.imencode(".png", blue_first, (cv2.IMWRITE_PNG_COMPRESSION, 6))
    if not sound:
        raise ValueError(f"an image of shape {image.shape} cannot be written as PNG")
    return data.tobytes()


def decode_png(data: bytes, mode: ImageMode) -> Images:
    """Return the (H, W, C) uint8 pixels of a PNG that Replenish wrote."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], CHANNELS[mode])


def to_model(images: Images) -> "torch.Tensor":
    """Return (N, C, H, W) float32 in [-1, 1] for (N, H, W, C) uint8 in [0, 255]."""
    import torch  # here: those who only read and write images start without it

    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels.float().div_(127.5).sub_(1.0)


def from_model(images: "torch.Tensor") -> Images:
    """Return (N, H, W, C) uint8 for (N, C, H, W) floats in [-1, 1]; values outside are clipped."""
    import torch

    pixels = images.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def flat_pixels(images: Images) -> npt.NDArray[np.float32]:
    """Return (N, H * W * C) float32 in [0, 1], to measure distances between images."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def contact_sheet(rows: list[Images], gap_px: int = 1, scale: int = 1) -> Images:
    """Return one (H, W, C) image with a row for each (N, h, w, C) array, on a grey ground.

    Rows may differ in length; `scale` repeats each pixel.
    """
    _, height, width, channels = rows[0].shape
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (len(rows) * (height + gap_px) + gap_px, columns * (width + gap_px) + gap_px, channels),
        128,
        dtype=np.uint8,
    )
    for i, row in enumerate(rows):
        top = gap_px + i * (height + gap_px)
        for j, image in enumerate(row):
            left = gap_px + j * (width + gap_px)
            sheet[top : top + height, left : left + width] = image
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
