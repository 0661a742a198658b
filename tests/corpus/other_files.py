"""BMP, GIF, WebP, TIFF and PPM: headers that lie, loops, bombs, animation."""

import struct
import zlib

import numpy as np
from corpus.case import Case, Outcome, digit, picture
from corpus.image_files import image_case, saved
from PIL import Image

Bad = dict[str, tuple[bytes, Outcome, str]]

LONG, SHORT = 4, 3


def changed(data: bytes, at: int, layout: str, value: int) -> bytes:
    copy = bytearray(data)
    struct.pack_into(layout, copy, at, value)
    return bytes(copy)


def tiff(
    seed: int, more: dict[int, tuple[int, int, int]] | None = None, following: int = 0
) -> bytes:
    """Return a grey TIFF of a real digit; `more` is tag -> (type, count, value), 0 count drops."""
    tags = {
        256: (LONG, 1, 8),
        257: (LONG, 1, 8),
        258: (SHORT, 1, 8),
        259: (SHORT, 1, 1),
        262: (SHORT, 1, 1),
        273: (LONG, 1, 8),
        277: (SHORT, 1, 1),
        278: (LONG, 1, 8),
        279: (LONG, 1, 64),
    } | (more or {})
    kept = sorted((tag, *entry) for tag, entry in tags.items() if entry[1])
    ifd = struct.pack("<H", len(kept)) + b"".join(struct.pack("<HHII", *one) for one in kept)
    return (
        b"II*\0"
        + struct.pack("<I", 72)
        + digit(seed).tobytes()
        + ifd
        + struct.pack("<I", following)
    )


def cases() -> list[Case]:
    found = []
    kinds = (("bmp", _bmp()), ("gif", _gif()), ("webp", _webp()), ("tif", _tiff()), ("ppm", _ppm()))
    for ending, bad in kinds:
        found += [
            image_case(f"{ending} {name}", data, ending, expects, says)
            for name, (data, expects, says) in bad.items()
        ]
    return found


def _bmp() -> Bad:
    data = saved(picture(160), "BMP")
    run = changed(changed(saved(picture(161).quantize(16), "BMP"), 30, "<I", 1), 34, "<I", 99)
    return {
        "declares 60000 x 60000": (
            changed(changed(data, 18, "<i", 60_000), 22, "<i", 60_000),
            "quarantine",
            "too many pixels",
        ),
        "declares height -2^31": (changed(data, 22, "<i", -(1 << 31)), "quarantine", ""),
        "declares width -24": (changed(data, 18, "<i", -24), "quarantine", ""),
        "declares width 0": (changed(data, 18, "<i", 0), "quarantine", ""),
        "upside down": (changed(saved(picture(162), "BMP"), 22, "<i", -24), "kept", ""),
        "of 3 bits": (changed(data, 28, "<H", 3), "quarantine", ""),
        "of compression 77": (changed(data, 30, "<I", 77), "quarantine", ""),
        "of a header of 4 GiB": (changed(data, 14, "<I", 0xFFFFFFFF), "quarantine", ""),
        "of pixels past its end": (changed(data, 10, "<I", 0xFFFFFF00), "quarantine", ""),
        "of runs that are none": (run, "quarantine", ""),
        "of a palette of 4 billion": (
            changed(saved(picture(163).quantize(16), "BMP"), 46, "<I", 0xFFFFFFFF),
            "quarantine",
            "",
        ),
    }


def _gif() -> Bad:
    data = saved(picture(170).quantize(64), "GIF")
    frames = [picture(171 + i).quantize(16) for i in range(3)]
    image = data.index(b"\x2c", 13 + 3 * 64)
    endless = b"GIF89a\x08\0\x08\0\0\0\0" + (b"\x21\xfe\xff" + b"x" * 255) * 200
    return {
        "animated": (
            saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "quarantine",
            "animated",
        ),
        "screen of 65535 x 65535": (
            changed(changed(data, 6, "<H", 65_535), 8, "<H", 65_535),
            "quarantine",
            "too many pixels",
        ),
        "picture of 65535 x 65535": (
            changed(changed(data, image + 5, "<H", 65_535), image + 7, "<H", 65_535),
            "quarantine",
            "",
        ),
        "picture outside its screen": (changed(data, image + 1, "<H", 60_000), "quarantine", ""),
        "code size 255": (changed(data, image + 10, "B", 255), "quarantine", ""),
        "code size 0": (changed(data, image + 10, "B", 0), "either", ""),
        "screen 0 x 0": (
            changed(changed(saved(picture(175).quantize(64), "GIF"), 6, "<H", 0), 8, "<H", 0),
            "either",
            "",
        ),
        "comment without an end": (endless, "quarantine", ""),
        "extensions only": (b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xf9\0" * 999, "quarantine", ""),
        "trailer only": (b"GIF89a\x08\0\x08\0\0\0\0\x3b", "quarantine", ""),
    }


def _webp() -> Bad:
    data = saved(picture(180), "WEBP")
    frames = [picture(181 + i) for i in range(3)]
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\xff" + b"\xff\xff\xff"
    return {
        "animated": (
            saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            "quarantine",
            "animated",
        ),
        "of a size of 4 GiB": (changed(data, 4, "<I", 0xFFFFFFF0), "quarantine", ""),
        "of a size of 0": (changed(data, 4, "<I", 0), "quarantine", ""),
        "canvas of 16 million a side": (
            b"RIFF" + struct.pack("<I", len(vp8x) + 4) + b"WEBP" + vp8x,
            "quarantine",
            "",
        ),
        "chunk unknown": (
            b"RIFF" + struct.pack("<I", 16) + b"WEBPEVIL" + bytes(8),
            "quarantine",
            "",
        ),
        "declares 16383 x 16383": (
            changed(changed(data, 26, "<H", 16_383), 28, "<H", 16_383),
            "quarantine",
            "too many pixels",
        ),
    }


def _tiff() -> Bad:
    first = 72
    two = saved(picture(190), "TIFF", save_all=True, append_images=[picture(191)])
    real = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    bomb = zlib.compress(bytes(16 << 20), 9)
    packed = tiff(192, {259: (SHORT, 1, 8), 273: (LONG, 1, 8 + 300), 279: (LONG, 1, len(bomb))})
    return {
        "sound by hand": (tiff(193), "kept", ""),
        "directory that follows itself": (tiff(194, following=first), "either", ""),
        "directory past its end": (changed(tiff(195), 4, "<I", 0xFFFFFF00), "quarantine", ""),
        "directory at 0": (changed(tiff(195), 4, "<I", 0), "quarantine", ""),
        "of 65535 entries": (changed(tiff(195), first, "<H", 65_535), "either", ""),
        "of 0 entries": (changed(tiff(195), first, "<H", 0), "quarantine", ""),
        "width of 4 billion": (tiff(195, {256: (LONG, 1, 0xFFFFFFFF)}), "quarantine", ""),
        "width 0": (tiff(195, {256: (LONG, 1, 0)}), "quarantine", ""),
        "60000 x 60000": (
            tiff(195, {256: (LONG, 1, 60_000), 257: (LONG, 1, 60_000)}),
            "quarantine",
            "too many pixels",
        ),
        "width without a value": (tiff(195, {256: (LONG, 0, 0)}), "quarantine", ""),
        "width as text": (tiff(195, {256: (2, 4, 0x41414141)}), "quarantine", ""),
        "strip past its end": (tiff(195, {273: (LONG, 1, 0x7FFFFFFF)}), "quarantine", ""),
        "strip of 4 GiB": (tiff(195, {279: (LONG, 1, 0xFFFFFFFF)}), "either", ""),
        "strips without number": (tiff(195, {273: (LONG, 0xFFFFFFFF, 8)}), "quarantine", ""),
        "no strips": (tiff(195, {273: (LONG, 0, 0)}), "quarantine", ""),
        "255 samples": (tiff(195, {277: (SHORT, 1, 255)}), "quarantine", ""),
        "64 bits": (tiff(195, {258: (SHORT, 1, 64)}), "quarantine", ""),
        "compression 999": (tiff(195, {259: (SHORT, 1, 999)}), "quarantine", ""),
        "jpeg inside that is none": (tiff(195, {259: (SHORT, 1, 7)}), "quarantine", ""),
        "fax that is none": (tiff(196, {259: (SHORT, 1, 4)}), "either", ""),
        "tiles of width 0": (
            tiff(195, {322: (LONG, 1, 0), 323: (LONG, 1, 0), 324: (LONG, 1, 8), 273: (LONG, 0, 0)}),
            "quarantine",
            "",
        ),
        "photometric 99": (tiff(195, {262: (SHORT, 1, 99)}), "quarantine", ""),
        "planes 9": (tiff(197, {284: (SHORT, 1, 9)}), "either", ""),
        "exif that loops": (tiff(198, {0x8769: (LONG, 1, first)}), "either", ""),
        "sub-directories that loop": (tiff(199, {330: (LONG, 1, first)}), "either", ""),
        "two pages": (two, "quarantine", "animated"),
        "of floats": (
            saved(Image.fromarray(real), "TIFF"),
            "quarantine",
            "unsupported pixel type",
        ),
        "big tiff of nothing": (b"II+\0\x08\0\0\0" + bytes(24), "quarantine", ""),
        "deflate bomb": (packed.ljust(308, b"\0") + bomb, "either", ""),
        "other byte order than told": (b"MM*\0" + tiff(195)[4:], "quarantine", ""),
    }


def _ppm() -> Bad:
    pixels = digit(210).tobytes()
    many = "too many pixels"
    return {
        "of letters": (b"P3\n2 2\n255\nred green blue red", "quarantine", ""),
        "60000 x 60000": (b"P6\n60000 60000\n255\n" + pixels, "quarantine", many),
        "digits without end": (b"P5\n" + b"9" * 5_000 + b" 8\n255\n", "quarantine", ""),
        "width -8": (b"P5\n-8 8\n255\n" + pixels, "quarantine", ""),
        "width 0": (b"P5\n0 8\n255\n" + pixels, "quarantine", ""),
        "highest value 0": (b"P5\n8 8\n0\n" + pixels, "quarantine", ""),
        "highest value 65536": (b"P5\n8 8\n65536\n" + pixels, "quarantine", ""),
        "short of pixels": (b"P5\n8 8\n255\n" + pixels[:20], "quarantine", ""),
        "comment without end": (b"P5\n#" + b"x" * 50_000, "quarantine", ""),
        "plain and short": (b"P2\n8 8\n255\n1 2 3", "quarantine", ""),
        "value above the highest": (b"P2\n2 1\n9\n3 99", "quarantine", ""),
        "token without end": (b"P2\n2 1\n255\n" + b"1" * 5_000 + b" 1", "quarantine", ""),
        "of floats": (
            b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(),
            "quarantine",
            "unsupported pixel type",
        ),
        "any map": (b"P7\nWIDTH 8\nHEIGHT 8\nDEPTH 1\nMAXVAL 255\nENDHDR\n", "quarantine", ""),
        "sound": (b"P5\n8 8\n255\n" + digit(211).tobytes(), "kept", ""),
    }
