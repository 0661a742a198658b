import io
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.data import decoding
from pipeline.data.decoding import Decoded, Header, Limits, Rejected, decode_image, inspect_image

LIMITS = Limits(file_bytes=1 << 20, image_pixels=1_000_000)
PATTERN = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decoded(data: bytes | Path) -> Decoded:
    result = decode_image(data, LIMITS)
    assert isinstance(result, Decoded), result
    return result


def rejected(data: bytes | Path, limits: Limits = LIMITS) -> Rejected:
    result = decode_image(data, limits)
    assert isinstance(result, Rejected), result
    return result


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_comes_back_as_it_is(kind: str) -> None:
    result = decoded(encoded(Image.fromarray(PATTERN), kind))
    grey = result.pixels[:, :, 0]
    assert np.array_equal(grey, PATTERN)
    assert result.pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_decode(kind: str) -> None:
    colour = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    result = decoded(encoded(Image.fromarray(colour), kind))
    assert result.pixels.shape == (16, 16, 3)
    assert np.abs(result.pixels.astype(int) - colour).max() < 12


def test_sixteen_bit_grey_is_the_inverse_of_times_257() -> None:
    image = Image.fromarray(PATTERN.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        result = decoded(encoded(image, kind))
        assert np.array_equal(result.pixels[:, :, 0], PATTERN)
        assert result.conversions == (decoding.GREY_16,)


def test_sixteen_bit_grey_of_ppm() -> None:
    values = (PATTERN.astype(">u2") * 257).tobytes()
    result = decoded(b"P5\n8 6\n65535\n" + values)
    assert np.array_equal(result.pixels[:, :, 0], PATTERN)
    assert result.conversions == (decoding.GREY_16,)


def test_integers_beyond_16_bits_are_rejected() -> None:
    image = Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32))
    result = rejected(encoded(image, "TIFF"))
    assert result.reason == "unsupported pixel type"
    assert "70000" in result.detail


def test_sixteen_bit_colour_is_counted() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    row = b"\0" + bytes([200, 1, 30, 2, 60, 3]) * 2
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    result = decoded(png)
    assert result.conversions == (decoding.COLOUR_16,)
    assert result.pixels[0, 0].tolist() == [200, 30, 60]


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    clear.putpixel((0, 0), (10, 20, 30, 255))
    result = decoded(encoded(clear))
    assert result.pixels[0, 0].tolist() == [10, 20, 30]
    assert result.pixels[1, 1].tolist() == [255, 255, 255]
    assert result.conversions == (decoding.ALPHA,)


def test_grey_with_alpha_stays_grey() -> None:
    result = decoded(encoded(Image.new("LA", (2, 3), (0, 0))))
    assert result.pixels.shape == (3, 2, 1)
    assert (result.pixels == 255).all()


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    opaque = decoded(encoded(image))
    assert opaque.pixels[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert opaque.conversions == (decoding.PALETTE,)
    clear = decoded(encoded(image, transparency=1))
    assert clear.pixels[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert clear.conversions == (decoding.PALETTE, decoding.ALPHA)


def test_cmyk_becomes_rgb() -> None:
    result = decoded(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert result.pixels[0, 0].tolist() == [255, 0, 0]
    assert result.conversions == (decoding.CMYK,)


def test_one_bit_becomes_grey() -> None:
    image = Image.new("1", (3, 1))
    image.putpixel((1, 0), 1)
    result = decoded(encoded(image))
    assert result.pixels[0, :, 0].tolist() == [0, 255, 0]
    assert result.conversions == (decoding.ONE_BIT,)


def test_floats_are_rejected() -> None:
    result = rejected(encoded(Image.fromarray(PATTERN.astype(np.float32)), "TIFF"))
    assert result.reason == "unsupported pixel type"
    assert "floating point" in result.detail


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PATTERN), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    result = decoded(data)
    assert np.array_equal(result.pixels[:, :, 0], expected)
    assert (decoding.ORIENTED in result.conversions) == (orientation > 1)


def test_animated_is_rejected() -> None:
    frames = [Image.fromarray(np.roll(PATTERN, 2 * i, axis=1)) for i in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        result = rejected(data)
        assert result.reason == "animated", kind
        assert "3 frames" in result.detail


def test_the_photo_of_a_multi_picture_jpeg_is_read() -> None:
    photo = Image.new("L", (16, 16), 200)
    data = encoded(photo, "MPO", save_all=True, append_images=[Image.new("L", (8, 8), 0)])
    result = decoded(data)
    assert result.pixels.shape == (16, 16, 1)
    assert result.conversions == (decoding.FIRST_OF_SEVERAL,)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is no picture\n" * 10, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    assert rejected(data).reason == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_no_prefix_of_a_file_raises_or_passes_as_another_size(kind: str) -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8))
    data = encoded(noise, kind)
    with decoding.quiet_pillow():
        for length in range(0, len(data), max(1, len(data) // 40)):
            result = decode_image(data[:length], LIMITS)
            assert isinstance(result, Rejected) or result.pixels.shape[:2] == (20, 20)
        assert rejected(data[: len(data) // 2]).reason in {"truncated", "damaged", "not an image"}


def test_a_truncated_png_is_called_truncated() -> None:
    random = np.random.default_rng(0)
    data = encoded(Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)))
    assert rejected(data[: len(data) // 2]).reason == "truncated"


def test_damage_never_raises() -> None:
    random = np.random.default_rng(1)
    data = encoded(Image.fromarray(PATTERN))
    with decoding.quiet_pillow():
        for _ in range(300):
            broken = bytearray(data)
            broken[random.integers(len(data))] ^= 1 << random.integers(8)
            result = decode_image(bytes(broken), LIMITS)
            assert isinstance(result, Decoded | Rejected)


def test_a_huge_image_is_rejected_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)

    def never(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    start = time.perf_counter()
    with warnings.catch_warnings(), decoding.quiet_pillow():
        result = rejected(path, Limits(1 << 20, 50_000_000))
    assert result.reason == "too many pixels"
    assert time.perf_counter() - start < 1.0


def test_a_large_image_says_its_size() -> None:
    result = rejected(encoded(Image.new("L", (1001, 1000))))
    assert result == Rejected(
        "too many pixels", "1001 x 1000; at most 1000000 pixels (max_image_pixels)"
    )


def test_the_limit_itself_is_allowed() -> None:
    data = encoded(Image.new("L", (10, 10)))
    assert isinstance(decode_image(data, Limits(len(data), 100)), Decoded)
    assert rejected(data, Limits(len(data) - 1, 100)).reason == "file too large"
    assert rejected(data, Limits(len(data), 99)).reason == "too many pixels"


def test_the_header_alone_gives_the_size() -> None:
    data = encoded(Image.new("L", (7, 9)))
    assert inspect_image(data, LIMITS) == Header(7, 9)
    assert isinstance(inspect_image(b"text", LIMITS), Rejected)


def test_pipes_and_missing_files_are_rejected_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert rejected(pipe).reason == "not a regular file"
    assert rejected(tmp_path).reason == "not a regular file"
    missing = rejected(tmp_path / "none.png")
    assert missing.reason == "unreadable"
    assert str(tmp_path) not in missing.detail


def test_a_failing_disk_is_unreadable_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(encoded(Image.fromarray(PATTERN), "BMP"))

    def fail(self: ImageFile.ImageFile) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert rejected(path) == Rejected("unreadable", "Input/output error")
