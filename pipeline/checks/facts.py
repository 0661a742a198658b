"""What is measured of each image, once, by the worker that decodes it; 36 bytes an image.

Two 64-bit hashes tell which images may look alike. ImageHash's `phash` and `dhash` take 275 us for
an image of 28 px, mostly in Pillow and in SciPy's transform; these take a tenth of that, and differ
from them in two points that make small, plain images behave: a bit is 1 only where there is
something to see, and the transform's constant term is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.errors import StageError

LOOK_PX = 64  # blur that cannot be seen at this size cannot be seen by what is trained either
_HASH_PX = 32
_BITS = 8  # a hash has 8 x 8 bits
_MAX_PX = 2**31 - 1

# DCT-II of 32 values, its 8 lowest frequencies above the constant: (8, 32).
_WAVES = np.cos(
    np.pi / _HASH_PX * np.outer(np.arange(1, _BITS + 1), np.arange(_HASH_PX) + 0.5)
).astype(np.float32)
_POWERS = (np.uint64(1) << np.arange(64, dtype=np.uint64)).astype(np.uint64)


class ImageFacts(NamedTuple):
    """What one image was measured to be, upright and before it was made square.

    Attributes:
        width: in px.
        height: in px.
        mean: of its grey values, 0 to 255.
        std: their standard deviation, 0 to 127.5.
        sharpness: variance of the Laplacian of its grey values, the longer side reduced to at most
            `LOOK_PX` (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy").
        wave_hash: 64 signs of the lowest frequencies of a cosine transform, as pHash has them.
        slope_hash: 64 bits: is a cell brighter than the one to its left, as dHash has them?
    """

    width: int
    height: int
    mean: float
    std: float
    sharpness: float
    wave_hash: int
    slope_hash: int


@dataclass(frozen=True)
class Facts:
    """The facts of N images, by column; see `ImageFacts`.

    Attributes:
        width: (N,) int32.
        height: (N,) int32.
        mean: (N,) float32.
        std: (N,) float32.
        sharpness: (N,) float32.
        wave_hash: (N,) uint64.
        slope_hash: (N,) uint64.
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


def image_facts(pixels: Images) -> ImageFacts:
    """Return the facts of one decoded image, (H, W, C) uint8 with C = 1 or 3."""
    height, width = pixels.shape[:2]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[:, :, 0]
    small = np.ascontiguousarray(grey)
    longest = max(height, width)
    if longest > LOOK_PX:
        size = tuple(max(1, (2 * n * LOOK_PX + longest) // (2 * longest)) for n in (width, height))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    mean, deviation = cv2.meanStdDev(small)
    spread = float(deviation[0, 0])
    sharpness = float(cv2.meanStdDev(cv2.Laplacian(small, cv2.CV_16S))[1][0, 0]) ** 2
    square = cv2.resize(small, (_HASH_PX, _HASH_PX), interpolation=cv2.INTER_AREA)
    # (8, 32) @ (32, 32) @ (32, 8)
    waves = _WAVES @ square.astype(np.float32) @ _WAVES.T
    # What noise of a hundredth of the contrast could bring about is no wave, nor is rounding.
    wave_bits = waves.ravel() > 0.01 * spread * (_HASH_PX / 2) + 0.5
    cells = cv2.resize(square, (_BITS + 1, _BITS), interpolation=cv2.INTER_AREA).astype(np.float32)
    slope_bits = (cells[:, 1:] - cells[:, :-1]).ravel() > 0.1 * spread
    return ImageFacts(
        width,
        height,
        float(mean[0, 0]),
        spread,
        sharpness,
        int(_POWERS[wave_bits].sum()),
        int(_POWERS[slope_bits].sum()),
    )


def gather(rows: Sequence[ImageFacts]) -> Facts:
    """Return the columns of many images' facts."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(_TYPES)
    return Facts(
        *(np.asarray(column, dtype=kind) for column, kind in zip(columns, _TYPES.values()))  # noqa: B905
    )


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


def save_facts(path: Path, facts: Facts) -> None:
    """Write the columns as an uncompressed npz file."""
    with path.open("wb") as file:
        np.savez(file, **{name: getattr(facts, name) for name in _TYPES})


def load_facts(path: Path) -> Facts:
    """Return what `save_facts` wrote; nothing is unpickled.

    Raises:
        StageError: the file is missing, damaged, or holds other columns.
    """
    try:
        # numpy leaves a damaged file open when it is given its name.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            columns = {name: held[name] for name in _TYPES}
    except Exception as error:  # numpy and zipfile raise all sorts of errors on a damaged file
        raise StageError(
            f"{path}: facts not readable ({type(error).__name__}); run again"
        ) from None
    rows = len(columns["width"]) if columns["width"].ndim == 1 else -1
    for name, kind in _TYPES.items():
        if columns[name].dtype != kind or columns[name].shape != (rows,):
            raise StageError(f"{path}: column {name} is not (N,) {np.dtype(kind).name}; run again")
    return Facts(**columns)
