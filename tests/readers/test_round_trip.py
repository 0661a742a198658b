"""What Replenish gives away, read again: the same images, and no synthetic one passes for real."""

from pathlib import Path

import pytest
from export_stores import parts, write
from readers.reading import LIMITS, pixels, read

from pipeline.data.store import concatenate
from pipeline.export.choices import Layout
from pipeline.export.exporting import export
from pipeline.hashing import digest_pixels
from pipeline.readers.folder import read_folder


@pytest.mark.parametrize("layout", ["store", "huggingface", "folder", "webdataset", "coco"])
def test_an_export_is_read_back_without_its_synthetic_rows(layout: Layout, tmp_path: Path) -> None:
    write(tmp_path / "store", parts())
    export(tmp_path / "store", tmp_path / "out", layout)
    source = read(tmp_path / "out")
    samples = concatenate(parts())
    expected = {
        (identity, split)
        for identity, split, origin in zip(
            samples.ids, samples.splits, samples.origins, strict=True
        )
        if origin == "real" and split != "pool"
    }
    found = {(digest_pixels(pixels(source, row)), source.given[row]) for row in range(len(source))}
    assert found == expected
    assert len(source.classes) == 3
    assert "cat" in source.classes
    aside = [item.reason for item in source.quarantine]
    assert aside.count("synthetic image") == 5


def test_an_exported_folder_read_as_mere_folders_keeps_synthetic_images_out(
    tmp_path: Path,
) -> None:
    write(tmp_path / "store", parts()[:4])  # without a pool, whose folder is no split's
    export(tmp_path / "store", tmp_path / "out", "folder")
    for split in ("train", "validation", "test"):
        (tmp_path / "out" / split).rename(tmp_path / split)
    (tmp_path / "plain").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / split).rename(tmp_path / "plain" / split)
    source = read_folder(tmp_path / "plain", LIMITS)
    assert len(source) == 18
    assert [item.reason for item in source.quarantine].count("synthetic image") == 5
