"""An export is whole or absent, the same every time, and refuses what it cannot stand for."""

import csv
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_stores import CLASSES, parts, rows, write

import pipeline.export.exporting as exporting
import pipeline.export.manifests as manifests
from pipeline.errors import InputError, StageError
from pipeline.export.choices import LAYOUTS
from pipeline.export.exporting import export
from pipeline.hashing import digest_folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_store_and_key_give_the_same_bytes(grey, keys, tmp_path, layout):
    told = []
    made = export(grey, tmp_path / "a", layout, keys.private, progress=lambda *x: told.append(x))
    os.utime(grey / "dataset.json", (1, 1))
    assert export(grey, tmp_path / "b", layout, keys.private) == made
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")
    assert (made.rows, made.synthetic_rows, made.fingerprint) == (26, 5, keys.fingerprint)
    assert made.files == len(digest_folder(tmp_path / "a"))
    assert told[-1] == (26, 26)
    secret = keys.private.read_bytes().splitlines()[1]
    assert not any(
        secret in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()
    )


def test_without_a_key_there_are_manifests_and_no_signatures(grey, tmp_path):
    made = export(grey, tmp_path / "out", "webdataset")
    assert made.fingerprint is None
    assert not list((tmp_path / "out").rglob("*.sig"))
    assert "Nothing is signed" in (tmp_path / "out" / "README.md").read_text()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["public_key"] is None
    shard = json.loads((tmp_path / "out" / manifest["shards"][0]).read_text())
    assert shard["origins"] == {"real": 9, "synthetic": 5}
    assert len(shard["rows"]) == 14


def test_cells_are_neutralised_and_folders_harmless(grey, tmp_path):
    export(grey, tmp_path / "out", "folder")
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == [
        "HYPERLINK(1)", "cat", "con_", "metadata.csv",
    ]  # fmt: skip
    with (tmp_path / "out" / "train" / "metadata.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["label"] for row in table} == {"cat", f"'{CLASSES[1]}", "con"}
    assert {row["score"] for row in table} == {"-0.5", "nan"}
    assert {row["generator"] for row in table} == {"none", "g" * 64}


def test_the_stores_card_is_kept_but_for_its_loading(grey, tmp_path):
    (grey / "README.md").write_text(
        "---\npretty_name: Mine\nconfigs:\n- config_name: x\n---\n# Mine\n\n"
        "## How to load it\n\nold way\n\n## Limits\n\nmany\n"
    )
    for layout, kept in (("coco", False), ("store", True)):
        export(grey, tmp_path / layout, layout)
        card = (tmp_path / layout / "README.md").read_text()
        assert card.startswith("---\npretty_name: Mine\n")
        assert ("old way" in card) == kept
        assert "config_name: x" not in card
        assert "## Limits\n\nmany" in card
        assert f"Layout `{layout}`" in card
        assert json.loads((tmp_path / layout / "croissant.json").read_text())["name"] == "Mine"


@pytest.mark.parametrize("card", [b"\xff", b"x" * (2 << 20)])
def test_a_card_that_is_none(grey, tmp_path, card):
    (grey / "README.md").write_bytes(card)
    with pytest.raises(InputError, match="README.md: not UTF-8, or larger"):
        export(grey, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


def test_yaml_tags_in_a_card_are_not_obeyed(grey, tmp_path):
    mark = tmp_path / "mark"
    (grey / "README.md").write_text(
        f"---\na: !!python/object/apply:os.mkdir ['{mark}']\n---\n# Mine\n"
    )
    export(grey, tmp_path / "out", "coco")
    assert not mark.exists()
    assert "# Mine" in (tmp_path / "out" / "README.md").read_text()


def test_what_stands_there_is_not_lost(grey, keys, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="holds files that are no export"):
        export(grey, out, "store", force=True)
    shutil.rmtree(out)
    export(grey, out, "store")
    with pytest.raises(InputError, match="holds an export already"):
        export(grey, out, "coco")
    export(grey, out, "coco", force=True)
    assert (out / "annotations").is_dir()
    assert not (out / "data").exists()
    with pytest.raises(InputError, match="the private key must not lie in"):
        export(grey, keys.private.parent, "coco", keys.private, force=True)
    with pytest.raises(InputError, match="stands inside of the store"):
        export(grey, grey / "out", "coco")
    with pytest.raises(InputError, match="or around it"):
        export(grey, tmp_path, "coco", force=True)
    with pytest.raises(InputError, match="unknown; use one of store"):
        export(grey, tmp_path / "x", "zip")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        export(grey, tmp_path / "file", "coco")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_that_fails_leaves_nothing(grey, tmp_path, layout, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "croissant", fail)
    with pytest.raises(KeyboardInterrupt):
        export(grey, tmp_path / "out", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["grey"]


def change(store, split, name, values):
    """Write one column of a split's first file anew."""
    path = sorted((store / "data").glob(f"{split}-*"))[0]
    table = pq.read_table(path)
    position = table.schema.get_field_index(name)
    field = table.schema.field(position)
    old = table.column(name).to_pylist()
    pq.write_table(table.set_column(position, field, pa.array(values(old), field.type)), path)


@pytest.mark.parametrize(
    ("split", "name", "values", "expected"),
    [
        ("train", "id", lambda x: x[::-1], "the pixels are not those of the id"),
        ("test", "origin", lambda x: ["synthetic", *x[1:]], "synthetic in test"),
        ("test", "label", lambda x: [99, *x[1:]], "label 99 is none of the classes"),
        ("test", "label", lambda x: [(v + 1) % 3 for v in x], "not those of its dataset.json"),
        ("test", "split", lambda x: ["train"] * len(x), "split 'train'"),
        ("test", "image", lambda x: [None, *x[1:]], "no id or no image"),
        ("test", "image", lambda x: [{"bytes": b"GIF"}, *x[1:]], "not an image"),
    ],
)
def test_a_damaged_store_is_not_given_away(grey, tmp_path, split, name, values, expected):
    change(grey, split, name, values)
    with pytest.raises(StageError, match=expected):
        export(grey, tmp_path / "out", "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["grey"]


def test_files_that_are_no_parquet_or_lead_out(grey, tmp_path):
    path = next((grey / "data").glob("test-*"))
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="a link leads out"):
        export(grey, tmp_path / "out", "coco")
    path.unlink()
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="not readable as Parquet"):
        export(grey, tmp_path / "out", "coco")
    pq.write_table(pa.table({"id": ["x"]}), path)
    with pytest.raises(InputError, match="no column 'group'"):
        export(grey, tmp_path / "out", "coco")


def test_the_same_image_twice_keeps_both_rows(tmp_path):
    one = rows(3, "train", 0)
    write(tmp_path / "source", [one, one, parts()[3]])
    for layout in LAYOUTS:
        assert export(tmp_path / "source", tmp_path / layout, layout).rows == 11
    assert len(list((tmp_path / "folder" / "train").rglob("*-2.png"))) == 3


def test_a_manifest_that_nobody_would_read_is_refused(grey, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(InputError, match="ask for fewer images per shard"):
        export(grey, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()
