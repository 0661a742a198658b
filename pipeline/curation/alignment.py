"""How alike two images are once one is moved a little and its brightness and contrast are fitted.

The residual of the best fit b = gain * a + offset over the part where both overlap is
sqrt(1 - rho ** 2), rho the normalised cross-correlation (Lewis 1995, "Fast normalized
cross-correlation"): 0 for the same picture, 1 for two that have nothing in common. Its means and
energies over all overlaps come from running sums, so that one product of pixels a move is left.
"""

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images

Floats = npt.NDArray[np.float64]

REACH_PX = 2
_BLOCK_PAIRS = 512
_STILL = 1e-6  # share of an image's energy below which an overlap is flat


def residuals(first: Images, second: Images, reach_px: int = REACH_PX) -> Floats:
    """Return the (P,) least residual of each pair of (P, h, w, C) uint8 images, in [0, 1].

    Moves of up to `reach_px` in both directions are tried, at most a quarter of the image; the
    offset is of each channel, the gain of all, and never negative: a negative is another picture.
    Two flat images are the same; a flat one and another have nothing in common.
    """
    found = np.zeros(len(first))
    for start in range(0, len(first), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        found[block] = _block_residuals(first[block], second[block], reach_px)
    return found


def _block_residuals(first: Images, second: Images, reach_px: int) -> Floats:
    count, height, width, _ = first.shape
    down_most, right_most = min(reach_px, height // 4), min(reach_px, width // 4)
    a, b = _centred(first), _centred(second)
    rows, columns = _edges(height, down_most), _edges(width, right_most)
    sums = [_running(values, down_most, right_most) for values in (a, a**2, b, b**2)]
    energy_a, energy_b = sums[1][:, -1, -1].sum(axis=1), sums[3][:, -1, -1].sum(axis=1)
    best = np.full(count, -1.0)
    for down in range(-down_most, down_most + 1):
        for right in range(-right_most, right_most + 1):
            y, x = max(0, down), max(0, right)
            tall, wide = height - abs(down), width - abs(right)
            v, u = y - down, x - right
            product = np.einsum(
                "nyxc,nyxc->n",
                a[:, y : y + tall, x : x + wide],
                b[:, v : v + tall, u : u + wide],
            )
            mean_a, square_a = (_window(one, y, x, tall, wide, rows, columns) for one in sums[:2])
            mean_b, square_b = (_window(one, v, u, tall, wide, rows, columns) for one in sums[2:])
            cells = tall * wide
            covariance = product - (mean_a * mean_b).sum(axis=1) / cells
            spread_a = (square_a - mean_a**2 / cells).sum(axis=1)
            spread_b = (square_b - mean_b**2 / cells).sum(axis=1)
            moving = (spread_a > _STILL * energy_a) & (spread_b > _STILL * energy_b)
            scale = np.sqrt(np.maximum(spread_a * spread_b, 1e-30))
            best = np.maximum(best, np.where(moving, covariance / scale, -1.0))
    blank = (energy_a == 0) & (energy_b == 0)
    best = np.where(blank, 1.0, np.clip(best, 0.0, 1.0))
    # To 1e-4: sums of other orders must not tell two equal pictures apart.
    residual: Floats = np.sqrt(1.0 - best**2).astype(np.float64).round(4)
    return residual


def _centred(images: Images) -> npt.NDArray[np.float32]:
    values = images.astype(np.float32)
    values -= values.mean(axis=(1, 2), keepdims=True)
    return values


def _edges(side: int, most: int) -> list[int]:
    """Return where a window can begin or end."""
    return [*range(most + 1), *range(side - most, side + 1)]


def _running(values: npt.NDArray[np.float32], down_most: int, right_most: int) -> Floats:
    """Return (N, E, F, C) sums over all rows above and columns before each pair of edges."""
    count, height, width, channels = values.shape
    for axis, edges in ((1, _edges(height, down_most)), (2, _edges(width, right_most))):
        values = np.add.reduceat(values, edges[:-1], axis=axis)
    sums = np.zeros((count, values.shape[1] + 1, values.shape[2] + 1, channels))
    np.cumsum(np.cumsum(values, axis=1, dtype=np.float64), axis=2, out=sums[:, 1:, 1:])
    return sums


def _window(
    sums: Floats, top: int, left: int, tall: int, wide: int, rows: list[int], columns: list[int]
) -> Floats:
    """Return the (N, C) sum over a window."""
    upper, lower = rows.index(top), rows.index(top + tall)
    first, last = columns.index(left), columns.index(left + wide)
    window: Floats = (
        sums[:, lower, last] - sums[:, upper, last] - sums[:, lower, first] + sums[:, upper, first]
    )
    return window
