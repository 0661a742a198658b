import numpy as np
import pytest

from pipeline.data.shaping import auto_side, is_colour, to_grey, to_square


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([8], 8),
        ([28, 28, 500], 28),
        ([29], 28),
        ([30], 32),
        ([31], 32),
        ([1], 8),
        ([4000, 3000, 2000], 32),
        ([20, 24], 24),
    ],
)
def test_the_side_is_the_median_as_a_multiple_of_four(sides: list[int], expected: int) -> None:
    assert auto_side(sides) == expected


def test_colour_is_seen_in_a_single_pixel() -> None:
    pixels = np.full((4, 4, 3), 7, dtype=np.uint8)
    assert not is_colour(pixels)
    assert not is_colour(pixels[:, :, :1])
    pixels[3, 2, 2] = 8
    assert is_colour(pixels)


def test_grey_of_grey_is_the_same() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(to_grey(values.repeat(3, axis=2)), values)


def test_a_square_of_the_right_size_is_untouched() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    square, made = to_square(pixels, 8, "pad")
    assert np.array_equal(square, pixels)
    assert made == []


def test_padding_centres_on_black() -> None:
    square, made = to_square(np.full((4, 8, 3), 200, dtype=np.uint8), 8, "pad")
    assert made == ["padded to a square"]
    assert (square[2:6] == 200).all()
    assert not square[:2].any()
    assert not square[6:].any()


def test_cropping_takes_the_centre() -> None:
    pixels = np.zeros((8, 12, 1), dtype=np.uint8)
    pixels[:, 2:10] = 90
    square, made = to_square(pixels, 8, "crop")
    assert made == ["cropped to a square"]
    assert (square == 90).all()


@pytest.mark.parametrize("side", [8, 12, 64])
def test_resizing_keeps_a_plain_colour(side: int) -> None:
    square, made = to_square(np.full((31, 31, 3), (9, 99, 199), dtype=np.uint8), side, "pad")
    assert square.shape == (side, side, 3)
    assert (square == (9, 99, 199)).all()
    assert made == ["resized"]


def test_reducing_does_not_alias() -> None:
    # Stripes of one pixel average to grey; picking pixels would keep black or white.
    stripes = np.zeros((64, 64, 1), dtype=np.uint8)
    stripes[:, ::2] = 255
    square, _ = to_square(stripes, 8, "pad")
    assert np.abs(square.astype(int) - 128).max() < 20


def test_a_strip_is_scaled_before_it_is_padded() -> None:
    # The square around it would have 10^12 pixels.
    square, made = to_square(np.full((1, 1_000_000, 1), 255, dtype=np.uint8), 8, "pad")
    assert square.shape == (8, 8, 1)
    assert made == ["resized", "padded to a square"]
    assert (square[3] == 255).all()
