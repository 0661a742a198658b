import numpy as np
import pytest
import torch

from pipeline.data.images import (
    CHANNELS,
    ImageMode,
    contact_sheet,
    decode_png,
    encode_png,
    from_model,
    to_model,
)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_round_trip(mode: ImageMode) -> None:
    shape = (5, 7, CHANNELS[mode])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode_png(encode_png(pixels), mode), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())


def test_only_png_is_decoded() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        decode_png(b"GIF89a" + bytes(20), "L")


def test_every_byte_survives_the_model_scale() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    tensor = to_model(values)
    assert tensor.shape == (1, 1, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert np.array_equal(from_model(tensor), values)


def test_channels_move_and_come_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    tensor = to_model(pixels)
    assert tensor.shape == (2, 3, 4, 6)
    assert tensor[1, 2, 3, 5].item() == pytest.approx(pixels[1, 3, 5, 2] / 127.5 - 1)
    assert np.array_equal(from_model(tensor), pixels)


def test_values_outside_are_clipped() -> None:
    wild = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 1, 5)
    assert from_model(wild).ravel().tolist() == [0, 0, 128, 255, 255]


def test_contact_sheet_places_rows_of_any_length() -> None:
    white = np.full((3, 2, 2, 1), 255, dtype=np.uint8)
    sheet = contact_sheet([white, white[:1] // 255], gap_px=1)
    assert sheet.shape == (7, 10, 1)
    assert (sheet[1:3, 1:3] == 255).all()
    assert (sheet[4:6, 1:3] == 1).all()
    assert (sheet[4:6, 4:] == 128).all()
    assert contact_sheet([white], scale=3).shape == (12, 30, 1)
