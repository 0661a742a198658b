"""Plain descriptors of images: small pixels, and histograms of oriented gradients."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images

_SIDE_PX = 32
_PIXELS_PX = 16
_CELL_PX = 8
_ORIENTATIONS = 9

Descriptors = npt.NDArray[np.float32]


def describe(images: Images) -> tuple[Descriptors, Descriptors]:
    """Return (n, 256 C) pixels of 16 px in [0, 1] and (n, 324) histograms of (n, S, S, C) uint8."""
    count, channels = len(images), images.shape[3]
    small = np.zeros((count, _PIXELS_PX, _PIXELS_PX, channels), dtype=np.uint8)
    grey = np.zeros((count, _SIDE_PX, _SIDE_PX), dtype=np.float32)
    for row, image in enumerate(images):
        small[row] = _resized(image, _PIXELS_PX).reshape(small.shape[1:])
        one = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 3 else image
        grey[row] = _resized(one, _SIDE_PX).reshape(grey.shape[1:])
    return small.reshape(count, -1).astype(np.float32) / np.float32(255), histograms(grey)


def histograms(grey: npt.NDArray[np.float32]) -> Descriptors:
    """Return (n, 324) histograms of oriented gradients of (n, 32, 32) grey values.

    Cells of 8 px, 9 orientations without sign, each gradient shared by the two nearest of them;
    blocks of 2 x 2 cells, each of norm 1, as Dalal & Triggs 2005 have them.
    """
    down, across = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, across)
    place = np.mod(np.arctan2(down, across), np.pi) * (_ORIENTATIONS / np.pi)
    lower = np.floor(place)
    upper_share = place - lower
    cells_side = grey.shape[1] // _CELL_PX
    cells = np.zeros((len(grey), cells_side, cells_side, _ORIENTATIONS), dtype=np.float32)
    for orientation in range(_ORIENTATIONS):
        here = np.mod(lower, _ORIENTATIONS) == orientation
        next_to = np.mod(lower + 1, _ORIENTATIONS) == orientation
        votes = strength * (here * (1 - upper_share) + next_to * upper_share)
        cells[..., orientation] = votes.reshape(
            len(grey), cells_side, _CELL_PX, cells_side, _CELL_PX
        ).sum(axis=(2, 4))
    blocks = np.concatenate(
        (cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]), axis=3
    )
    blocks /= np.sqrt(np.square(blocks).sum(axis=3, keepdims=True)) + 1.0
    return blocks.reshape(len(grey), -1)


def _resized(image: Images, side_px: int) -> Images:
    reduces = image.shape[0] > side_px
    how = cv2.INTER_AREA if reduces else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (side_px, side_px), interpolation=how), dtype=np.uint8)
