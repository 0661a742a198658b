from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import Limits
from pipeline.data.images import Images
from pipeline.errors import StageError
from pipeline.ingest import loading
from pipeline.ingest.loading import Loaded, encode_images, load_images
from pipeline.readers.digits import read_digits
from pipeline.readers.folder import read_folder
from pipeline.readers.limits import ReadLimits
from pipeline.readers.source import NO_FILE, Crop, Pixels, Rejected, Source

LIMITS = Limits(1 << 20, 1_000_000)


def load(source: Source, folder: Path, workers: int = 1, **changes: Any) -> Loaded:
    settings = {"side_px": None, "mode": "auto", "fit": "pad"} | changes
    return load_images(
        source, folder, limits=LIMITS, workers=workers, on_image=lambda done: None, **settings
    )


def everything(loaded: Loaded) -> Images:
    return loaded.images(np.arange(len(loaded)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(3):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "raw" / name / f"{i}.png")
    return tmp_path / "raw"


def read(root: Path) -> Source:
    return read_folder(root, ReadLimits())


class Listed:
    """Contents that are told, and how often each was fetched."""

    def __init__(self, payloads: list[Any]) -> None:
        self.payloads = payloads
        self.fetched: list[int] = []

    def fetch(self, row: int) -> Any:
        self.fetched.append(row)
        return self.payloads[row]

    def digest(self, row: int) -> str:
        return str(row)


def source_of(contents: Any, count: int, masks: Any = None) -> Source:
    return Source(
        classes=("a", "b"),
        names=tuple(f"i{row}" for row in range(count)),
        labels=np.arange(count, dtype=np.int64) % 2,
        given=(None,) * count,
        contents=contents,
        masks=masks,
    )


def test_a_grey_set_stays_grey_even_in_colour_files(root: Path, tmp_path: Path) -> None:
    Image.open(root / "a" / "0.png").convert("RGB").save(root / "a" / "0.png")
    loaded = load(read(root), tmp_path / "chunks")
    assert loaded.image_mode == "L"
    images = everything(loaded)
    assert images.shape == (6, 16, 16, 1)
    assert loaded.conversions == {"RGB without colour to grey": 1}
    assert np.array_equal(images[1, :, :, 0], np.asarray(Image.open(root / "a" / "1.png")))


def test_one_colour_image_makes_the_set_colour(root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(root / "b" / "red.png")
    loaded = load(read(root), tmp_path / "chunks")
    assert loaded.image_mode == "RGB"
    assert loaded.conversions == {"grey to RGB": 6}
    assert everything(loaded)[-1, 0, 0].tolist() == [255, 0, 0]
    grey = load(read(root), tmp_path / "grey", mode="L")
    assert grey.image_mode == "L"
    assert grey.conversions == {"colour to grey": 1}
    assert everything(grey)[-1, 0, 0].tolist() == [76]  # 0.299 x 255


def test_colour_in_a_later_chunk_reaches_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "rows_per_chunk", lambda side: 2)
    grey = np.full((8, 8, 1), 9, dtype=np.uint8)
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    loaded = load(source_of(Listed([grey, grey, grey, red]), 4), tmp_path)
    assert loaded.starts == (0, 2, 4)
    assert loaded.image_mode == "RGB"
    assert everything(loaded).shape == (4, 8, 8, 3)
    assert loaded.ids[0] == loaded.ids[2]
    assert loaded.images(np.asarray([3, 0]))[:, 0, 0].tolist() == [[255, 0, 0], [9, 9, 9]]
    images = everything(loaded)
    for place, png in enumerate(
        png for part in encode_images(loaded, [np.arange(2)] * 2, 1) for png in part
    ):
        (tmp_path / "one.png").write_bytes(png)
        with Image.open(tmp_path / "one.png") as image:
            assert np.array_equal(np.asarray(image), images[place])


def test_bad_files_are_set_aside_and_the_others_keep_their_rows(root: Path, tmp_path: Path) -> None:
    (root / "a" / "1.png").write_text("text")
    done: list[int] = []
    loaded = load_images(
        read(root), tmp_path / "chunks", None, "auto", "pad", LIMITS, 2, done.append
    )
    assert loaded.rows.tolist() == [0, 2, 3, 4, 5]
    assert [(item.file, item.reason) for item in loaded.quarantine] == [("a/1.png", "not an image")]
    assert done == [6]


def test_all_bad_gives_nothing(root: Path, tmp_path: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_text("text")
    loaded = load(read(root), tmp_path / "chunks")
    assert everything(loaded).shape == (0, 8, 8, 1)
    assert len(loaded.quarantine) == 6


def test_the_size_is_the_median_of_the_headers(root: Path, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (20, 9)).save(root / "a" / f"wide{i}.png")
    Image.new("L", (20, 20)).save(root / "a" / "square.png")
    Image.new("L", (20, 20)).save(root / "b" / "square.png")
    Image.new("L", (20, 20)).save(root / "b" / "more.png")
    Image.new("L", (20, 20)).save(root / "b" / "most.png")
    assert load(read(root), tmp_path / "chunks").side_px == 20


@pytest.mark.slow
def test_worker_processes_do_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_FEW_ROWS", 100)
    monkeypatch.setattr(loading, "_TIMED_SECONDS", 0.0)
    monkeypatch.setattr(loading, "_ALONE_SECONDS", 0.0)
    source = read_digits()
    alone = load(source, tmp_path / "one")
    shared = load(source, tmp_path / "two", workers=2)
    assert shared.ids == alone.ids
    assert shared.starts == alone.starts
    kept = [np.arange(b - a) for a, b in zip(alone.starts, alone.starts[1:], strict=False)]
    assert list(encode_images(shared, kept, 2)) == list(encode_images(alone, kept, 1))


def test_an_interrupted_run_decodes_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "rows_per_chunk", lambda side: 2)
    image = np.zeros((8, 8, 1), dtype=np.uint8)
    contents = Listed([image] * 6)

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_images(source_of(contents, 6), tmp_path, 8, "auto", "pad", LIMITS, 1, stop)
    contents.fetched.clear()
    loaded = load(source_of(contents, 6), tmp_path, side_px=8)
    assert contents.fetched == [4, 5]
    assert len(loaded) == 6


def test_a_damaged_chunk_is_named_and_made_anew(tmp_path: Path) -> None:
    source = source_of(Pixels(np.zeros((3, 8, 8, 1), dtype=np.uint8)), 3)
    whole = load(source, tmp_path)
    whole.paths[0].write_bytes(b"PK")
    with pytest.raises(StageError, match="damaged by an interruption; run the same command again"):
        load(source, tmp_path)
    assert load(source, tmp_path).ids == whole.ids


def test_arrays_pass_untouched_or_are_resized(tmp_path: Path) -> None:
    digits = read_digits()
    same = load(digits, tmp_path / "same")
    assert isinstance(digits.contents, Pixels)
    assert np.array_equal(everything(same), digits.contents.images)
    larger = load(digits, tmp_path / "larger", side_px=12)
    assert everything(larger).shape == (1797, 12, 12, 1)
    assert larger.conversions["resized"] == 1797
    colour = load(digits, tmp_path / "colour", mode="RGB")
    assert everything(colour).shape == (1797, 8, 8, 3)
    assert colour.conversions["grey to RGB"] == 1797


def test_boxes_are_cut_and_those_outside_set_aside(root: Path, tmp_path: Path) -> None:
    file = root / "a" / "0.png"
    boxes = [(2.0, 3.0, 8.0, 8.0), (-4.0, -4.0, 12.0, 12.0), (15.5, 0.0, 9.0, 9.0)]
    contents = Listed([Crop(file, box) for box in boxes])
    loaded = load(source_of(contents, 3), tmp_path / "chunks", side_px=8)
    whole = np.asarray(Image.open(file))
    assert np.array_equal(everything(loaded)[0, :, :, 0], whole[3:11, 2:10])
    assert np.array_equal(everything(loaded)[1, :, :, 0], whole[:8, :8])
    assert [item.reason for item in loaded.quarantine] == ["box outside of the image"]
    assert "box 15.5, 0, 9, 9 in an image of 16 x 16 px" in loaded.quarantine[0].detail


def test_masks_go_with_their_images(tmp_path: Path) -> None:
    image = np.full((16, 16, 1), 200, dtype=np.uint8)
    mask = np.zeros((16, 16, 1), dtype=np.uint8)
    mask[:8] = 1  # what is not black counts
    masks = Listed([mask, Rejected("no file", "the row names none"), mask[:8]])
    masks.payloads[1] = Rejected(NO_FILE, "the row names none")
    loaded = load(source_of(Pixels(np.stack([image] * 3)), 3, masks), tmp_path, side_px=8)
    assert loaded.rows.tolist() == [0, 1]
    chunk = loaded.chunk(0)
    assert chunk.masked.tolist() == [True, False]
    assert chunk.masks[0, :4].min() == 255
    assert chunk.masks[0, 4:].max() == 0
    assert [item.reason for item in loaded.quarantine] == ["mask of another size"]
