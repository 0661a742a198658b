"""What is measured of each image, once, by the worker that decodes it; 36 bytes an image.

Two 64-bit hashes tell which images may look alike. ImageHash's `phash` and `dhash` take 275 us for
an image of 28 px, mostly in Pillow and in SciPy's transform; these take a tenth of that, and differ
from them in two points that make small, plain images behave: a bit is 1 only where there is
something to see, and the transform's constant term is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images

LOOK_PX = 64  # blur that cannot be seen at this size cannot be seen by what is trained either
_HASH_PX = 32
_BITS = 8  # a hash has 8 x 8 bits

# DCT-II of 32 values, its 8 lowest frequencies above the constant: (8, 32).
_WAVES = np.cos(
    np.pi / _HASH_PX * np.outer(np.arange(1, _BITS + 1), np.arange(_HASH_PX) + 0.5)
).astype(np.float32)


class Look(NamedTuple):
    """What of one decoded image is measured.

    Attributes:
        width: in px, upright and before it was made square.
        height: in px.
        grey: (h, w) uint8, the longer side reduced to at most `LOOK_PX`.
    """

    width: int
    height: int
    grey: Images


@dataclass(frozen=True)
class Facts:
    """The facts of N images, by column.

    Attributes:
        width: (N,) int32, in px, upright and before the image was made square.
        height: (N,) int32, in px.
        mean: (N,) float32, of its grey values, 0 to 255.
        std: (N,) float32, their standard deviation, 0 to 127.5.
        sharpness: (N,) float32, variance of the Laplacian of its grey values, the longer side
            reduced to at most `LOOK_PX` (Pech-Pacheco et al. 2000, "Diatom autofocusing in
            brightfield microscopy").
        wave_hash: (N,) uint64, signs of the lowest frequencies of a cosine transform, as pHash has.
        slope_hash: (N,) uint64: is a cell brighter than the one to its left, as dHash has them?
    """

    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    sharpness: npt.NDArray[np.float32]
    wave_hash: npt.NDArray[np.uint64]
    slope_hash: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.width)

    def take(self, rows: npt.NDArray[np.int64]) -> "Facts":
        """Return the facts of the given rows, in their order."""
        return Facts(*(getattr(self, field.name)[rows] for field in fields(Facts)))


_TYPES = {
    "width": np.int32,
    "height": np.int32,
    "mean": np.float32,
    "std": np.float32,
    "sharpness": np.float32,
    "wave_hash": np.uint64,
    "slope_hash": np.uint64,
}


def look(pixels: Images, size: tuple[int, int] | None = None) -> Look:
    """Return what is measured of one decoded image.

    Args:
        pixels: (H, W, C) uint8, C = 1 or 3.
        size: width and height of the whole image, where `pixels` are a reduced one.
    """
    height, width = pixels.shape[:2]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[:, :, 0]
    longest = max(height, width)
    if longest > LOOK_PX:
        small = tuple(max(1, (2 * n * LOOK_PX + longest) // (2 * longest)) for n in (width, height))
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    width, height = size or (width, height)
    return Look(width, height, np.ascontiguousarray(grey, dtype=np.uint8))


def measure(looks: Sequence[Look]) -> Facts:
    """Return the facts of N images, which do not depend on what else is measured with them."""
    count = len(looks)
    squares = np.zeros((count, _HASH_PX, _HASH_PX), dtype=np.uint8)
    cells = np.zeros((count, _BITS, _BITS + 1), dtype=np.uint8)
    mean, std, sharpness = (np.zeros(count) for _ in range(3))
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, one in enumerate(looks):
        squares[row] = cv2.resize(one.grey, (_HASH_PX, _HASH_PX), interpolation=cv2.INTER_AREA)
        cells[row] = cv2.resize(squares[row], (_BITS + 1, _BITS), interpolation=cv2.INTER_AREA)
        alike.setdefault(one.grey.shape, []).append(row)
    for rows in alike.values():
        grey = np.stack([looks[row].grey for row in rows])
        mean[rows], variance = _moments(grey)
        std[rows] = np.sqrt(variance)
        sharpness[rows] = _moments(_laplacian(grey))[1]
    # (8, 32) @ (N, 32, 32) @ (32, 8)
    waves = _WAVES @ squares.astype(np.float32) @ _WAVES.T
    # What noise of a hundredth of the contrast could bring about is no wave, nor is rounding.
    floor = std.astype(np.float32)[:, None, None]
    wave_bits = waves > 0.01 * floor * (_HASH_PX / 2) + 0.5
    slope_bits = np.diff(cells.astype(np.float32), axis=2) > 0.1 * floor
    return Facts(
        width=np.asarray([one.width for one in looks], dtype=np.int32),
        height=np.asarray([one.height for one in looks], dtype=np.int32),
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        sharpness=sharpness.astype(np.float32),
        wave_hash=_hash(wave_bits),
        slope_hash=_hash(slope_bits),
    )


def _moments(
    values: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance of each (h, w) of (n, h, w) integers, exact before the division."""
    flat = values.reshape(len(values), -1).astype(np.int64)
    count, total = flat.shape[1], flat.sum(axis=1)
    squares = np.einsum("ni,ni->n", flat, flat)
    return total / count, (count * squares - total * total) / count**2


def _laplacian(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Return (n, h, w): the four neighbours less four times the pixel, mirrored at the edge."""
    wide = np.pad(grey.astype(np.int16), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    middle = wide[:, 1:-1, 1:-1]
    beside = wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    return beside + wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] - 4 * middle


def _hash(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return (N,) of (N, 8, 8) bits, the first as the lowest."""
    packed = np.packbits(bits.reshape(len(bits), _BITS * _BITS), axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64).reshape(len(bits))


def concatenate_facts(parts: Sequence[Facts]) -> Facts:
    """Return the facts of all parts, in order."""
    return Facts(
        *(
            np.concatenate([getattr(part, name) for part in parts]).astype(kind)
            if parts
            else np.zeros(0, dtype=kind)
            for name, kind in _TYPES.items()
        )
    )
