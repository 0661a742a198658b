"""Each format out and back in, by the library that it is for: same ids, labels, splits, origins."""

import csv
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import decode_png
from pipeline.data.store import read_info, read_samples
from pipeline.export.exporting import export
from pipeline.hashing import digest_pixels


def expected(store, splits=("train", "validation", "test", "pool")):
    """Return (split, id, label, origin) of every row, sorted."""
    found = read_samples(store, splits)
    labels = found.labels.tolist()
    return sorted(zip(found.splits, found.ids, labels, found.origins, strict=True))


def identity(image, mode):
    """Return the id of an opened image, from its pixels."""
    assert image.mode == mode
    return digest_pixels(np.asarray(image).reshape(*image.size[::-1], -1))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    for name, value in (("HF_HOME", str(tmp_path / "hf")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        import datasets

        datasets.disable_progress_bars()
        yield lambda path: datasets.load_dataset(str(path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", ["store", "huggingface"])
def test_parquet_in_datasets(store, mode, tmp_path, datasets, layout):
    export(store, tmp_path / "out", layout)
    data = datasets(tmp_path / "out")
    found = [
        (split, identity(row["image"], mode), row["label"], row["origin"])
        for split, rows in data.items()
        for row in rows
    ]
    assert sorted(found) == expected(store)
    names = data["train"].features["label"].names
    assert tuple(names) == read_info(store).classes


def test_a_store_is_a_store_again(store, tmp_path):
    export(store, tmp_path / "out", "store")
    before, after = read_samples(store), read_samples(tmp_path / "out")
    assert np.array_equal(before.images, after.images)
    assert (before.ids, before.splits, before.groups, before.origins) == (
        after.ids,
        after.splits,
        after.groups,
        after.origins,
    )
    np.testing.assert_equal(before.extra, after.extra)
    assert read_info(store) == read_info(tmp_path / "out")
    export(tmp_path / "out", tmp_path / "again", "store")  # marks in it do not disturb
    assert read_samples(tmp_path / "again").ids == before.ids


def test_huggingface_holds_no_file_that_only_replenish_reads(grey, tmp_path):
    export(grey, tmp_path / "out", "huggingface")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_folder_in_torchvision(store, mode, tmp_path):
    from torchvision.datasets import ImageFolder

    export(store, tmp_path / "out", "folder")
    classes = read_info(store).classes
    found = []
    for split in ("train", "validation", "test"):
        data = ImageFolder(
            tmp_path / "out" / split, loader=lambda path: Path(path), allow_empty=True
        )
        assert len(data.classes) == len(classes)
        with (tmp_path / "out" / split / "metadata.csv").open(newline="") as file:
            table = {row["file_name"]: row for row in csv.DictReader(file)}
        folders = {}
        for path, number in data:
            row = table.pop(path.relative_to(tmp_path / "out" / split).as_posix())
            with Image.open(path) as image:
                one = identity(image, mode)
            assert row["id"] == one
            assert row["split"] == split
            assert ("-synthetic" in path.name) == (row["origin"] == "synthetic")
            assert folders.setdefault(number, row["label_index"]) == row["label_index"]
            found.append((split, one, int(row["label_index"]), row["origin"]))
        assert table == {}
    assert sorted(found) == expected(store, ("train", "validation", "test"))
    assert len(list((tmp_path / "out" / "pool" / "unlabelled").iterdir())) == 3


def test_folder_in_datasets(store, mode, tmp_path, datasets):
    export(store, tmp_path / "out", "folder")
    data = datasets(tmp_path / "out")
    found = [
        (split, identity(row["image"], mode), row["label_index"], row["origin"])
        for split, rows in data.items()
        for row in rows
    ]
    assert sorted(found) == expected(store, tuple(data))
    assert {"train", "validation", "test"} <= set(data)


def test_webdataset(store, mode, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        import webdataset

    export(store, tmp_path / "out", "webdataset", images_per_shard=4)
    found = []
    for split in ("train", "validation", "test", "pool"):
        paths = sorted(str(path) for path in (tmp_path / "out").glob(f"{split}-*.tar"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
            for sample in data.to_tuple("png", "cls", "json", "__key__"):
                png, label, facts, key = sample
                facts = json.loads(facts)
                one = digest_pixels(decode_png(png, mode))
                assert facts["id"] == one
                assert facts["split"] == split
                assert key.endswith("-synthetic") == (facts["origin"] == "synthetic")
                found.append((split, one, int(label), facts["origin"]))
    assert sorted(found) == expected(store)
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 4


def test_coco(store, mode, tmp_path):
    export(store, tmp_path / "out", "coco")
    info, found = read_info(store), []
    for split in ("train", "validation", "test", "pool"):
        coco = json.loads(
            (tmp_path / "out" / "annotations" / f"instances_{split}.json").read_text()
        )
        assert [one["name"] for one in coco["categories"]] == list(info.classes)
        labels = {one["image_id"]: one["category_id"] - 1 for one in coco["annotations"]}
        assert all(one["bbox"] == [0, 0, 8, 8] for one in coco["annotations"])
        for one in coco["images"]:
            with Image.open(tmp_path / "out" / "images" / one["file_name"]) as image:
                found.append(
                    (
                        split,
                        identity(image, mode),
                        labels.get(one["id"], -1),
                        one["replenish"]["origin"],
                    )
                )
                assert (one["width"], one["height"]) == image.size
    assert sorted(found) == expected(store)


def test_the_ids_of_coco_are_unique_and_refer(grey, tmp_path):
    export(grey, tmp_path / "out", "coco")
    coco = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    images = [one["id"] for one in coco["images"]]
    assert len(set(images)) == len(images) == 14
    assert {one["image_id"] for one in coco["annotations"]} == set(images)
    assert {one["category_id"] for one in coco["annotations"]} <= {
        one["id"] for one in coco["categories"]
    }


@pytest.mark.parametrize("layout", ["store", "huggingface", "folder", "webdataset", "coco"])
def test_croissant(grey, tmp_path, layout, monkeypatch):
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path / "cache"))  # where it is loaded here first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        import mlcroissant

        export(grey, tmp_path / "out", layout, images_per_shard=4)
        data = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
        assert not data.metadata.ctx.issues.errors
        found = []
        for one in data.metadata.record_sets:
            for row in data.records(one.uuid):
                values = {key.rpartition("/")[2]: value for key, value in row.items()}
                text = {
                    k: v.decode() if isinstance(v, bytes) and k != "image" else v
                    for k, v in values.items()
                }
                text = json.loads(text["facts"]) if "facts" in text else text
                found.append((text["split"], text["id"], int(text["label"]), text["origin"]))
                if "image" in values:
                    image = values["image"]
                    image = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
                    assert identity(image, "L") == text["id"]
    assert sorted(found) == expected(grey)
