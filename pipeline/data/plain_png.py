"""The common case, fast: PNG of 8-bit grey or RGB without anything that needs care.

OpenCV decodes a small PNG five times as fast as Pillow, but says nothing of damage. So the file is
checked here first: its chunks, their checksums, and that the pixels are all there (PNG 1.2, W3C
2003, sections 5 and 10). Whatever is out of the ordinary is left to `decoding`.
"""

import struct
import zlib

import cv2
import numpy as np

from pipeline.data.images import Images

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # colour type -> channels
# Chunks that change no pixel. Palettes, transparency, orientation, animation are not among them.
_HARMLESS = frozenset(
    {b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"sRGB"}
    | {b"cHRM", b"bKGD", b"sBIT", b"hIST"}
)
_MOST_CHUNKS = 4096


def decode_plain_png(data: bytes, most_pixels: int) -> Images | None:
    """Return (H, W, C) uint8 of a plain and sound PNG, C = 1 or 3; None where it is not both."""
    found = _parse(data)
    if found is None:
        return None
    width, height, channels, packed = found
    if not 0 < width * height <= most_pixels or width > 1 << 16 or height > 1 << 16:
        return None
    expected = height * (1 + width * channels)
    unpack = zlib.decompressobj()
    try:
        if len(unpack.decompress(packed, expected + 1)) != expected:
            return None
    except zlib.error:
        return None
    decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint8 or decoded.shape[:2] != (height, width):
        return None
    pixels: Images = decoded.astype(np.uint8, copy=False)
    if channels == 1:
        return pixels[:, :, None] if pixels.ndim == 2 else None
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return None
    return np.ascontiguousarray(pixels[:, :, ::-1])  # OpenCV has blue first


def _parse(data: bytes) -> tuple[int, int, int, bytes] | None:
    """Return width, height, channels and the packed pixels."""
    if not data.startswith(_SIGNATURE) or len(data) < 57:
        return None
    header, packed, at = None, [], len(_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        if at + 12 > len(data):
            return None
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data) or kind not in _HARMLESS:
            return None
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return None
        if (kind == b"IHDR") != (header is None):
            return None
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
    return width, height, _CHANNELS[colour], b"".join(packed)
