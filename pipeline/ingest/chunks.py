"""A chunk: some rows of a source, decoded and brought to one shape, kept as one file.

Chunks make a set of any size pass through little memory, and an interrupted run go on: a chunk
whose file stands is not decoded again.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.checks.facts import Facts, measure
from pipeline.data.decoding import Rejected
from pipeline.data.images import CHANNELS, ImageMode, Images, encode_png
from pipeline.folders import temporary_name
from pipeline.hashing import digest_pixels
from pipeline.ingest.shaped import Shape, Shaped, shape_row
from pipeline.readers.source import Contents

_FACTS = fields(Facts)


@dataclass(frozen=True)
class Chunk:
    """The usable rows of a chunk.

    Attributes:
        rows: (M,) rows of the source, ascending.
        pixels: (M, S, S, C) uint8; C = 3 where one of them shows colour and the mode may be RGB.
        coloured: (M,) does the image show colour?
        channels: (M,) channels of the image as it came, 1 or 3.
        planes: (M,) its own channels now: 3 where it shows colour and the mode may be RGB, else 1.
        ids: (M,) digests of the pixels with their own channels, in hex.
        pngs: the file of each image where it holds these very pixels, or no bytes.
        facts: of each image as it came.
        masks: (M, S, S) uint8, 255 = marked; (0, 0, 0) where the source has no masks.
        masked: (M,) has the row a mask?
        rejected: row, reason and detail of each row that cannot be used.
        conversions: what was converted -> number of images.
    """

    rows: npt.NDArray[np.int64]
    pixels: Images
    coloured: npt.NDArray[np.bool_]
    channels: npt.NDArray[np.uint8]
    planes: npt.NDArray[np.uint8]
    ids: tuple[str, ...]
    pngs: tuple[bytes, ...]
    facts: Facts
    masks: Images
    masked: npt.NDArray[np.bool_]
    rejected: tuple[tuple[int, str, str], ...]
    conversions: dict[str, int]

    def ids_in_mode(self, mode: ImageMode) -> tuple[str, ...]:
        """Return the digest of each image's pixels in a mode."""
        if (self.planes == CHANNELS[mode]).all():
            return self.ids
        return tuple(
            own if planes == CHANNELS[mode] else digest_pixels(image)
            for own, planes, image in zip(self.ids, self.planes, self.in_mode(mode), strict=True)
        )

    def in_mode(self, mode: ImageMode) -> Images:
        """Return (M, S, S, C) pixels, C as the mode has it; (S, S, 1) spreads over three."""
        channels = CHANNELS[mode]
        if self.pixels.shape[3] == channels:
            return self.pixels
        if channels == 3:
            return self.pixels.repeat(3, axis=3)
        # Where the mode turned out to be grey no image shows colour: the channels are equal.
        return np.ascontiguousarray(self.pixels[:, :, :, :1])


def rows_per_chunk(side_px: int) -> int:
    """Return how many rows make a chunk: at most 16 MiB in colour, and 64 to 512."""
    return min(max((16 << 20) // (3 * side_px * side_px), 64), 512)


def write_chunk(
    contents: Contents, masks: Contents | None, rows: Sequence[int], shape: Shape, path: Path
) -> None:
    """Decode the rows and write their chunk, all at once or not at all."""
    one = decode_chunk(contents, masks, rows, shape)
    said = json.dumps({"rejected": one.rejected, "conversions": one.conversions})
    arrays = {
        "rows": one.rows,
        "pixels": one.pixels,
        "coloured": one.coloured,
        "channels": one.channels,
        "planes": one.planes,
        "ids": np.frombuffer(bytes.fromhex("".join(one.ids)), dtype=np.uint8),
        "pngs": np.frombuffer(b"".join(one.pngs), dtype=np.uint8),
        "png_ends": np.cumsum([len(png) for png in one.pngs], dtype=np.int64),
        "masks": one.masks,
        "masked": one.masked,
        "said": np.frombuffer(said.encode(), dtype=np.uint8),
        **{f"facts/{field.name}": getattr(one.facts, field.name) for field in _FACTS},
    }
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def read_chunk(path: Path) -> Chunk | None:
    """Return a chunk, or None where there is none or its file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        said = json.loads(arrays["said"].tobytes())
        ids, pngs = arrays["ids"].tobytes().hex(), arrays["pngs"].tobytes()
        return Chunk(
            arrays["rows"],
            arrays["pixels"],
            arrays["coloured"],
            arrays["channels"],
            arrays["planes"],
            tuple(ids[at : at + 64] for at in range(0, len(ids), 64)),
            tuple(pngs[at:end] for at, end in pairwise((0, *arrays["png_ends"].tolist()))),
            Facts(**{field.name: arrays[f"facts/{field.name}"] for field in _FACTS}),
            arrays["masks"],
            arrays["masked"],
            tuple((int(row), str(reason), str(detail)) for row, reason, detail in said["rejected"]),
            said["conversions"],
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def decode_chunk(
    contents: Contents, masks: Contents | None, rows: Sequence[int], shape: Shape
) -> Chunk:
    """Return the chunk of the given rows of a source."""
    usable: list[Shaped] = []
    rejected: list[tuple[int, str, str]] = []
    conversions: Counter[str] = Counter()
    for row in rows:
        one = shape_row(row, contents, masks, shape)
        if isinstance(one, Rejected):
            rejected.append((row, one.reason, one.detail))
        else:
            usable.append(one)
            conversions.update(one.conversions)
    side = shape.side_px
    planes = np.asarray([one.pixels.shape[2] for one in usable], dtype=np.uint8)
    pixels = np.zeros((len(usable), side, side, planes.max(initial=1)), dtype=np.uint8)
    marked = np.zeros((len(usable) if masks is not None else 0, side, side), dtype=np.uint8)
    for i, one in enumerate(usable):
        pixels[i] = one.pixels  # one channel spreads over three
        if one.mask is not None:
            marked[i] = one.mask
    return Chunk(
        rows=np.asarray([one.row for one in usable], dtype=np.int64),
        pixels=pixels,
        coloured=np.asarray([one.coloured for one in usable], dtype=bool),
        channels=np.asarray([one.channels for one in usable], dtype=np.uint8),
        planes=planes,
        ids=tuple(digest_pixels(one.pixels) for one in usable),
        pngs=tuple(one.png or b"" for one in usable),
        facts=measure([one.look for one in usable]),
        masks=marked,
        masked=np.asarray([one.mask is not None for one in usable], dtype=bool),
        rejected=tuple(rejected),
        conversions=dict(sorted(conversions.items())),
    )


def encode_chunk(path: Path, kept: npt.NDArray[np.int64], mode: ImageMode) -> list[bytes]:
    """Return the PNG bytes of some rows of a chunk, given by their places in it.

    A file that is a plain PNG of these very pixels already is taken as it is, without its notes.
    """
    chunk = read_chunk(path)
    if chunk is None:
        raise OSError(f"{path}: the chunk is gone or damaged")
    pixels, own = chunk.in_mode(mode), chunk.planes == CHANNELS[mode]
    return [
        (chunk.pngs[row] if own[row] else b"") or encode_png(pixels[row]) for row in kept.tolist()
    ]
