"""PNG without Pillow: the common case, fast, and whether the pixels of any PNG are all there.

OpenCV decodes a small PNG five times as fast as Pillow, but says nothing of damage. So the file is
checked here first: its chunks, their checksums, and that the pixels are all there (PNG 1.2, W3C
2003, sections 5 and 10). Whatever is out of the ordinary is left to `decoding`: palettes, alpha,
other depths. Pillow fills up with black what a whole zlib stream lacks, and looks at no checksum of
pixels, so that `pixel_fault` does.
"""

import struct
import zlib
from zlib import crc32

import cv2
import numpy as np

from pipeline.data.images import Images

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # colour type -> channels
_ALL_CHANNELS = _CHANNELS | {3: 1, 4: 2, 6: 4}
# Adam7: first column and row of each pass, and the steps between them.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Chunks that change no pixel. Palettes, transparency, orientation, animation are not among them.
_HARMLESS = frozenset(
    {b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"sRGB"}
    | {b"cHRM", b"bKGD", b"sBIT", b"hIST"}
)
_PIXEL_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND"})
_CHUNK_HEAD = struct.Struct(">I4s")
_MOST_CHUNKS = 4096
_PIECE_BYTES = 1 << 20


def decode_plain_png(data: bytes, most_pixels: int) -> tuple[Images, bytes | None] | None:
    """Return the pixels of a plain and sound PNG, and the file without what is no pixel.

    Returns:
        (H, W, C) uint8, C = 1 or 3, and a PNG that has its header, pixels and end alone, or None
        where bytes follow the pixels; None where the file is not both plain and sound.
    """
    found = _parse(data)
    if found is None:
        return None
    width, height, channels, packed, bare = found
    if not 0 < width * height <= most_pixels or width > 1 << 16 or height > 1 << 16:
        return None
    expected = height * (1 + width * channels)
    unpack = zlib.decompressobj()
    try:
        if len(unpack.decompress(packed, expected + 1)) != expected:
            return None
    except zlib.error:
        return None
    clean = bare if unpack.eof and not unpack.unused_data else None
    decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint8 or decoded.shape[:2] != (height, width):
        return None
    pixels: Images = decoded.astype(np.uint8, copy=False)
    if channels == 1:
        return (pixels[:, :, None], clean) if pixels.ndim == 2 else None
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return None
    return np.ascontiguousarray(pixels[:, :, ::-1]), clean  # OpenCV has blue first


def pixel_fault(data: bytes) -> str | None:
    """Return what is wrong with the pixels of a PNG that Pillow has decoded, or None.

    No more is unpacked than the header declares, and none of it is kept.
    """
    header: tuple[int, ...] | None = None
    unpack, found, at = zlib.decompressobj(), 0, len(_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if kind == b"IHDR" and header is None and length == 13:
            header = struct.unpack_from(">IIBBBBB", data, at + 8)
        elif kind == b"IDAT" and header is not None:
            told = data[end - 4 : end]
            if crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != told:
                return "a checksum of its pixels is wrong"
            try:
                found += _unpacked(unpack, data[at + 8 : end - 4], _expected(header) - found)
            except zlib.error:
                return "its pixels are no zlib stream"
        at = end
    if header is None or found < _expected(header):
        return "some of its pixels are missing"
    return None


def _unpacked(unpack: "zlib._Decompress", packed: bytes, most: int) -> int:
    """Return how many bytes come out, at most `most`."""
    found = 0
    while packed and found < most and not unpack.eof:
        found += len(unpack.decompress(packed, min(_PIECE_BYTES, most - found)))
        packed = unpack.unconsumed_tail
    return found


def _expected(header: tuple[int, ...]) -> int:
    """Return the bytes of all scanlines: each has one for its filter, and its bits filled up."""
    width, height, depth, colour, _, _, interlace = header
    bits = depth * _ALL_CHANNELS.get(colour, 1)
    passes = _PASSES if interlace else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        wide = max(0, -(-(width - left) // right))
        high = max(0, -(-(height - top) // down))
        total += high * (1 + (wide * bits + 7) // 8) if wide else 0
    return total


def _parse(data: bytes) -> tuple[int, int, int, bytes, bytes] | None:
    """Return width, height, channels, the packed pixels, and the file without its notes."""
    if len(data) < 57 or not data.startswith(_SIGNATURE):
        return None
    header, packed, at, size = None, [], len(_SIGNATURE), len(data)
    kept = [_SIGNATURE]
    for _ in range(_MOST_CHUNKS):
        if at + 12 > size:
            return None
        length, kind = _CHUNK_HEAD.unpack_from(data, at)
        end = at + 12 + length
        if end > size or kind not in _HARMLESS:
            return None
        if crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        if (kind == b"IHDR") != (header is None):
            return None
        if kind in _PIXEL_CHUNKS:
            kept.append(data[at:end])
        if kind == b"IHDR":
            if length != 13:
                return None
            header = struct.unpack_from(">IIBBBBB", data, at + 8)
        elif kind == b"IDAT":
            packed.append(data[at + 8 : end - 4])
        elif kind == b"IEND":
            break
        at = end
    else:
        return None
    if header is None or not packed:
        return None
    width, height, depth, colour, compression, filtering, interlace = header
    if depth != 8 or colour not in _CHANNELS or (compression, filtering, interlace) != (0, 0, 0):
        return None
    return width, height, _CHANNELS[colour], b"".join(packed), b"".join(kept)
