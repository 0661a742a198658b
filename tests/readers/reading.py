"""What tests of readers share: read anything by its path, and decode what it yields."""

import numpy as np

from pipeline.data.decoding import Limits, Rejected, decode_image
from pipeline.hashing import digest_pixels
from pipeline.params import Columns
from pipeline.readers.limits import ReadLimits
from pipeline.readers.read import read_format
from pipeline.readers.recognise import recognise
from pipeline.readers.source import Crop, Source

LIMITS = ReadLimits(max_metadata_bytes=1 << 24, max_array_bytes=1 << 24)


def read(path: object, limits: ReadLimits = LIMITS) -> Source:
    return read_format(recognise(str(path)), limits, Columns())


def pixels(source: Source, row: int) -> np.ndarray:
    found = source.contents.fetch(row)
    assert not isinstance(found, Rejected), found
    if isinstance(found, np.ndarray):
        return found
    box = None
    if isinstance(found, Crop):
        found, box = found.of, found.box
    decoded = decode_image(found, Limits(1 << 20, 1 << 20))
    assert not isinstance(decoded, Rejected), decoded
    if box is None:
        return decoded.pixels
    left, top, width, height = (round(value) for value in box)
    return decoded.pixels[top : top + height, left : left + width]


def content(source: Source) -> set[tuple[str, str]]:
    """Return (class name, pixel digest) of every item."""
    return {
        (source.classes[source.labels[row]], digest_pixels(pixels(source, row)))
        for row in range(len(source))
    }


def reasons(source: Source) -> dict[str, str]:
    return {item.file: item.reason for item in source.quarantine}
