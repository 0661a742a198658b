"""Real images of every format, and damage that any format can have: cut, flipped, misnamed."""

import gzip
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from corpus.case import Case, Outcome, digit, picture, put
from PIL import Image

BASE = "image folder"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(seed: int) -> Image.Image:
    return Image.fromarray(np.kron(digit(seed), np.ones((3, 3))).astype(np.uint16) * 257)


# Format -> (ending, the bytes of a sound file made from digit `seed`).
SOUND: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "png": ("png", lambda seed: saved(picture(seed), "PNG")),
    "grey png": ("png", lambda seed: saved(picture(seed, channels=1), "PNG")),
    "16-bit png": ("png", lambda seed: saved(deep(seed), "PNG")),
    "palette png": ("png", lambda seed: saved(picture(seed).quantize(16), "PNG")),
    "jpeg": ("jpg", lambda seed: saved(picture(seed), "JPEG")),
    "progressive jpeg": ("jpg", lambda seed: saved(picture(seed), "JPEG", progressive=True)),
    "cmyk jpeg": ("jpeg", lambda seed: saved(picture(seed).convert("CMYK"), "JPEG")),
    "bmp": ("bmp", lambda seed: saved(picture(seed), "BMP")),
    "gif": ("gif", lambda seed: saved(picture(seed).quantize(64), "GIF")),
    "webp": ("webp", lambda seed: saved(picture(seed), "WEBP")),
    "lossless webp": ("webp", lambda seed: saved(picture(seed), "WEBP", lossless=True)),
    "tiff": ("tif", lambda seed: saved(picture(seed), "TIFF")),
    "deflate tiff": (
        "tiff",
        lambda seed: saved(picture(seed), "TIFF", compression="tiff_adobe_deflate"),
    ),
    "ppm": ("ppm", lambda seed: saved(picture(seed), "PPM")),
}
# Cut this near to its end a file may have lost nothing that is needed.
_MAY_STAND = {(kind, 98) for kind in ("gif", "webp", "tiff", "deflate tiff", "grey png")}
_MAY_STAND |= {("16-bit png", 98), ("palette png", 98)}


def image_case(
    name: str,
    data: Callable[[], bytes] | bytes,
    ending: str,
    expects: Outcome = "quarantine",
    says: str = "",
) -> Case:
    """Return the case of one image file beside good ones."""
    file = f"0/{name.replace(' ', '-')}.{ending}"

    def build(root: Path) -> str:
        return put(root, file, data if isinstance(data, bytes) else data())

    return Case(name, BASE, build, expects, says)


def cases() -> list[Case]:
    found: list[Case] = []
    for number, (kind, (ending, make)) in enumerate(SOUND.items()):
        found.append(image_case(f"sound {kind}", partial(make, number), ending, "kept"))
        for share in (3, 30, 60, 98):
            expects: Outcome = "either" if (kind, share) in _MAY_STAND else "quarantine"
            cut = partial(_cut, make, number, share)
            found.append(image_case(f"{kind} cut at {share} percent", cut, ending, expects))
        flips = partial(_flip, make, number, 0)
        found.append(image_case(f"{kind} of a broken magic", flips, ending))
        flips = partial(_flip, make, number, 50)
        found.append(image_case(f"{kind} with flipped bits", flips, ending, "either"))
        crossed = "webp" if ending != "webp" else "png"
        found.append(
            image_case(f"{kind} named {crossed}", partial(make, number + 20), crossed, "kept")
        )
    return found + _foreign()


def _cut(make: Callable[[int], bytes], seed: int, percent: int) -> bytes:
    data = make(seed)
    return data[: len(data) * percent // 100]


def _flip(make: Callable[[int], bytes], seed: int, percent: int) -> bytes:
    data = bytearray(make(seed))
    at = len(data) * percent // 100
    for offset in range(4):
        data[at + offset] ^= 0x55
    return bytes(data)


def _foreign() -> list[Case]:
    """Things that only bear an image's name."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../evil.png", saved(picture(1), "PNG"))
    array = io.BytesIO()
    np.save(array, digit(1))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    things: dict[str, bytes] = {
        "one byte": b"\x89",
        "a line break": b"\n",
        "zero bytes of text": bytes(10_000),
        "text": b"not an image at all\n" * 9,
        "html": b"<html><script>alert(1)</script></html>",
        "svg": svg,
        "gzipped svg": gzip.compress(svg, mtime=0),
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\n",
        "zip": zipped.getvalue(),
        "pickle": pickle.dumps({"a": 1}),
        "numpy array": array.getvalue(),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
        "script": b"#!/bin/sh\ntouch /tmp/replenish-was-here\n",
        "icon": saved(picture(2).resize((16, 16)), "ICO"),
        "tga": saved(picture(3), "TGA"),
        "jpeg 2000": saved(picture(4), "JPEG2000"),
        "avif": saved(picture(5), "AVIF"),
        "pcx": saved(picture(6), "PCX"),
        "sgi": saved(picture(7), "SGI"),
        "dds": saved(picture(8), "DDS"),
        "xbm": b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0,0,0,0,0,0,0,0};",
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "only magic of png": b"\x89PNG\r\n\x1a\n",
        "only magic of gif": b"GIF89a",
        "only magic of tiff": b"II*\0",
        "zlib stream": zlib.compress(bytes(100)),
    }
    found = [image_case("no byte", b"", "png", says="empty file")]
    found += [image_case(f"{name} as png", data, "png") for name, data in things.items()]
    found.append(image_case("image named txt", saved(picture(9), "PNG"), "txt"))
    found.append(Case("sparse file of 8 GiB", BASE, _sparse, "quarantine", "file too large"))
    return found


def _sparse(root: Path) -> str:
    with (root / "0" / "sparse.png").open("wb") as file:
        file.write(saved(picture(10), "PNG"))
        file.truncate(8 << 30)
    return "0/sparse.png"
