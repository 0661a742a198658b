"""Repeats: candidates that are nearly the same picture as an earlier one of their class.

The same search and alignment as against the training rows (`copies`), without mirrorings, in an
index that grows. A candidate keeps a thumb of at most 1,024 values and a descriptor of at most
432: 1.5 KiB, 1.5 GB for a million of them. One more costs 9 * D * n operations for n earlier ones
of its class, D <= 256 (432 of colour): 2 ms at n = 100,000.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.curation.alignment import residuals
from pipeline.curation.thumbs import (
    THUMB_PX,
    Descriptors,
    descriptors,
    lengths_of,
    likeness,
    moved_descriptors,
    pairs_worth,
    thumbs,
)
from pipeline.data.images import Images

Floats = npt.NDArray[np.float64]

_THUMB_VALUES = 1024
_ALIGNED_ROWS = 4
_REACH_PX = 1  # a picture moved further is told as another
_BLOCK_IMAGES = 64
_CHUNK_ROWS = 4096  # of storage: nothing is copied as it grows


@dataclass
class _Kept:
    """Thumbs and descriptors of one class, in chunks."""

    thumbs: list[Images] = field(default_factory=list)
    descriptors: list[npt.NDArray[np.int8]] = field(default_factory=list)
    size: int = 0

    def add(self, thumb: Images, descriptor: npt.NDArray[np.int8]) -> None:
        place = self.size % _CHUNK_ROWS
        if not place:
            self.thumbs.append(np.zeros((_CHUNK_ROWS, *thumb.shape), dtype=np.uint8))
            self.descriptors.append(np.zeros((_CHUNK_ROWS, len(descriptor)), dtype=np.int8))
        self.thumbs[-1][place] = thumb
        self.descriptors[-1][place] = descriptor
        self.size += 1

    def chunks(self) -> Iterator[npt.NDArray[np.int8]]:
        for number, chunk in enumerate(self.descriptors):
            yield chunk[: self.size - number * _CHUNK_ROWS]

    def thumb(self, row: int) -> Images:
        found: Images = self.thumbs[row // _CHUNK_ROWS][row % _CHUNK_ROWS]
        return found


class Repeats:
    """The candidates that stay, by class, and what resembles one of them."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def judge(
        self,
        images: Images,
        labels: npt.NDArray[np.int64],
        residual: Floats,
        joins: npt.NDArray[np.bool_],
        limit: float,
    ) -> Floats:
        """Return each candidate's closeness to an earlier one, and remember those that stay.

        The closeness is residual ** 2 / second as in `copies.Near`: of the nearest earlier one,
        and of the second nearest or of the nearest training row, whichever is less. So it keeps
        its meaning as a class fills and all its images come to stand nearer to each other.

        Args:
            images: (N, H, W, C) uint8, in the order of their indices.
            labels: (N,) of them; other classes are not looked at.
            residual: (N,) at the nearest training row.
            joins: (N,) which ones stay unless they are repeats.
            limit: closeness below which one is a repeat.
        """
        _, _, _, channels = images.shape
        most_px = min(THUMB_PX, THUMB_PX if channels == 1 else THUMB_PX // 2)
        small = thumbs(images, most_px)
        closeness = np.ones(len(images))
        for label in np.unique(labels):
            kept = self._kept.setdefault(int(label), _Kept())
            rows = np.flatnonzero(labels == label)
            for start in range(0, len(rows), _BLOCK_IMAGES):
                block = rows[start : start + _BLOCK_IMAGES]
                closeness[block] = _judge_block(
                    kept, small[block], residual[block], joins[block], limit
                )
        return closeness


def _judge_block(
    kept: _Kept, small: Images, residual: Floats, joins: npt.NDArray[np.bool_], limit: float
) -> Floats:
    count = pairs_worth(small, _ALIGNED_ROWS)
    own = descriptors(small)
    versions = moved_descriptors(small, _REACH_PX)[0]
    within = _likeness(versions, own)
    before = kept.size
    alike, rows = _nearest_kept(kept, versions, count)
    # Within the block a pair is worth aligning only where it would be among the nearest few.
    least = alike[:, -1] if before >= count else np.full(len(small), -np.inf)
    pairs = [
        (i, before + j, within[i, j])
        for i in range(len(small))
        for j in range(i)
        if joins[j] and within[i, j] > least[i]
    ]
    pairs += [
        (i, int(row), like)
        for i in range(len(small))
        for row, like in zip(rows[i], alike[i], strict=True)
    ]
    pairs.sort(key=lambda pair: (pair[0], -pair[2], pair[1]))  # the earlier one first where equal
    found = _align(kept, small, before, pairs)
    closeness = np.ones(len(small))
    stays = np.zeros(len(small), dtype=bool)
    place = 0
    for i in range(len(small)):
        near: list[float] = []
        while place < len(pairs) and pairs[place][0] == i:
            row = pairs[place][1]
            if len(near) < count and (row < before or stays[row - before]):
                near.append(found[place])
            place += 1
        if near:
            first, second = sorted([*near, float(residual[i]), 1.0])[:2]
            if first == min(near):
                closeness[i] = round(min(1.0, first**2 / max(second, 1e-4)), 6)
        stays[i] = joins[i] and closeness[i] >= limit
        if stays[i]:
            kept.add(small[i], own[i])
    return closeness


def _likeness(versions: list[Descriptors], rows: Descriptors) -> npt.NDArray[np.float32]:
    return likeness(versions, rows.astype(np.float32).T, lengths_of(rows))


def _nearest_kept(
    kept: _Kept, versions: list[Descriptors], most: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return likeness and row, (N, up to `most`) each, of the most alike earlier ones."""
    count = len(versions[0])
    best = np.zeros((count, 0), dtype=np.float32)
    rows = np.zeros((count, 0), dtype=np.int64)
    start = 0
    for chunk in kept.chunks():
        numbers = np.broadcast_to(np.arange(start, start + len(chunk)), (count, len(chunk)))
        best = np.concatenate([best, _likeness(versions, chunk)], axis=1)
        rows = np.concatenate([rows, numbers], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :most]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
        start += len(chunk)
    return best, rows


def _align(kept: _Kept, small: Images, before: int, pairs: list[tuple[int, int, float]]) -> Floats:
    if not pairs:
        return np.zeros(0)
    first = small[[pair[0] for pair in pairs]]
    second = np.stack(
        [kept.thumb(row) if row < before else small[row - before] for _, row, _ in pairs]
    )
    return residuals(first, second)
