"""The labelled images of a run that a generator starts from: which, and in which shape."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_store import parts, stripes, write_prepare, write_run

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


@pytest.mark.parametrize("inner", [".", "train", "train/generator"])
def test_they_are_the_training_images_of_the_run(spring, tmp_path, inner):
    rows, expected = written(tmp_path / "out", spring / inner), parts()[0]
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


def test_weights_alone_have_none(spring, tmp_path):
    shutil.copytree(spring / "train", tmp_path / "copy")
    assert images_digest(tmp_path / "copy") == ""
    assert len(written(tmp_path / "out", tmp_path / "copy")) == 0
    # Without the list of what the generator saw, no image is known to be one of them.
    (spring / "train" / "training_ids.txt").unlink()
    assert len(written(tmp_path / "unknown", spring)) == 0


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


@pytest.mark.parametrize("what", ["pixels", "no image", "label"])
def test_rows_that_are_not_what_they_say_are_refused(spring, tmp_path, what):
    (path,) = (spring / "prepare" / "dataset" / "data").glob("train-*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    if what == "pixels":  # another image under this one's id
        rows[0]["image"] = rows[1]["image"]
    elif what == "no image":
        rows[0]["image"] = {"bytes": b"GIF89a", "path": None}
    else:
        rows[0]["label"] = 7
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match=r"the image .* is not what it should be; prepare that"):
        written(tmp_path / "out", spring)
