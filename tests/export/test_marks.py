"""The mark in a synthetic PNG, read by others' readers."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import decode_png, encode_png
from pipeline.data.store import iterate_tables
from pipeline.export.exporting import export
from pipeline.export.marks import SOURCE_TYPE, is_marked, is_plain, marked_png
from pipeline.hashing import digest_pixels

EXT = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"


def image(channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels), dtype=np.uint8)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_the_mark_stands_in_text_and_xmp_and_leaves_the_pixels(mode, channels):
    from defusedxml import ElementTree

    pixels = image(channels)
    png = marked_png(pixels, {"generator": "abc", "class": "ca\0t\n\u732b", "index": 7, "no": None})
    assert digest_pixels(decode_png(png, mode)) == digest_pixels(pixels)
    with Image.open(io.BytesIO(png)) as found:
        assert found.mode == mode
        assert found.text["replenish:generator"] == "abc"
        assert found.text["replenish:class"] == "ca t \u732b"
        assert found.text["replenish:index"] == "7"
        assert found.text["Software"].startswith("Replenish ")
        assert "Synthetic" in found.text["Description"]
        assert "replenish:no" not in found.text
        packet = found.info["xmp"]
    root = ElementTree.fromstring(packet)
    values = [
        value
        for node in root.iter()
        for key, value in node.attrib.items()
        if key == f"{EXT}DigitalSourceType"
    ]
    assert values == [SOURCE_TYPE]
    assert is_marked(png)
    assert not is_plain(png, mode)


def test_the_xmp_chunk_is_well_formed_png():
    png = marked_png(image(1), {})
    at = png.index(b"iTXtXML:com.adobe.xmp\0\0\0\0\0")  # uncompressed, no language
    length = int.from_bytes(png[at - 4 : at], "big")
    body = png[at : at + 4 + length]
    assert zlib.crc32(body) == int.from_bytes(png[at + 4 + length : at + 8 + length], "big")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_plain_png_is_told_from_others(mode, channels):
    png = encode_png(image(channels))
    assert is_plain(png, mode)
    assert not is_marked(png)
    assert not is_plain(png, "RGB" if mode == "L" else "L")
    assert not is_plain(png + b"x", mode)
    assert not is_plain(png[:-12], mode)
    assert not is_plain(b"GIF89a", mode)


def test_synthetic_rows_are_marked_and_real_ones_are_bare(store, mode, tmp_path):
    export(store, tmp_path / "out", "store")
    rows = [row for table in iterate_tables(tmp_path / "out") for row in table.to_pylist()]
    assert {row["origin"] for row in rows} == {"real", "synthetic"}
    for row in rows:
        png = row["image"]["bytes"]
        assert is_marked(png) == (row["origin"] == "synthetic")
        assert is_plain(png, mode) == (row["origin"] == "real")
        assert digest_pixels(decode_png(png, mode)) == row["id"]
