"""Artefacts: blank, clipped and noisy images, by limits that real rows set.

Grey digits are mostly black by nature and a photograph is not, so what counts as too dark or too
rough is read off the real rows, with some slack: an artefact is told from any real image, not from
the middle of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.curation.thumbs import blur
from pipeline.data.images import Images

Floats = npt.NDArray[np.float64]

_BLOCK_VALUES = 1 << 22
_TAIL = 0.002  # of the real rows, which may hold broken images themselves
_LEAST_SPREAD = 0.5  # of what the real rows show
_CLIP_SLACK = 0.1  # of the way to an image that is clipped throughout
_ROUGH_SLACK = 1.05


@dataclass(frozen=True)
class Texture:
    """What is measured of each of N images.

    Attributes:
        spread: (N,) root mean square of the pixels about each channel's mean, in [0, 0.5].
        dark: (N,) share of values at 0 or 1 of 255.
        bright: (N,) share of values at 254 or 255.
        rough: (N,) share of the variance that smoothing over 3 x 3 pixels takes away, in [0, 2.25]:
            near 0 for an even slope, about 0.64 for white noise.
    """

    spread: Floats
    dark: Floats
    bright: Floats
    rough: Floats


@dataclass(frozen=True)
class TextureLimits:
    """Least spread, and most of the others; see `Texture`."""

    spread: float
    dark: float
    bright: float
    rough: float


def measure_texture(images: Images) -> Texture:
    """Measure (N, H, W, C) uint8 images."""
    block = max(1, _BLOCK_VALUES // max(1, int(np.prod(images.shape[1:]))))
    parts = [
        _measure_block(images[start : start + block]) for start in range(0, len(images), block)
    ]
    if not parts:
        return Texture(*(np.zeros(0),) * 4)
    return Texture(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def fit_texture(real: Sequence[Texture]) -> TextureLimits:
    """Return the limits that nearly all real rows keep to by a margin; needs at least 1 row."""

    def most(name: str) -> float:
        values = np.concatenate([getattr(part, name) for part in real])
        return float(np.quantile(values, 1 - _TAIL, method="higher"))

    spread = np.concatenate([part.spread for part in real])
    dark, bright = most("dark"), most("bright")
    return TextureLimits(
        spread=_LEAST_SPREAD * float(np.quantile(spread, _TAIL, method="lower")),
        dark=dark + _CLIP_SLACK * (1 - dark),
        bright=bright + _CLIP_SLACK * (1 - bright),
        rough=_ROUGH_SLACK * most("rough"),
    )


def _measure_block(images: Images) -> tuple[Floats, Floats, Floats, Floats]:
    values = images.astype(np.float32) / np.float32(255)
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    variance = _mean_square(centred)
    rough = _mean_square(values - blur(values)) / np.maximum(variance, 1e-8)
    dark = (images <= 1).mean(axis=(1, 2, 3))
    bright = (images >= 254).mean(axis=(1, 2, 3))
    return np.sqrt(variance), dark, bright, rough


def _mean_square(values: npt.NDArray[np.float32]) -> Floats:
    flat = values.reshape(len(values), -1)
    square: Floats = np.einsum("nd,nd->n", flat, flat).astype(np.float64) / flat.shape[1]
    return square
