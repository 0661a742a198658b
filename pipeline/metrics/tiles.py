"""Squared distances in tiles: float32 products, each with the bounds that its rounding leaves.

|x|^2 + |y|^2 - 2 x.y of centred rows has a known largest error (Higham 2002, "Accuracy and
stability of numerical algorithms", eq. 3.5): taken off, the product is a lower bound, put on, an
upper one. What lies between is measured anew, by `distances`.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.metrics.estimate import Rows
from pipeline.metrics.threads import in_order

FloatArray = npt.NDArray[np.float64]
SingleArray = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
# Row, column, lower and upper bound of some pairs; two strips of rows that make a tile.
Picked = tuple[Index, Index, FloatArray, FloatArray]
StripPair = tuple["Strip", "Strip"]

BLOCK_ROWS = 1024  # a tile of 1,024 x 1,024 float32 is 4 MiB: it stays in the cache
_PAIRS_AT_ONCE = 4096  # measured in float64; 16 MiB at 512 features
_SINGLE = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-100  # covers what underflows in float32, rows being at most 1 wide


def distances(x: Rows, y: Rows, i: Index, j: Index) -> FloatArray:
    """Measure the L2 distance from row i to row j, pair by pair, in float64 by differences.

    A pair's distance depends on its two rows alone, and not on their order.
    """

    def measure(start: int) -> FloatArray:
        part = slice(start, start + _PAIRS_AT_ONCE)
        gaps = x[i[part]].astype(np.float64)  # (P, D)
        gaps -= y[j[part]]
        gaps *= gaps
        squares: FloatArray = gaps.sum(axis=1)
        return np.sqrt(squares, out=squares)

    starts = range(0, len(i), _PAIRS_AT_ONCE)
    found = list(in_order(measure, starts) if len(starts) > 1 else map(measure, starts))
    return np.concatenate(found) if found else np.zeros(0)


@dataclass(frozen=True)
class Frame:
    """Where float32 has its digits: rows less a centre, times a power of two."""

    centre: FloatArray
    scale: float
    error: float  # of a squared distance, over |x|^2 + |y|^2

    @classmethod
    def around(cls, *sets: Rows) -> "Frame":
        """Return the frame that the first set is centred in and no set leaves.

        Raises:
            StageError: the features are so large that their squares are not finite.
        """
        width = sets[0].shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            centre = sum(
                (block.sum(axis=0, dtype=np.float64) for block in blocks(sets[0])),
                np.zeros(width),
            ) / max(1, len(sets[0]))
            widest = max(
                (float(np.abs(block - centre).max()) for rows in sets for block in blocks(rows)),
                default=0.0,
            )
        if not widest < 1e150:
            raise StageError("neighbours: the features are too large to square; scale them down")
        # Rounded products: 2 (D + 2) units, rounded rows and norms: 5 more; and the sums of these.
        error = 1.01 * (2 * (width + 2) + 8) * _SINGLE
        return cls(centre, 2.0 ** -np.ceil(np.log2(widest)) if widest > 1e-150 else 1.0, error)

    def apply(self, block: Rows) -> SingleArray:
        """Centre and scale rows, (B, D)."""
        return ((block - self.centre) * self.scale).astype(np.float32)

    def right(self, block: Rows, out: SingleArray) -> FloatArray:
        """Fill (y, 1, |y|^2 - slack), (B, D + 2), and return the slack, (B,)."""
        out[:, :-2] = self.apply(block)
        wide = out[:, :-2].astype(np.float64)
        norms = np.einsum("nd,nd->n", wide, wide)
        slack: FloatArray = self.error * norms + TINY
        out[:, -2] = 1
        out[:, -1] = norms - slack
        return slack


@dataclass(frozen=True)
class Tile:
    """Lower bounds of the squared distances of some rows to some others, (B, C)."""

    low: SingleArray
    row: int
    column: int
    row_slack: FloatArray
    column_slack: FloatArray

    @property
    def here(self) -> slice:
        """Return the numbers of its rows."""
        return slice(self.row, self.row + len(self.row_slack))

    @property
    def there(self) -> slice:
        """Return the numbers of its columns."""
        return slice(self.column, self.column + len(self.column_slack))

    def pick(self, mask: npt.NDArray[np.bool_]) -> Picked:
        """Return row, column, lower and upper bound of the marked pairs."""
        flat = np.flatnonzero(mask)
        i, j = np.divmod(flat, self.low.shape[1])
        low = self.low.reshape(-1)[flat].astype(np.float64)
        high = low + 2 * (self.row_slack[i] + self.column_slack[j])
        return i + self.row, j + self.column, low, high


@dataclass(frozen=True)
class Strip:
    """Some rows in a row, laid out as `Frame.right` does."""

    start: int
    right: SingleArray
    slack: FloatArray

    def left(self) -> SingleArray:
        """Return (-2 x, |x|^2 - slack, 1), whose product with a `right` is the lower bound."""
        left = np.empty_like(self.right)
        np.multiply(self.right[:, :-2], -2, out=left[:, :-2])
        left[:, -2], left[:, -1] = self.right[:, -1], 1
        return left


def strips(frame: Frame, rows: Rows, block_rows: int) -> Iterator[Strip]:
    """Yield rows in strips of nearly one size, each laid out when it is asked for."""
    for start, stop in cuts(len(rows), block_rows):
        out = np.empty((stop - start, rows.shape[1] + 2), np.float32)
        slack = frame.right(rows[start:stop], out)
        yield Strip(start, out, slack)


def strip_pairs(
    frame: Frame, x: Rows, y: Rows, block_rows: int, skip: int = 0
) -> Iterator[StripPair]:
    """Yield every strip of x with every one of y; the smaller set is held, the other streamed.

    `skip` leaves out the first strip of y, which has so many rows.
    """
    if len(x) >= len(y):
        held = [strip for strip in strips(frame, y, block_rows) if strip.start >= skip]
        if held:
            for strip in strips(frame, x, block_rows):
                yield from ((strip, other) for other in held)
    else:
        held = list(strips(frame, x, block_rows))
        for strip in strips(frame, y, block_rows):
            if strip.start >= skip:
                yield from ((other, strip) for other in held)


_memory = threading.local()  # of one tile after the other, in each thread


def multiply(x: Strip, y: Strip) -> Tile:
    """Multiply the rows of two strips; the tile holds until this thread's next one."""
    shape = len(x.right), len(y.right)
    low: SingleArray = getattr(_memory, "low", np.empty(0, np.float32))
    if low.size < shape[0] * shape[1]:
        low = _memory.low = np.empty(shape[0] * shape[1], np.float32)
    low = low[: shape[0] * shape[1]].reshape(shape)
    np.matmul(x.left(), y.right.T, out=low)
    return Tile(low, x.start, y.start, x.slack, y.slack)


def blocks(rows: Rows) -> Iterator[Rows]:
    """Yield rows in blocks, as they are."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def cuts(rows: int, block_rows: int) -> list[tuple[int, int]]:
    """Cut rows into blocks of nearly one size, at most `block_rows` each."""
    edges = np.linspace(0, rows, -(-rows // block_rows) + 1).astype(int).tolist()
    return list(zip(edges[:-1], edges[1:], strict=True))


def round_up(values: FloatArray) -> SingleArray:
    """Round to float32, never down."""
    with np.errstate(over="ignore"):
        single: SingleArray = np.nextafter(values.astype(np.float32), np.float32(np.inf))
    return single
