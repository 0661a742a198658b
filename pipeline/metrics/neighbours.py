"""Nearest neighbours and pairs within a reach: float64's answers at the speed of float32 products.

Pairs whose lower bound (see `tiles`) is too far are out; the few that are left are measured by
differences in float64. So ties are ties, and repeated rows are at distance 0, as in a plain float64
search. Only past `EXACT_PAIRS` are the candidates those of an approximate index.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt

from pipeline.errors import StageError
from pipeline.metrics import tiles
from pipeline.metrics.estimate import Rows
from pipeline.metrics.threads import in_order
from pipeline.metrics.tiles import (
    FloatArray,
    Frame,
    Index,
    Picked,
    SingleArray,
    StripPair,
    blocks,
    cuts,
    distances,
    multiply,
    round_up,
    strip_pairs,
    strips,
)

# 140,000 rows against themselves: a minute on two cores at 512 features. Beyond, an index.
EXACT_PAIRS = 20_000_000_000
_WAVE = 64  # tiles that share their limits
_LEAST_POOL = 1 << 20  # candidates that may wait, however few are wanted
_INDEX_PROBES = 16
_INDEX_SEED = 1234
_INDEX_MARGIN = 4  # candidates of the index for each neighbour that is wanted


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each query, nearest first.

    Attributes:
        rows: (N, k) their row numbers; rows at one distance are in order, and where more tie for
            the last places than fit, which of them are named is fixed, but not by their order.
        distances: (N, k) L2 distances, float64.
        exact: whether they are those of a full search, not of the approximate index, which may
            miss some, so that its distances are those of full search or larger.
    """

    rows: Index
    distances: FloatArray
    exact: bool


def nearest(queries: Rows, rows: Rows, k: int) -> Neighbours:
    """Find the k nearest rows of each query.

    Time grows with N M D; memory with the smaller side and N k. Both may be memory maps.

    Args:
        queries: (N, D) float, finite.
        rows: (M, D) float, finite, M >= k.
        k: neighbours, >= 1.

    Raises:
        StageError: M < k, or values so large that their squares are not finite.
    """
    _require_k(k, len(rows), "rows")
    if len(queries) * len(rows) > EXACT_PAIRS:
        return _from_index(queries, rows, k, own=False)
    frame = Frame.around(queries, rows)
    pool = _Pool(queries, rows, k, frame)
    block_rows = max(tiles.BLOCK_ROWS, 2 * k)
    # The first rows give every query a limit that the rest are held against.
    first = next(strips(frame, rows, block_rows))
    pool.fill((strip, first) for strip in strips(frame, queries, block_rows))
    pool.take(strip_pairs(frame, queries, rows, block_rows, skip=len(first.slack)))
    return pool.finish()


def nearest_others(rows: Rows, k: int) -> Neighbours:
    """Find the k nearest other rows of each row; a repeated row is another row.

    Each pair is worked out once. Arguments and errors: see `nearest`, with M - 1 >= k.
    """
    _require_k(k, len(rows) - 1, "other rows")
    if len(rows) ** 2 > EXACT_PAIRS:
        return _from_index(rows, rows, k, own=True)
    frame = Frame.around(rows)
    pool = _Pool(rows, rows, k, frame)
    every = list(strips(frame, rows, max(tiles.BLOCK_ROWS, 2 * k + 2)))
    # The diagonal first: it gives every row a limit that the rest are held against.
    pool.fill(((strip, strip) for strip in every), own=True)
    pool.take(combinations(every, 2), both=True)
    return pool.finish()


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a row of x and one of y, between bounds of their squared distance.

    Attributes:
        i: (P,) rows of x.
        j: (P,) rows of y.
    """

    i: Index
    j: Index
    _low: FloatArray
    _high: FloatArray
    _scale: float
    _sets: tuple[Rows, Rows]

    def only(self, mask: npt.NDArray[np.bool_]) -> "Pairs":
        """Return the marked pairs."""
        bounds = self._low[mask], self._high[mask]
        return Pairs(self.i[mask], self.j[mask], *bounds, self._scale, self._sets)

    def within(self, reach: FloatArray) -> npt.NDArray[np.bool_]:
        """Say which pairs are nearer than `reach`, (P,), as float64 distances are: `<`."""
        square = (reach * self._scale) ** 2
        inside: npt.NDArray[np.bool_] = self._high < square
        doubt = np.flatnonzero(~inside & (self._low < square) & (reach > 0))
        inside[doubt] = distances(*self._sets, self.i[doubt], self.j[doubt]) < reach[doubt]
        return inside


def pairs_within(x: Rows, y: Rows, x_reach: FloatArray, y_reach: FloatArray) -> Iterator[Pairs]:
    """Yield the pairs that may be nearer than the reach of either row, and no other twice.

    Each pair with d < x_reach[i] or d < y_reach[j] is among them; ask `Pairs.within` for the rest.
    Time grows with N M D and the pairs; memory with the smaller side.

    Args:
        x: (N, D) float, finite.
        y: (M, D) float, finite.
        x_reach: (N,) distances; infinity reaches all.
        y_reach: (M,) distances.
    """
    frame = Frame.around(x, y)
    # Nothing is nearer than 0, so rows that are there many times cost nothing here.
    x_square, y_square = (
        np.where(reach > 0, round_up((reach * frame.scale) ** 2), np.float32(-np.inf))
        for reach in (x_reach, y_reach)
    )

    def near(pair: StripPair) -> Picked:
        tile = multiply(*pair)
        mask = tile.low < x_square[tile.here, None]
        mask |= tile.low < y_square[None, tile.there]
        return tile.pick(mask)

    for i, j, low, high in in_order(near, strip_pairs(frame, x, y, tiles.BLOCK_ROWS)):
        if len(i):
            yield Pairs(i, j, low, high, frame.scale, (x, y))


class _Pool:
    """Candidates of every query; the limits, above which a lower bound is out, only fall."""

    def __init__(self, queries: Rows, rows: Rows, k: int, frame: Frame) -> None:
        self._sets, self._k, self._frame = (queries, rows), k, frame
        self.limits = np.full(len(queries), np.inf, np.float32)
        self._settled = np.zeros(len(queries), bool)  # their k-th neighbour is at distance 0
        self._parts: list[Picked] = []
        self._size = 0
        self._room = max(_LEAST_POOL, 6 * k * len(queries))

    def fill(self, pairs: Iterable[StripPair], own: bool = False) -> None:
        """Set the limits by the k-th smallest upper bound in a tile, and take what is below.

        `own`: the tiles are of rows with themselves, and a row is not its own neighbour.
        """

        def work(pair: StripPair) -> tuple[slice, SingleArray, Picked]:
            tile = multiply(*pair)
            if own:
                np.fill_diagonal(tile.low, np.inf)
            high = tile.low + (2 * tile.column_slack).astype(np.float32)
            high.partition(self._k - 1, axis=1)
            kth = high[:, self._k - 1].astype(np.float64) + 2 * tile.row_slack
            # The sum was rounded twice: a little more than that is put on.
            limits = round_up(kth + self._frame.error * np.abs(kth))
            return tile.here, limits, tile.pick(tile.low <= limits[:, None])

        for here, limits, picked in in_order(work, pairs):
            self.limits[here] = limits
            self._add(picked, both=False)

    def take(self, pairs: Iterable[StripPair], both: bool = False) -> None:
        """Take in what is below the limits, where `both` as neighbours of either row."""

        def work(pair: StripPair) -> Picked:
            tile = multiply(*pair)
            mask = tile.low <= self.limits[tile.here, None]
            if both:
                mask |= tile.low <= self.limits[None, tile.there]
            return tile.pick(mask)

        waiting = iter(pairs)
        # Limits stand still while a wave is out: else they would depend on who comes first.
        while wave := list(islice(waiting, _WAVE)):
            for picked in list(in_order(work, wave)):
                self._add(picked, both)

    def _add(self, picked: Picked, both: bool) -> None:
        i, j, low, high = picked
        for query, row in ((i, j), (j, i)) if both else ((i, j),):
            near = (low <= self.limits[query]) & ~self._settled[query]
            self._parts.append((query[near], row[near], low[near], high[near]))
            self._size += len(self._parts[-1][0])
        if self._size > self._room:
            self._prune()
            if self._size > self._room // 2:  # bounds do not tell these apart
                self._measure()

    def finish(self) -> Neighbours:
        """Measure what is left, and return the nearest."""
        self._prune()
        query, row, found = self._measure()
        shape = len(self.limits), self._k
        return Neighbours(row.reshape(shape), found.reshape(shape), exact=True)

    def _joined(self) -> Picked:
        i, j, low, high = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return i, j, low, high

    def _prune(self) -> None:
        i, j, low, high = self._joined()
        # One sort by query and bound: floats that are not negative order as their bits do.
        bits = np.maximum(low, 0).astype(np.float32).view(np.uint32).astype(np.uint64)
        order = np.argsort((i.astype(np.uint64) << np.uint64(32)) | bits)
        i, j, low, high = i[order], j[order], low[order], high[order]
        first = np.searchsorted(i, np.arange(len(self.limits) + 1))
        full = np.flatnonzero(np.diff(first) >= self._k)
        # The upper bounds of any k candidates bound the k-th distance.
        kth = high[first[full, None] + np.arange(self._k)].max(axis=1)
        self.limits[full] = np.minimum(self.limits[full], round_up(kth))
        near = (low <= self.limits[i]) | self._settled[i]
        self._keep(i[near], j[near], low[near], high[near])

    def _measure(self) -> tuple[Index, Index, FloatArray]:
        """Keep the k nearest of every query, by float64 distances."""
        i, j, _, _ = self._joined()
        found = distances(*self._sets, i, j)
        order = np.lexsort((j, found, i))
        i, j, found = i[order], j[order], found[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)
        near = rank < self._k
        i, j, found = i[near], j[near], found[near]
        last = rank[near] == self._k - 1
        self._settled[i[last & (found == 0)]] = True
        square = (found * self._frame.scale) ** 2
        self.limits[i[last]] = np.minimum(self.limits[i[last]], round_up(square[last]))
        self._keep(i, j, square * (1 - 1e-12), square * (1 + 1e-12))
        return i, j, found

    def _keep(self, *part: npt.NDArray[np.generic]) -> None:
        self._parts, self._size = [part], len(part[0])  # type: ignore[list-item]


def _from_index(queries: Rows, rows: Rows, k: int, own: bool) -> Neighbours:
    """Find neighbours by an inverted file of bytes (Jegou et al. 2011; faiss), re-ranked exactly.

    A byte a feature; the cells come from at most 40 rows each, evenly spread over the rows.
    """
    import faiss

    frame = Frame.around(queries, rows)
    width = rows.shape[1]
    cells = int(2 ** np.floor(np.log2(4 * np.sqrt(len(rows)))))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(width), width, cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
    )
    index.cp.seed = _INDEX_SEED
    index.cp.min_points_per_centroid = 1  # or it prints a warning
    index.nprobe = _INDEX_PROBES
    sample = np.linspace(0, len(rows) - 1, min(len(rows), 40 * cells)).astype(np.int64)
    index.train(frame.apply(rows[sample]))
    for block in blocks(rows):
        index.add(frame.apply(block))
    wanted = min(len(rows), _INDEX_MARGIN * k + own)
    near_rows, near = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    for start, stop in cuts(len(queries), 16 * tiles.BLOCK_ROWS):
        _, found = index.search(frame.apply(queries[start:stop]), wanted)
        here = np.repeat(np.arange(start, stop), wanted)
        there = found.reshape(-1)
        real = there >= 0  # -1: the probed cells held fewer
        gaps = np.full(len(there), np.inf)
        gaps[real] = distances(queries, rows, here[real], there[real])
        if own:
            gaps[there == here] = np.inf
        order = np.lexsort((there, gaps, here)).reshape(-1, wanted)[:, :k]
        near_rows[start:stop], near[start:stop] = there[order], gaps[order]
    for one in np.flatnonzero(np.isinf(near[:, -1])):  # few probed rows: search them all
        gaps = distances(queries, rows, np.full(len(rows), one), np.arange(len(rows)))
        if own:
            gaps[one] = np.inf
        near_rows[one] = np.argsort(gaps, kind="stable")[:k]
        near[one] = gaps[near_rows[one]]
    return Neighbours(near_rows, near, exact=False)


def _require_k(k: int, available: int, what: str) -> None:
    if not 1 <= k <= available:
        raise StageError(f"neighbours: k is {k}, and there are {available} {what}; take 1 to that")
