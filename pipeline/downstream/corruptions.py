"""Simple corruptions of test images: does a gain hold where images are a little worse?

In the spirit of Hendrycks & Dietterich (2019, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations), at one moderate severity each. Lengths follow the image's side, so
that the same name means about the same harm from 8 to 128 px, in grey and in colour. They are not
the corruptions of ImageNet-C, and their numbers are not to be compared with its.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from pipeline.errors import StageError

Images = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Corruption = Callable[[Values, np.random.Generator], Values]

_NOISE = 0.1  # standard deviation, of the range of a pixel
_BLUR = 0.03  # standard deviation, of the image's shorter side
_LEAST_BLUR_PX = 0.5
_BRIGHTER = 0.25  # of the range of a pixel
_CONTRAST = 0.4  # what is left of it
_CHUNK_IMAGES = 256  # bounds the memory


def _add_noise(images: Values, random: np.random.Generator) -> Values:
    return images + _NOISE * random.standard_normal(images.shape, dtype=np.float32)


def _blur(images: Values, random: np.random.Generator) -> Values:
    sigma = max(_LEAST_BLUR_PX, _BLUR * min(images.shape[1:3]))
    return np.asarray(gaussian_filter(images, (0.0, sigma, sigma, 0.0), mode="nearest"))


def _brighten(images: Values, random: np.random.Generator) -> Values:
    return images + np.float32(_BRIGHTER)


def _flatten_contrast(images: Values, random: np.random.Generator) -> Values:
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(mean + np.float32(_CONTRAST) * (images - mean), dtype=np.float32)


# name -> (N, H, W, C) float32 pixels in [0, 1] to the same, clipped afterwards.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _add_noise,
    "blur": _blur,
    "brightness": _brighten,
    "contrast": _flatten_contrast,
}


def corrupt(images: Images, name: str, seed: int) -> Images:
    """Return corrupted copies of (N, H, W, C) uint8 images; the same for the same seed.

    Args:
        images: pixels in 0 to 255; not changed.
        name: a key of `CORRUPTIONS`.
        seed: of the noise; the other corruptions have no chance in them.

    Raises:
        StageError: there is no corruption of that name, or the images have another shape or type.
    """
    if name not in CORRUPTIONS:
        raise StageError(f"no corruption is called {name}; there are {', '.join(CORRUPTIONS)}")
    if images.ndim != 4 or images.dtype != np.uint8:
        raise StageError(
            f"corruption {name}: images are {images.dtype} of shape {images.shape}; they must be "
            "uint8 of shape (N, H, W, C)"
        )
    random = np.random.default_rng(seed)
    out = np.empty_like(images)
    for start in range(0, len(images), _CHUNK_IMAGES):
        part = images[start : start + _CHUNK_IMAGES].astype(np.float32) / np.float32(255)
        worse = np.clip(CORRUPTIONS[name](part, random), 0.0, 1.0)
        out[start : start + _CHUNK_IMAGES] = np.rint(worse * 255).astype(np.uint8)
    return out
