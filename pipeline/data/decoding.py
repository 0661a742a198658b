"""One hostile image file in, (H, W, C) uint8 pixels and the conversions made, or a rejection, out.

Everything is checked in the order of its cost: the file's size, then its header, then its pixels.
What cannot be used comes back as a `Rejected` with one of the stable categories below, never as
an exception. Pillow warns about odd files; `quiet_pillow` is for the caller to enter, once and
outside of any threads, because Python's warning filters belong to the whole process.
"""

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.images import Images
from pipeline.data.plain_png import decode_plain_png, pixel_fault

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)

# Categories of rejection: stable names that summaries count.
EMPTY_FILE = "empty file"
FILE_TOO_LARGE = "file too large"
NOT_A_FILE = "not a regular file"
UNREADABLE = "unreadable"
NOT_AN_IMAGE = "not an image"
TOO_MANY_PIXELS = "too many pixels"
ANIMATED = "animated"
UNSUPPORTED_PIXELS = "unsupported pixel type"
TRUNCATED = "truncated"
DAMAGED = "damaged"

# Conversions: stable names that summaries count.
ORIENTED = "EXIF orientation applied"
PALETTE = "palette to RGB"
ALPHA = "alpha composited on white"
CMYK = "CMYK to RGB"
YCBCR = "YCbCr to RGB"
GREY_16 = "16-bit grey to 8-bit, divided by 257"
COLOUR_16 = "16-bit colour to 8-bit, top byte"
ONE_BIT = "1-bit to grey"
FIRST_OF_SEVERAL = "first picture of a multi-picture JPEG"

_GREY_16_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MODES = _GREY_16_MODES | {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"}
_MODES |= {"CMYK", "YCbCr"}
_ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SWAP_SIDES = frozenset(_TURNS[number] for number in (5, 6, 7, 8))


@dataclass(frozen=True)
class Limits:
    """What is too much.

    Attributes:
        file_bytes: larger files are rejected unread.
        image_pixels: images of more pixels (width x height) are rejected undecoded.
    """

    file_bytes: int
    image_pixels: int


@dataclass(frozen=True)
class Rejected:
    """Why a file cannot be used: a stable category, and what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded."""

    width: int
    height: int


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: (H, W, C) uint8, C = 1 (grey) or 3 (colour).
        conversions: names of the conversions that were needed, in order.
        width: in px, upright; of the whole image, where `pixels` are a reduced one.
        height: likewise.
        png: a plain PNG of these very pixels where the file was one, without its notes; or None.
    """

    pixels: Images
    conversions: tuple[str, ...]
    width: int
    height: int
    png: bytes | None = None


class _RejectedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.rejected = Rejected(reason, detail)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings; what they warn of is checked here and rejected by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_file(path: str | Path, most_bytes: int) -> bytes | Rejected:
    """Return the bytes of a regular file that is neither empty nor larger than `most_bytes`."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes its time
        # A named pipe would be waited on for ever, a device read without end.
        if not stat.S_ISREG(status.st_mode):
            return Rejected(NOT_A_FILE, "a folder, pipe, socket or device")
        fault = _size_fault(status.st_size, most_bytes)
        if fault is not None:
            return fault
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        return Rejected(UNREADABLE, _os_detail(error))
    return data if len(data) <= most_bytes else Rejected(UNREADABLE, "it grows while it is read")


def inspect_image(file: Path | bytes, limits: Limits) -> Header | Rejected:
    """Return width and height from the header, without decoding a pixel."""
    data = _bytes_of(file, limits)
    if isinstance(data, Rejected):
        return data
    try:
        with _open_image(io.BytesIO(data), limits) as image:
            return Header(*image.size)
    except _RejectedError as error:
        return error.rejected


def decode_image(
    file: Path | bytes, limits: Limits, enough_px: int | None = None
) -> Decoded | Rejected:
    """Return the pixels of one file, upright and as 8-bit grey or colour.

    Grey of 16 bits is divided by 257 and rounded, the inverse of 8-bit grey written as 16; a
    transparent image is laid on white; CMYK and YCbCr become RGB without colour profiles.

    Args:
        file: the file, or its bytes.
        limits: what is too much.
        enough_px: a JPEG whose longer side is at least twice as long is decoded at a half, quarter
            or eighth of its size, not below this: its cosine transform leaves the finest waves out
            (libjpeg's scaled decoding), which does not alias and takes a fraction of the time.
    """
    data = _bytes_of(file, limits)
    if isinstance(data, Rejected):
        return data
    plain = decode_plain_png(data, limits.image_pixels)
    if plain is not None:
        height, width = plain[0].shape[:2]
        return Decoded(plain[0], (), width, height, plain[1])
    try:
        with _open_image(io.BytesIO(data), limits) as image:
            decoded = _decode(image, enough_px)
            fault = pixel_fault(data) if image.format == "PNG" else None
    except _RejectedError as error:
        return error.rejected
    return decoded if fault is None else Rejected(DAMAGED, fault)


def _bytes_of(file: Path | bytes, limits: Limits) -> bytes | Rejected:
    if isinstance(file, Path):
        return read_file(file, limits.file_bytes)
    return _size_fault(len(file), limits.file_bytes) or file


def _size_fault(size: int, most_bytes: int) -> Rejected | None:
    if size == 0:
        return Rejected(EMPTY_FILE, "0 bytes")
    if size > most_bytes:
        detail = f"{size} bytes; at most {most_bytes} are read (max_file_bytes)"
        return Rejected(FILE_TOO_LARGE, detail)
    return None


def _open_image(stream: IO[bytes], limits: Limits) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)
        width, height = image.size
        if width * height > limits.image_pixels:
            raise _RejectedError(
                TOO_MANY_PIXELS,
                f"{width} x {height}; at most {limits.image_pixels} pixels (max_image_pixels)",
            )
        # A phone's multi-picture JPEG holds previews and depth maps after the photo itself.
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except _RejectedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit, which comes before ours for very large images (or strict warnings).
        found = re.search(r"\d+ pixels", str(error))
        raise _RejectedError(
            TOO_MANY_PIXELS,
            f"{found[0] if found else 'more'}; at most {limits.image_pixels} pixels "
            "(max_image_pixels), and never more than Pillow opens",
        ) from None
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        raise _RejectedError(NOT_AN_IMAGE, f"its content is none of {names}") from None
    except Exception as error:  # a parser's fault on a hostile file is the file's fault
        raise _fault(error) from None
    if frames > 1:
        raise _RejectedError(ANIMATED, f"{frames} frames; give one image a file")
    if image.mode not in _MODES:
        kind = "floating point pixels" if image.mode == "F" else f"pixels of mode {image.mode}"
        raise _RejectedError(UNSUPPORTED_PIXELS, f"{kind}; save it as 8-bit grey or RGB")
    return image


def _decode(image: Image.Image, enough_px: int | None) -> Decoded:
    try:
        width, height = image.size
        conversions = [FIRST_OF_SEVERAL] if image.format == "MPO" else []
        if image.mode not in _GREY_16_MODES and _has_16_bit_samples(image):
            conversions.append(COLOUR_16)
        if enough_px is not None and image.format == "JPEG":
            share = enough_px / max(width, height)
            image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
        image.load()
        turn = _TURNS.get(_orientation(image))
        pixels, converted = _to_8_bit(image)
        if turn is not None:
            bands = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            pixels = _array(Image.fromarray(bands).transpose(turn))
            conversions.append(ORIENTED)
            if turn in _SWAP_SIDES:
                width, height = height, width
        return Decoded(pixels, (*conversions, *converted), width, height)
    except _RejectedError:
        raise
    except Exception as error:  # as above
        raise _fault(error) from None


def _to_8_bit(image: Image.Image) -> tuple[Images, list[str]]:
    mode = image.mode
    if mode in _GREY_16_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise _RejectedError(
                UNSUPPORTED_PIXELS,
                f"integers from {values.min()} to {values.max()}; save it as 8-bit or 16-bit grey",
            )
        return ((values + 128) // 257).astype(np.uint8)[:, :, None], [GREY_16]
    conversions = [PALETTE] if mode in ("P", "PA") else []
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        flat = Image.alpha_composite(white, layer).convert("RGB")
        grey = mode in ("1", "L", "LA", "La")
        return _array(flat.getchannel(0) if grey else flat), [*conversions, ALPHA]
    if mode in ("1", "L"):
        return _array(image.convert("L")), [ONE_BIT] if mode == "1" else []
    conversions += {"CMYK": [CMYK], "YCbCr": [YCBCR]}.get(mode, [])
    return _array(image.convert("RGB")), conversions


def _array(image: Image.Image) -> Images:
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF beside sound pixels: the pixels stand as they are
        return 1


def _has_16_bit_samples(image: Image.Image) -> bool:
    # Pillow reads 16-bit colour as 8-bit without a word; only the raw mode of its tiles tells.
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))


def _fault(error: Exception) -> _RejectedError:
    message = " ".join(str(error).split())[:200]
    if isinstance(error, OSError) and error.errno is not None:
        return _RejectedError(UNREADABLE, _os_detail(error))
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return _RejectedError(TRUNCATED, "the file ends before the image does")
    # Paths and addresses of objects have no place in an output that must be the same everywhere.
    plain = message if message and not {"/", "\\", "<"} & set(message) else type(error).__name__
    return _RejectedError(DAMAGED, plain)


def _os_detail(error: Exception) -> str:
    return getattr(error, "strerror", None) or "the file name cannot be opened"
