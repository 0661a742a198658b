import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.data.plain_png import decode_plain_png

MOST = 1_000_000


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    packed: bytes, width: int = 4, height: int = 4, colour: int = 0, depth: int = 8
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
def test_pixels_are_those_that_pillow_reads(
    width: int, height: int, colour: bool, seed: int
) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = decode_plain_png(png(pixels), MOST)
    assert found is not None
    assert np.array_equal(found[0], pixels.reshape(height, width, -1))
    assert found[1] == png(pixels)


def test_text_beside_the_pixels_does_no_harm() -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("Comment", "a cat")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    found = decode_plain_png(png(pixels, pnginfo=said, dpi=(72, 72)), MOST)
    assert found is not None
    assert np.array_equal(found[0][:, :, 0], pixels)
    assert found[1] is not None
    assert b"a cat" not in found[1]
    assert found[1] == png(pixels)


def test_bytes_that_hide_behind_the_pixels_are_not_kept() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    for hidden in (b"", b"secret"):
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows) + hidden), (b"IEND", b""))
        data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
        found = decode_plain_png(data + hidden, MOST)
        assert found is not None
        assert np.array_equal(found[0][:, :, 0], pixels)
        assert found[1] == (None if hidden else data)


def test_what_needs_care_is_left_alone(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    film = io.BytesIO()
    frames = [Image.fromarray(grey + i) for i in range(2)]
    frames[0].save(film, format="PNG", save_all=True, append_images=frames[1:])
    palette = io.BytesIO()
    Image.fromarray(grey).convert("P").save(palette, format="PNG")
    cases = [
        png(deep),
        png(clear),
        png(grey, exif=orientation),
        png(grey, transparency=3),
        film.getvalue(),
        palette.getvalue(),
        b"GIF89a",
        b"",
    ]
    assert [decode_plain_png(data, MOST) for data in cases] == [None] * len(cases)


def test_damage_is_seen() -> None:
    whole = zlib.compress(b"\0\1\2\3\4" * 4)
    sound = raw_png(whole)
    assert decode_plain_png(sound, MOST) is not None
    cases = {
        "cut": sound[:-13],
        "flipped bit": sound[:45] + bytes([sound[45] ^ 1]) + sound[46:],
        "too few pixels": raw_png(zlib.compress(b"\0\1\2\3\4" * 3)),
        "too many pixels": raw_png(zlib.compress(b"\0\1\2\3\4" * 5)),
        "no stream": raw_png(b"no zlib"),
        "no pixels": raw_png(whole, width=0),
        "huge": raw_png(whole, width=100_000, height=100_000),
        "no header": sound[:8] + sound[33:],
    }
    assert [name for name, data in cases.items() if decode_plain_png(data, MOST) is not None] == []


@pytest.mark.parametrize("place", range(8, 70, 3))
def test_a_flipped_byte_is_decoded_as_pillow_does_or_rejected(place: int) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = bytearray(png(pixels))
    if place < len(data):
        data[place] ^= 0xFF
    plain = decode_plain_png(bytes(data), MOST)
    if plain is not None:
        with Image.open(io.BytesIO(bytes(data))) as image:
            assert np.array_equal(np.asarray(image), plain[:, :, 0])
