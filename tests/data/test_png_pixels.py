import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import DAMAGED, Decoded, Limits, Rejected, decode_image
from pipeline.data.plain_png import pixel_fault

LIMITS = Limits(file_bytes=1 << 20, image_pixels=1 << 20)
STARTS = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
STARTS += ((0, 1, 1, 2),)


def chunk(kind: bytes, data: bytes) -> bytes:
    whole = kind + data
    return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))


def png(header: bytes, lines: bytes) -> bytes:
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def lines(pixels: np.ndarray) -> bytes:
    if not pixels.size:
        return b""
    return np.insert(pixels.reshape(len(pixels), -1), 0, 0, axis=1).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 5), (17, 9)])
def test_a_sound_png_has_all_its_pixels(mode: str, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("L", size, 9).convert(mode).save(buffer, "PNG")
    assert pixel_fault(buffer.getvalue()) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (5, 5), (8, 8), (13, 10)])
def test_an_interlaced_png_is_counted_pass_by_pass(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 0, 0, 0, 1)
    body = b"".join(lines(pixels[y::down, x::right]) for x, y, right, down in STARTS)
    found = decode_image(png(header, body), LIMITS)
    assert isinstance(found, Decoded)
    assert np.array_equal(found.pixels[:, :, 0], pixels)
    assert pixel_fault(png(header, body[:-1])) == "some of its pixels are missing"


@pytest.mark.parametrize(("depth", "colour"), [(8, 0), (8, 2), (8, 4), (8, 6), (16, 0), (1, 0)])
def test_a_whole_zlib_stream_of_half_an_image_is_damage(depth: int, colour: int) -> None:
    wide = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * 8 * depth // 8
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0)
    rows = lines(np.zeros((8, wide), np.uint8))
    assert isinstance(decode_image(png(header, rows), LIMITS), Decoded)
    found = decode_image(png(header, rows[: len(rows) // 2]), LIMITS)
    assert found == Rejected(DAMAGED, "some of its pixels are missing")


def test_a_wrong_checksum_of_pixels_is_damage() -> None:
    data = png(struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0), lines(np.zeros((8, 8), np.uint8)))
    at = data.index(b"IEND") - 8
    found = decode_image(data[:at] + b"\0\0\0\0" + data[at + 4 :], LIMITS)
    assert found == Rejected(DAMAGED, "a checksum of its pixels is wrong")
