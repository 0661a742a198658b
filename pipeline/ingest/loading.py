"""From a source to chunks on disk: decode in worker processes, one size and mode for the whole set.

The result depends neither on the number of workers nor on interruptions.
"""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.checks.facts import Facts, concatenate_facts
from pipeline.data.decoding import Header, Limits, Rejected, inspect_image, quiet_pillow
from pipeline.data.images import CHANNELS, ImageMode, Images
from pipeline.data.shaping import Fit, auto_side
from pipeline.errors import StageError
from pipeline.ingest.chunks import Chunk, encode_chunk, read_chunk, rows_per_chunk, write_chunk
from pipeline.ingest.shaped import Shape
from pipeline.processes import begin_worker, in_order
from pipeline.readers.source import Crop, Payload, Quarantined, Source

COLOUR_TO_GREY = "colour to grey"
GREY_TO_COLOUR = "grey to RGB"
GREY_AS_COLOUR = "RGB without colour to grey"

_MOST_HEADERS = 1_000  # evenly spaced images that decide the size
_ALONE_SECONDS = 1.5  # what takes less is done here: processes cost more to start than they save
_TIMED_SECONDS = 0.1  # after which it is known how long the rest will take
_FEW_ROWS = 10_000  # likewise, where images are encoded
_KEPT_BYTES = 64 << 20  # of decoded chunks
_AHEAD = 2  # tasks under way for each worker


@dataclass(frozen=True)
class Loaded:
    """The usable images of a source, M rows in its order, in chunks on disk.

    Attributes:
        paths: file of each chunk.
        starts: (chunks + 1,) place of each chunk's first row, and M.
        rows: (M,) rows of the source, ascending.
        ids: digest of each image's pixels.
        facts: of each image as it came.
        image_mode: L or RGB, for the whole set.
        side_px: of the square images.
        conversions: what was converted -> number of images.
        quarantine: items that cannot be used.
        unpacked: images that are no PNG of these very pixels yet.
    """

    paths: tuple[Path, ...]
    starts: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    facts: Facts
    image_mode: ImageMode
    side_px: int
    conversions: dict[str, int]
    quarantine: tuple[Quarantined, ...]
    unpacked: int
    _kept: dict[int, Images] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Return M."""
        return len(self.rows)

    def chunk(self, number: int) -> Chunk:
        """Return one chunk.

        Raises:
            StageError: its file is gone or damaged.
        """
        found = read_chunk(self.paths[number])
        if found is None:
            raise StageError(f"{self.paths[number]}: gone or damaged while in use; run again")
        return found

    def images(self, places: npt.NDArray[np.int64]) -> Images:
        """Return (n, S, S, C) uint8 of the given places, in their order."""
        side, channels = self.side_px, CHANNELS[self.image_mode]
        found = np.zeros((len(places), side, side, channels), dtype=np.uint8)
        numbers = np.asarray([bisect_right(self.starts, int(place)) - 1 for place in places])
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            found[here] = self._pixels(int(number))[places[here] - self.starts[number]]
        return found

    def _pixels(self, number: int) -> Images:
        """Return a chunk's images; those used last are kept: checks ask for a few at a time."""
        pixels = self._kept.pop(number, None)
        if pixels is None:
            pixels = self.chunk(number).in_mode(self.image_mode)
        self._kept[number] = pixels  # as the last
        while sum(one.nbytes for one in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
            self._kept.pop(next(iter(self._kept)))
        return pixels


def load_images(
    source: Source,
    folder: Path,
    side_px: int | None,
    mode: Literal["auto", "L", "RGB"],
    fit: Fit,
    limits: Limits,
    workers: int,
    on_image: Callable[[int], None],
) -> Loaded:
    """Decode all images of a source into chunks below `folder`; `on_image` hears how many are done.

    `side_px` None takes `auto_side` of the longest sides of up to 1,000 evenly spaced images; mode
    `auto` is RGB where any image of the set shows colour, else L. Chunks that stand in the folder
    are taken as they are: it must belong to this source and these settings.

    Raises:
        StageError: a worker process died, most likely for want of memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_pillow():
        shape = Shape(side_px or _side(source, limits), mode, fit, limits)
        size = rows_per_chunk(shape.side_px)
        parts = [range(at, min(at + size, len(source))) for at in range(0, len(source), size)]
        paths = [folder / f"{number:06d}.npz" for number in range(len(parts))]
        tasks = deque(zip(parts, paths, strict=True))
        done, start = 0, perf_counter()
        while tasks and (workers == 1 or not _worth_sharing(start, done, len(source))):
            done += _write_here(source, shape, tasks.popleft())
            on_image(done)
        for rows in _write_together(source, shape, tasks, workers):
            done += rows
            on_image(done)
    return _gather(source, shape, tuple(paths))


def encode_images(
    loaded: Loaded, kept: Sequence[npt.NDArray[np.int64]], workers: int
) -> Iterator[list[bytes]]:
    """Yield, chunk by chunk, the PNG bytes of the kept rows, given by their places in the chunk."""
    tasks = list(zip(loaded.paths, kept, [loaded.image_mode] * len(kept), strict=True))
    if workers > 1 and loaded.unpacked > _FEW_ROWS:
        with _processes(workers, begin_worker) as executor:
            yield from in_order(executor, _encode, tasks, _AHEAD * workers)
    else:
        yield from map(_encode, tasks)


def _side(source: Source, limits: Limits) -> int:
    count = len(source)
    rows = np.unique(np.linspace(0, count - 1, min(count, _MOST_HEADERS)).astype(np.int64))
    sides = (
        [_longest_side(source.contents.fetch(int(row)), limits) for row in rows] if count else []
    )
    found = [side for side in sides if side is not None]
    return auto_side(found) if found else 8


def _longest_side(payload: Payload | Rejected, limits: Limits) -> int | None:
    if isinstance(payload, Rejected):
        return None
    if isinstance(payload, np.ndarray):
        return int(max(payload.shape[:2]))
    if isinstance(payload, Crop):
        return max(1, round(max(payload.box[2:])))
    header = inspect_image(payload, limits)
    return max(header.width, header.height) if isinstance(header, Header) else None


_SOURCE: tuple[Source, Shape] | None = None  # set once in each worker process, never in the parent


def _worth_sharing(start: float, done: int, total: int) -> bool:
    spent = perf_counter() - start
    return spent >= _TIMED_SECONDS and spent * (total - done) >= _ALONE_SECONDS * done


def _write_together(
    source: Source, shape: Shape, tasks: deque[tuple[range, Path]], workers: int
) -> Iterator[int]:
    """Write all chunks, this process being one of the workers; yield the rows of each."""
    if not tasks:
        return
    others = workers - 1
    pending: deque[Future[int]] = deque()
    with _processes(others, _begin, source, shape) as executor:
        try:
            while tasks or pending:
                while tasks and len(pending) < _AHEAD * others:
                    pending.append(executor.submit(_write, tasks.popleft()))
                if tasks:
                    yield _write_here(source, shape, tasks.popleft())
                while pending and (not tasks or pending[0].done()):
                    yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def _processes(workers: int, begin: Callable[..., None], *given: object) -> Iterator[Executor]:
    try:
        with ProcessPoolExecutor(workers, get_context("spawn"), begin, given) as executor:
            yield executor
    except BrokenProcessPool:
        raise StageError(
            "prepare: a worker process died, most likely for want of memory "
            f"({workers} workers); run the same command again, with a smaller "
            "execution.workers if need be: it goes on from what is decoded"
        ) from None


def _begin(source: Source, shape: Shape) -> None:
    global _SOURCE
    begin_worker()
    quiet_pillow().__enter__()
    _SOURCE = source, shape


def _write(task: tuple[range, Path]) -> int:
    if _SOURCE is None:
        raise RuntimeError("the worker has no source")
    return _write_here(*_SOURCE, task)


def _write_here(source: Source, shape: Shape, task: tuple[range, Path]) -> int:
    rows, path = task
    if not path.exists():
        write_chunk(source.contents, source.masks, rows, shape, path)
    return len(rows)


def _encode(task: tuple[Path, npt.NDArray[np.int64], ImageMode]) -> list[bytes]:
    return encode_chunk(*task)


def _gather(source: Source, shape: Shape, paths: tuple[Path, ...]) -> Loaded:
    """Read all chunks: for the mode of the set, and again where the ids depend on it."""
    rows: list[npt.NDArray[np.int64]] = []
    coloured: list[npt.NDArray[np.bool_]] = []
    channels: list[npt.NDArray[np.uint8]] = []
    facts: list[Facts] = []
    conversions = Counter(source.conversions)
    quarantine: list[Quarantined] = []
    ids: list[str] = []
    packed: list[bool] = []
    planes: list[npt.NDArray[np.uint8]] = []
    for path in paths:
        chunk = _need(path)
        rows.append(chunk.rows)
        coloured.append(chunk.coloured)
        channels.append(chunk.channels)
        facts.append(chunk.facts)
        ids += chunk.ids
        packed += [bool(png) for png in chunk.pngs]
        planes.append(chunk.planes)
        conversions.update(chunk.conversions)
        quarantine += [Quarantined(source.names[r], why, what) for r, why, what in chunk.rejected]
    colour = np.concatenate(coloured) if coloured else np.zeros(0, dtype=bool)
    came = np.concatenate(channels) if channels else np.zeros(0, dtype=np.uint8)
    mode: ImageMode = ("RGB" if colour.any() else "L") if shape.mode == "auto" else shape.mode
    if mode == "RGB":
        conversions[GREY_TO_COLOUR] += int((came == 1).sum())
    else:
        conversions[COLOUR_TO_GREY] += int(((came == 3) & colour).sum())
        conversions[GREY_AS_COLOUR] += int(((came == 3) & ~colour).sum())
    # Where the mode is grey no image shows colour, so each was kept grey and has its id.
    if mode == "RGB":
        ids = [one for path in paths for one in _need(path).ids_in_mode(mode)]
    return Loaded(
        paths=paths,
        starts=tuple(np.cumsum([0, *(len(one) for one in rows)]).tolist()),
        rows=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64),
        ids=tuple(ids),
        facts=concatenate_facts(facts),
        image_mode=mode,
        side_px=shape.side_px,
        conversions={name: n for name, n in sorted(conversions.items()) if n},
        quarantine=tuple(quarantine),
        unpacked=_unpacked(packed, planes, mode),
    )


def _unpacked(packed: list[bool], planes: list[npt.NDArray[np.uint8]], mode: ImageMode) -> int:
    if not packed:
        return 0
    ready = np.asarray(packed) & (np.concatenate(planes) == CHANNELS[mode])
    return int((~ready).sum())


def _need(path: Path) -> Chunk:
    chunk = read_chunk(path)
    if chunk is None:
        path.unlink(missing_ok=True)
        raise StageError(f"{path}: damaged by an interruption; run the same command again")
    return chunk
