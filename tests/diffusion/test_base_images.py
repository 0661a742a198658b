"""The labelled images of a run that a generator starts from: which, and in which shape."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_store import parts, stripes, write_prepare, write_run

from pipeline.data.images import encode_png
from pipeline.data.store import INFO, concatenate, make_samples, read_info, read_samples
from pipeline.data.store_writer import write_store
from pipeline.diffusion import base_images
from pipeline.diffusion.base_images import images_digest, write_base_images
from pipeline.diffusion.base_sources import import_run
from pipeline.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "spring"
    return write_run(root, steps=1, checks=1, check_images=0)


@pytest.fixture
def spring(made, tmp_path):
    return shutil.copytree(made, tmp_path / "spring")


def written(out, path, side_px=8, mode="L", seed=0):
    count = write_base_images(out, import_run(path), path, side_px, mode, seed)
    rows = read_samples(out)
    assert len(rows) == count
    return rows


def test_they_are_the_training_images_of_the_run(spring, tmp_path):
    rows, expected = written(tmp_path / "out", spring), parts()[0]
    assert rows.ids == tuple(sorted(expected.ids))
    labels = dict(zip(expected.ids, expected.labels, strict=True))
    assert rows.labels.tolist() == [labels[one] for one in rows.ids]
    assert set(rows.splits) == {"train"}
    assert read_info(tmp_path / "out").classes == ("rows", "columns")


def test_only_what_the_generator_saw(spring, tmp_path):
    seen, other = parts(), stripes([4, 4], "train", 77)
    write_prepare(spring / "prepare", [*seen, other])
    assert written(tmp_path / "out", spring).ids == tuple(sorted(seen[0].ids))


def test_they_take_our_size_and_mode(spring, tmp_path):
    rows = written(tmp_path / "out", spring, side_px=12, mode="RGB")
    assert rows.images.shape == (15, 12, 12, 3)
    assert (rows.images[..., 0] == rows.images[..., 2]).all()
    assert read_info(tmp_path / "out").image_size_px == 12
    # Colour becomes grey.
    grey = parts()[0]
    colour = make_samples(np.repeat(grey.images, 3, axis=-1), grey.labels, "train", "real")
    store = spring / "prepare" / "dataset"
    shutil.rmtree(store)
    write_store(store, colour, ("rows", "columns"), 8, "RGB")
    base = replace(import_run(spring), training_ids=colour.ids)
    assert write_base_images(tmp_path / "grey", base, spring, 8, "L", 0) == 15
    assert set(read_samples(tmp_path / "grey").ids) == set(grey.ids)


def test_images_that_have_become_one_count_once(spring, tmp_path):
    rows = written(tmp_path / "out", spring, side_px=1)
    assert len(set(rows.ids)) == len(rows) < 15


def test_of_too_many_a_random_part_is_taken(spring, tmp_path, monkeypatch):
    monkeypatch.setattr(base_images, "most_beside", lambda *_: 6)
    one, two = (written(tmp_path / name, spring) for name in ("one", "two"))
    other = written(tmp_path / "other", spring, seed=1)
    assert len(one) == 6
    assert one.ids == two.ids != other.ids
    assert set(one.ids) <= set(parts()[0].ids)


@pytest.mark.parametrize("inner", ["train", "train/generator"])
def test_a_part_of_the_run_has_none(spring, tmp_path, inner):
    assert images_digest(spring / inner) == ""
    assert len(written(tmp_path / "out", spring / inner)) == 0


def test_where_it_is_not_known_what_the_base_saw_there_are_none(spring, tmp_path):
    (spring / "train" / "training_ids.txt").unlink()
    assert len(written(tmp_path / "out", spring)) == 0


def test_without_a_base_the_store_is_empty(tmp_path):
    assert write_base_images(tmp_path / "out", None, None, 8, "RGB", 0) == 0
    info = read_info(tmp_path / "out")
    assert (info.classes, info.image_size_px, info.image_mode) == ((), 8, "RGB")
    assert len(read_samples(tmp_path / "out")) == 0


def test_the_digest_is_that_of_the_rows(spring):
    before = images_digest(spring)
    write_prepare(spring / "prepare", [concatenate(parts()).take(np.arange(10))])
    assert images_digest(spring) not in ("", before)
    (spring / "prepare" / "dataset" / INFO).unlink()
    assert images_digest(spring) == ""


def test_a_link_out_of_the_run_is_refused(spring, tmp_path):
    (spring / "prepare").rename(tmp_path / "elsewhere")
    (spring / "prepare").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a link leads out of"):
        images_digest(spring)


def test_damaged_images_are_named(spring, tmp_path):
    (path,) = (spring / "prepare" / "dataset" / "data").glob("train-*.parquet")
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: not readable"):
        written(tmp_path / "out", spring)


def rewrite(store, change):
    (path,) = (store / "data").glob("train-*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


@pytest.mark.parametrize(
    "image", [stripes([1, 1], "train", 5).images[0], None], ids=["another", "none"]
)
def test_an_image_that_is_not_what_its_id_says_is_refused(spring, tmp_path, image):
    png = b"GIF89a" if image is None else encode_png(image)

    def change(rows):
        rows[0]["image"] = {"bytes": png, "path": None}

    rewrite(spring / "prepare" / "dataset", change)
    with pytest.raises(InputError, match=r"the image .* is not what it should be; prepare that"):
        written(tmp_path / "out", spring)


def test_rows_that_are_not_those_of_the_digest_are_refused(spring, tmp_path):
    store = spring / "prepare" / "dataset"
    shutil.copytree(store, tmp_path / "whole")
    rewrite(store, lambda rows: rows.__setitem__(slice(0, 2), []))
    with pytest.raises(InputError, match=r"its rows are not those of dataset\.json; prepare that"):
        written(tmp_path / "out", spring)
    # Part of it was never copied.
    for path in (tmp_path / "whole" / "data").glob("train-*"):
        path.unlink()
    shutil.rmtree(store)
    shutil.copytree(tmp_path / "whole", store)
    with pytest.raises(InputError, match=r"its rows are not those of dataset\.json; prepare that"):
        written(tmp_path / "out", spring)


def test_files_larger_than_a_store_ever_has_are_not_read(spring, tmp_path, monkeypatch):
    monkeypatch.setattr(base_images, "_SHARD_BYTES", 100)
    with pytest.raises(InputError, match=r"-of-00001\.parquet: 0 GiB unpacked, more than"):
        written(tmp_path / "out", spring)
    monkeypatch.setattr(base_images, "_INFO_BYTES", 10)
    with pytest.raises(InputError, match=r"dataset\.json: 0 MiB, more than"):
        images_digest(spring)
