"""PNG: chunks that lie, bombs behind a small header, animation (W3C PNG, third edition)."""

import struct
import zlib

import numpy as np
from corpus.case import Case, Outcome, digit, picture
from corpus.image_files import image_case, saved

MAGIC = b"\x89PNG\r\n\x1a\n"
_BOMB_BYTES = 16 << 20


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    told = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", told)


def header(
    width: int = 8,
    height: int = 8,
    depth: int = 8,
    colour: int = 0,
    compression: int = 0,
    filtering: int = 0,
    interlace: int = 0,
) -> bytes:
    fields = (width, height, depth, colour, compression, filtering, interlace)
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))


def rows(seed: int, filter_type: int = 0) -> bytes:
    """Return the scanlines of a real digit, (8, 1 + 8) bytes."""
    pixels = digit(seed)
    return np.insert(pixels, 0, filter_type, axis=1).astype(np.uint8).tobytes()


def png(*chunks: bytes, end: bool = True) -> bytes:
    return MAGIC + b"".join(chunks) + (chunk(b"IEND", b"") if end else b"")


def idat(data: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(data))


def cases() -> list[Case]:
    body = idat(rows(40))
    bomb = zlib.compress(bytes(_BOMB_BYTES), 9)
    frames = [picture(41 + i) for i in range(3)]
    control = struct.pack(">II", 0xFFFFFFFF, 0)
    long = struct.pack(">I", 0xFFFFFFFF) + b"IDAT"
    whole = png(header(), idat(rows(44)))
    bad: dict[str, bytes | tuple[bytes, str]] = {
        "declares 60000 x 60000": (png(header(60_000, 60_000), body), "too many pixels"),
        "declares 2^31 x 2^31": png(header(1 << 31, 1 << 31), body),
        "declares 4 million x 1": (png(header(4_000_000, 1), body), "too many pixels"),
        "declares width 0": png(header(width=0), body),
        "declares height 0": png(header(height=0), body),
        "declares depth 3": png(header(depth=3), body),
        "declares colour 5": png(header(colour=5), body),
        "declares RGB of 8 rows of grey": png(header(colour=2), idat(rows(45))),
        "declares compression 9": png(header(compression=9), idat(rows(46))[:-6]),
        "crc of the header wrong": png(header()[:-4] + b"\0\0\0\0", body),
        "crc of the pixels wrong": png(header(), body[:-4] + b"\0\0\0\0"),
        "no header": png(body),
        "no pixels": png(header()),
        "pixels before the header": png(body, header()),
        "header of 12 bytes": png(chunk(b"IHDR", bytes(12)), body),
        "half of the pixels": png(header(), idat(rows(47)[:36])),
        "pixels that are no zlib": png(header(), chunk(b"IDAT", b"not zlib at all")),
        "zlib sum wrong": png(header(), chunk(b"IDAT", zlib.compress(rows(48))[:-4] + b"\0" * 4)),
        "chunk of 4 GiB": MAGIC + header() + long,
        "chunk of 2 GiB": MAGIC + header() + struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + body,
        "palette missing": png(header(colour=3), idat(rows(49))),
        "filter 9": png(header(), idat(rows(50, filter_type=9))),
        "icc bomb": png(header(), chunk(b"iCCP", b"a\0\0" + bomb), idat(rows(51))),
        "compressed text bomb": png(header(), chunk(b"zTXt", b"a\0\0" + bomb), idat(rows(52))),
        "international text bomb": png(
            header(), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), idat(rows(53))
        ),
        "text bombs in a row": png(header(), chunk(b"zTXt", b"a\0\0" + bomb) * 8, body),
        "animated": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "animation of 4 billion frames": png(header(), chunk(b"acTL", control), idat(rows(54))),
        "line ends translated": whole.replace(b"\r\n", b"\n"),
        "interlaced and cut": png(header(interlace=1), idat(rows(55)[:20])),
        "critical chunk unknown": png(header(), chunk(b"EVIL", b"x"), idat(rows(56))),
        "chunk name of control bytes": png(header(), chunk(b"\x1b[2J", b"x"), idat(rows(57))),
    }
    found = []
    for name, value in bad.items():
        data, says = value if isinstance(value, tuple) else (value, "")
        found.append(image_case(f"png {name}", data, "png", _NEUTRAL.get(name, "quarantine"), says))
    sound = {
        "pixels bomb behind 8 x 8": png(
            header(), chunk(b"IDAT", zlib.compress(rows(60) + bytes(_BOMB_BYTES), 9))
        ),
        "garbage after its end": png(header(), idat(rows(61))) + b"PK\x03\x04" * 99,
        "exif of garbage": png(header(), chunk(b"eXIf", b"garbage"), idat(rows(62))),
        "5000 small chunks": png(header(), chunk(b"tEXt", b"a\0b") * 5_000, idat(rows(63))),
        "markup in its text": png(
            header(), chunk(b"tEXt", b"Title\0<script>alert(1)</script>"), idat(rows(64))
        ),
        "gamma 0": png(header(), chunk(b"gAMA", bytes(4)), idat(rows(65))),
        "icc profile of garbage": png(
            header(), chunk(b"iCCP", b"a\0\0" + zlib.compress(b"garbage")), idat(rows(66))
        ),
        "two headers": png(header(), header(), idat(rows(67))),
        "no end": png(header(), idat(rows(68)), end=False),
    }
    found += [image_case(f"png {name}", data, "png", "kept") for name, data in sound.items()]
    return found


# What is no damage to the pixels, once it is neutralised.
_NEUTRAL: dict[str, Outcome] = dict.fromkeys(
    (
        "compressed text bomb",
        "international text bomb",
        "text bombs in a row",
        "animation of 4 billion frames",
        "critical chunk unknown",
    ),
    "kept",
)
