"""JPEG: segments that lie, EXIF that loops, several pictures in one file (ITU T.81, EXIF 2.3)."""

import io
import struct

from corpus.case import Case, Outcome, picture
from corpus.image_files import image_case, saved
from PIL import Image


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def after_start(seed: int, *segments: bytes) -> bytes:
    data = saved(picture(seed), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def without(seed: int, marker: int) -> bytes:
    """Return a sound JPEG without its segments of one kind."""
    data = saved(picture(seed), "JPEG")
    at, kept = 2, data[:2]
    while data[at + 1] != 0xDA:
        size = 2 + struct.unpack_from(">H", data, at + 2)[0]
        kept += b"" if data[at + 1] == marker else data[at : at + size]
        at += size
    return kept if marker == 0xDA else kept + data[at:]


def frame(seed: int, **fields: int) -> bytes:
    """Return a sound JPEG with other values in its frame header."""
    data = bytearray(saved(picture(seed), "JPEG"))
    at = data.index(b"\xff\xc0") + 4
    for name, value in fields.items():
        layout, offset = {"bits": ("B", 0), "height": (">H", 1), "width": (">H", 3)}.get(
            name, ("B", 5)
        )
        struct.pack_into(layout, data, at + offset, value)
    return bytes(data)


def exif(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """Return an EXIF segment of one IFD; an entry is tag, type, count and value."""
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return segment(
        0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", following)
    )


def multi_picture(seed: int) -> bytes:
    first, second = picture(seed), picture(seed + 1)
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def cases() -> list[Case]:
    frames: dict[str, tuple[bytes, Outcome, str]] = {
        "declares 65500 x 65500": (
            frame(120, width=65_500, height=65_500),
            "quarantine",
            "too many pixels",
        ),
        "declares width 0": (frame(121, width=0), "quarantine", ""),
        "declares height 0": (frame(122, height=0), "quarantine", ""),
        "declares 12 bits": (frame(123, bits=12), "quarantine", ""),
        "declares 9 channels": (frame(124, channels=9), "quarantine", ""),
        "of more height than pixels": (frame(125, height=640), "either", ""),
        "without quantisation": (without(126, 0xDB), "quarantine", ""),
        "without codes": (without(127, 0xC4), "either", ""),
        "without a frame": (without(128, 0xC0), "quarantine", ""),
        "without a scan": (without(129, 0xDA), "quarantine", ""),
        "arithmetic coding": (
            saved(picture(130), "JPEG").replace(b"\xff\xc0", b"\xff\xc9"),
            "either",
            "",
        ),
        "lossless coding": (
            saved(picture(131), "JPEG").replace(b"\xff\xc0", b"\xff\xc3"),
            "quarantine",
            "",
        ),
        "zeros before its start": (bytes(64) + saved(picture(132), "JPEG"), "quarantine", ""),
        "segment longer than the file": (b"\xff\xd8\xff\xe1\xff\xff" + b"x" * 20, "quarantine", ""),
        "segment of length 0": (after_start(133, b"\xff\xe1\0\0"), "either", ""),
        "without its end": (saved(picture(134), "JPEG")[:-2], "either", ""),
        "60 segments of 64 KiB in all": (
            after_start(135, *[segment(0xEF, bytes(1_000))] * 60),
            "kept",
            "",
        ),
        "markup in its comment": (
            after_start(136, segment(0xFE, b"<script>alert(1)</script>\x1b[2J")),
            "kept",
            "",
        ),
        "profile with a part missing": (
            after_start(137, segment(0xE2, b"ICC_PROFILE\0\x02\x09junk")),
            "kept",
            "",
        ),
        "orientation 99": (after_start(138, exif((0x0112, 3, 1, 99))), "kept", ""),
        "orientation as a fraction": (after_start(139, exif((0x0112, 5, 1, 26))), "kept", ""),
        "exif that loops": (after_start(140, exif((0x8769, 4, 1, 8), following=8)), "kept", ""),
        "exif cut": (after_start(141, exif((0x0112, 3, 1, 6))[:-12]), "either", ""),
        "exif of 65535 entries": (
            after_start(142, segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
            "kept",
            "",
        ),
        "exif that points outside": (
            after_start(143, exif((0x0112, 3, 9_999, 0xFFFFFFF0))),
            "kept",
            "",
        ),
        "exif of a huge count": (after_start(144, exif((0x0112, 12, 0xFFFFFFFF, 8))), "kept", ""),
        "two pictures": (multi_picture(145), "kept", ""),
        "two pictures with the second cut": (multi_picture(147)[:-300], "either", ""),
        "index of pictures that lies": (
            multi_picture(149).replace(b"\x02\xb0\x07\x00", b"\x02\xb0\x07\xff"),
            "either",
            "",
        ),
        "joined to another": (
            saved(picture(151), "JPEG") + saved(picture(152), "JPEG"),
            "kept",
            "",
        ),
        "restart marks in its pixels": (
            saved(picture(153), "JPEG")[:-40] + b"\xff\xd3" * 20,
            "either",
            "",
        ),
        "grey with a colour transform": (
            saved(picture(154, channels=1), "JPEG")[:2]
            + segment(0xEE, b"Adobe\0\x64\0\0\0\0\x02")
            + saved(picture(154, channels=1), "JPEG")[2:],
            "kept",
            "",
        ),
        "one pixel": (saved(Image.new("RGB", (1, 1), (7, 8, 9)), "JPEG"), "kept", ""),
    }
    return [
        image_case(f"jpeg {name}", data, "jpg", expects, says)
        for name, (data, expects, says) in frames.items()
    ]
