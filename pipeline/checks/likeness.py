"""How much of the difference between two images is not light, contrast, shift or zoom.

To first order, a small shift or zoom of an image m moves it along its own derivatives: the tangent
distance of Simard, LeCun & Denker 1993 ("Efficient pattern recognition using a new transformation
distance"). Both images are brought to mean 0 and norm 1; of their difference e what m, its
derivatives by x and y, and x dm/dx + y dm/dy explain is taken away, m being their mean, which makes
the first order good to the second. What is left, |e'|^2, is 0 for one picture in another light or a
pixel aside, and near 2 for unrelated ones.
"""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images

SIDE_PX = 32  # larger images are reduced: derivatives reach a pixel far
_SMOOTH_FROM_PX = 16  # smaller images have no pixel to spare
_RIDGE = 1e-5  # keeps the equations of images without derivatives solvable
_EDGE = 1  # px left out: their derivatives are one-sided

Pictures = npt.NDArray[np.float32]  # (P, C, H, W)


def prepare_pictures(images: Images) -> Pictures:
    """Return (P, C, side, side) float32 of (P, S, S, C) uint8, at most `SIDE_PX`, mean 0, norm 1.

    A light smoothing lets noise and JPEG's ringing go, and makes derivatives hold for longer.
    """
    side = images.shape[1]
    if side > SIDE_PX:
        small = [
            cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for image in images
        ]
        images = np.stack(small).reshape(len(images), SIDE_PX, SIDE_PX, -1)
    pictures = images.transpose(0, 3, 1, 2).astype(np.float32)
    if pictures.shape[-1] >= _SMOOTH_FROM_PX:
        pictures = _smooth(_smooth(pictures, 2), 3)
    pictures -= pictures.mean(axis=(1, 2, 3), keepdims=True)
    norms = np.sqrt(np.einsum("pchw,pchw->p", pictures, pictures))
    pictures /= np.maximum(norms, 1e-6)[:, None, None, None]
    return pictures


def unlikeness(first: Pictures, second: Pictures) -> npt.NDArray[np.float64]:
    """Return (P,) what is left of the squared difference of each pair of prepared pictures.

    In [0, 4]; 0 is the same picture; symmetric.
    """
    pairs, _, height, width = first.shape
    middle = (first + second) / 2  # (P, C, H, W)
    across = np.gradient(middle, axis=3)
    down = np.gradient(middle, axis=2)
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2)[None, None, None, :]
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2)[None, None, :, None]
    inner = slice(_EDGE, -_EDGE)
    basis = np.stack(
        (middle, across, down, x * across + y * down, np.full_like(middle, 1 / height)), axis=1
    )[..., inner, inner].reshape(pairs, 5, -1)  # (P, 5, D)
    rest = (second - first)[..., inner, inner].reshape(pairs, -1)  # (P, D)
    products = np.einsum("pid,pjd->pij", basis, basis, dtype=np.float64)
    products += _RIDGE * np.eye(5)
    seen = np.einsum("pid,pd->pi", basis, rest, dtype=np.float64)
    amounts = np.linalg.solve(products, seen[..., None])[..., 0]
    rest = rest - np.einsum("pi,pid->pd", amounts.astype(np.float32), basis)
    return np.asarray(np.einsum("pd,pd->p", rest, rest, dtype=np.float64))


def _smooth(pictures: Pictures, axis: int) -> Pictures:
    widths = [(0, 0)] * 4
    widths[axis] = (1, 1)
    padded = np.pad(pictures, widths, mode="edge")
    size = pictures.shape[axis]
    parts = [np.take(padded, range(start, start + size), axis=axis) for start in range(3)]
    return np.asarray(parts[0] / 4 + parts[1] / 2 + parts[2] / 4, dtype=np.float32)
