from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import Limits
from pipeline.data.loading import Loaded, load_images
from pipeline.data.readers import Source, read_digits, read_folder

LIMITS = Limits(1 << 20, 1_000_000)


def load(source: Source, workers: int = 1, **changes: object) -> Loaded:
    settings = {"side_px": None, "mode": "auto", "fit": "pad"} | changes
    return load_images(
        source, limits=LIMITS, workers=workers, on_image=lambda done: None, **settings
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_grey_set_stays_grey_even_in_colour_files(root: Path) -> None:
    Image.open(root / "a" / "0.png").convert("RGB").save(root / "a" / "0.png")
    loaded = load(read_folder(root))
    assert loaded.image_mode == "L"
    assert loaded.images.shape == (6, 16, 16, 1)
    assert loaded.conversions == {"RGB without colour to grey": 1}
    assert np.array_equal(loaded.images[1, :, :, 0], np.asarray(Image.open(root / "a" / "1.png")))


def test_one_colour_image_makes_the_set_colour(root: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(root / "b" / "red.png")
    loaded = load(read_folder(root))
    assert loaded.image_mode == "RGB"
    assert loaded.conversions == {"grey to RGB": 6}
    assert loaded.images[-1, 0, 0].tolist() == [255, 0, 0]
    grey = load(read_folder(root), mode="L")
    assert grey.image_mode == "L"
    assert grey.conversions == {"colour to grey": 1}
    assert grey.images[-1, 0, 0].tolist() == [76]  # 0.299 x 255


def test_bad_files_are_set_aside_and_the_others_keep_their_rows(root: Path) -> None:
    (root / "a" / "1.png").write_text("text")
    done: list[int] = []
    loaded = load_images(read_folder(root), None, "auto", "pad", LIMITS, 2, done.append)
    assert loaded.rows.tolist() == [0, 2, 3, 4, 5]
    assert [(item.file, item.reason) for item in loaded.quarantine] == [("a/1.png", "not an image")]
    assert done == [1, 2, 3, 4, 5, 6]


def test_all_bad_gives_an_empty_array(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_text("text")
    loaded = load(read_folder(root))
    assert loaded.images.shape == (0, 8, 8, 1)
    assert len(loaded.quarantine) == 6


def test_the_size_is_the_median_of_the_headers(root: Path) -> None:
    Image.new("L", (300, 20)).save(root / "a" / "wide.png")
    loaded = load(read_folder(root))
    assert loaded.images.shape[1:3] == (16, 16)
    assert loaded.conversions == {"padded to a square": 1, "resized": 1}


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_do_not_change_the_result(root: Path, workers: int) -> None:
    one, many = load(read_folder(root), side_px=12), load(read_folder(root), workers, side_px=12)
    assert np.array_equal(one.images, many.images)
    assert one.conversions == many.conversions


def test_arrays_pass_untouched_or_are_resized() -> None:
    source = read_digits()
    same = load(source)
    assert same.images is source.pixels
    larger = load(source, side_px=12, mode="RGB")
    assert larger.images.shape == (1797, 12, 12, 3)
    assert larger.conversions["resized"] == 1797
    assert larger.conversions["grey to RGB"] == 1797
