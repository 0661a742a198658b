import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.images import ImageMode
from pipeline.data.store import (
    UNLABELLED,
    Samples,
    concatenate,
    iterate_tables,
    make_samples,
    read_info,
    read_samples,
    rows_digest,
    without_held_out_repeats,
)
from pipeline.data.store_writer import StoreWriter, write_store
from pipeline.errors import InputError, StageError


def samples(count: int = 12, channels: int = 1, seed: int = 0) -> Samples:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    names = ("train", "train", "validation", "test")
    return make_samples(
        images,
        np.arange(count) % 2,
        [names[i % 4] for i in range(count)],
        "real",
        extra={"confidence": [i / 16 for i in range(count)], "index": list(range(count))},
    )


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_round_trip_over_several_shards(tmp_path: Path, mode: ImageMode, channels: int) -> None:
    rows = samples(channels=channels)
    info = write_store(tmp_path, rows, ["cat", "dog"], 8, mode, rows_per_shard=4)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]
    assert read_info(tmp_path) == info
    assert info.counts == {
        "train": {"cat": 3, "dog": 3},
        "validation": {"cat": 3, "dog": 0},
        "test": {"cat": 0, "dog": 3},
    }
    back = read_samples(tmp_path)
    order = [rows.ids.index(identity) for identity in back.ids]
    expected = rows.take(order)
    assert np.array_equal(back.images, expected.images)
    assert np.array_equal(back.labels, expected.labels)
    assert (back.splits, back.groups, back.origins) == (
        expected.splits,
        expected.groups,
        expected.origins,
    )
    assert back.extra == expected.extra
    assert rows_digest(back) == info.digest


def test_one_split_can_be_read_alone(tmp_path: Path) -> None:
    write_store(tmp_path, samples(), ["cat", "dog"], 8, "L")
    assert set(read_samples(tmp_path, ["validation"]).splits) == {"validation"}
    none = read_samples(tmp_path, ["pool"])
    assert none.images.shape == (0, 8, 8, 1)


def test_the_pool_is_counted_as_unlabelled(tmp_path: Path) -> None:
    rows = samples(4)
    pool = replace(rows, splits=("pool",) * 4, labels=np.full(4, UNLABELLED))
    info = write_store(tmp_path, concatenate([samples(4, seed=1), pool]), ["a", "b"], 8, "L")
    assert info.counts["pool"] == {"unlabelled": 4}
    assert read_samples(tmp_path, ["pool"]).labels.tolist() == [-1] * 4


@pytest.mark.parametrize("split", ["validation", "test", "pool"])
def test_a_synthetic_row_outside_train_is_refused(tmp_path: Path, split: str) -> None:
    rows = samples(4)
    mixed = replace(rows, origins=("real", "synthetic", "real", "real"))
    wrong = replace(mixed, splits=("train", split, "test", "test"))
    with pytest.raises(StageError, match=f"{rows.ids[1][:12]}: synthetic in the split '{split}"):
        write_store(tmp_path, wrong, ["a", "b"], 8, "L")
    assert not (tmp_path / "dataset.json").exists()
    write_store(tmp_path, replace(mixed, splits=("train",) * 4), ["a", "b"], 8, "L")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="unknown split 'dev'"):
        write_store(tmp_path, replace(samples(2), splits=("dev",) * 2), ["a", "b"], 8, "L")


def test_the_digest_ignores_order_and_sees_everything_else() -> None:
    rows = samples()
    digest = rows_digest(rows)
    assert rows_digest(rows.take(np.arange(12)[::-1])) == digest
    changed = [
        rows.take(np.arange(11)),
        samples(seed=1),
        replace(rows, labels=1 - rows.labels),
        replace(rows, splits=rows.splits[1:] + rows.splits[:1]),
        replace(rows, origins=("synthetic", *rows.origins[1:])),
    ]
    assert len({digest, *(rows_digest(other) for other in changed)}) == 6


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / name, samples(), ["cat", "dog"], 8, "L")
    for path in sorted((tmp_path / "a").rglob("*.*")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("sizes", [[5, 1, 30, 0, 14], [50], [1] * 50, []])
@pytest.mark.parametrize("rows_per_shard", [7, 10_000])
def test_rows_that_come_in_parts_make_the_same_files(
    tmp_path: Path, sizes: list[int], rows_per_shard: int
) -> None:
    rows = samples(sum(sizes))
    parts = [rows.take(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i, count in enumerate(sizes)]
    whole = write_store(tmp_path / "whole", rows, ["cat", "dog"], 8, "L", rows_per_shard)
    with StoreWriter(tmp_path / "parts", ["cat", "dog"], 8, "L", rows_per_shard) as writer:
        for part in parts:
            writer.add(part)
        assert not list((tmp_path / "parts").rglob("*-of-*"))
        info = writer.close()
    assert info == whole
    assert info.digest == rows_digest(rows)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(read_samples(tmp_path / "parts")) == len(rows)


def test_the_digest_of_a_store_stays_what_it_is(tmp_path: Path) -> None:
    info = write_store(tmp_path, samples(), ["cat", "dog"], 8, "L", rows_per_shard=4)
    assert info.digest == "ab81f00d0a009b4e41baea7d679a1147e154b6c38dcfff94c72d0fd569274e7b"


def test_rows_with_other_columns_than_the_first_are_refused(tmp_path: Path) -> None:
    rows = samples(8)
    others = {
        "the type": replace(rows, extra={**rows.extra, "index": [0.5] * 8}),
        "a missing one": replace(rows, extra={"index": rows.extra["index"]}),
        "one more": replace(rows, extra={**rows.extra, "new": ["x"] * 8}),
    }
    for name, other in others.items():
        with StoreWriter(tmp_path / name, ["cat", "dog"], 8, "L") as writer:
            writer.add(rows)
            with pytest.raises(
                StageError, match=r"come after rows with confidence \(double\), index \(int64\);"
            ):
                writer.add(other)


def test_a_store_that_is_left_unfinished_leaves_no_file(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, ["cat", "dog"], 8, "L", rows_per_shard=2) as writer:
        writer.add(samples(20))
        assert len(list((tmp_path / "data").iterdir())) == 9
        assert list(iterate_tables(tmp_path)) == []  # nobody takes them for the store's
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(InputError, match="no sample store"):
        read_info(tmp_path)


def test_take_and_concatenate() -> None:
    rows = samples()
    mask = np.asarray(rows.splits, dtype=object) == "test"
    assert len(rows.take(mask)) == 3
    assert rows.take([3, 1]).ids == (rows.ids[3], rows.ids[1])
    less = replace(samples(2, seed=5), extra={"index": [7, 8], "other": [0, 0]})
    joined = concatenate([rows, less])
    assert len(joined) == 14
    assert joined.extra == {"index": [*range(12), 7, 8]}


def test_hugging_face_datasets_reads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        import datasets

        rows = samples()
        write_store(tmp_path / "store", rows, ["cat", "dog"], 8, "L")
        files: dict[str, Any] = {
            split: str(tmp_path / "store" / "data" / f"{split}-*.parquet")
            for split in ("train", "validation", "test")
        }
        loaded = datasets.load_dataset(
            "parquet", data_files=files, cache_dir=str(tmp_path / "cache")
        )
        train = loaded["train"]
        assert isinstance(train.features["image"], datasets.Image)
        assert train.features["label"].names == ["cat", "dog"]
        assert train.features["confidence"].dtype == "float64"
        row = train[0]
    at = rows.ids.index(row["id"])
    assert np.array_equal(np.asarray(row["image"]), rows.images[at, :, :, 0])
    assert row["label"] == rows.labels[at]
    assert {split: len(part) for split, part in loaded.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", r"damaged \(KeyError\('classes'\)\); write the store again"),
    ],
)
def test_a_damaged_dataset_json_is_named(tmp_path: Path, change: str, message: str) -> None:
    write_store(tmp_path, samples(), ["a", "b"], 8, "L")
    (tmp_path / "dataset.json").write_text(change)
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        read_info(tmp_path)


def test_another_version_or_mode_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path, samples(), ["a", "b"], 8, "L")
    path = tmp_path / "dataset.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99.*reads version 1"):
        read_info(tmp_path)
    path.write_text(json.dumps(data | {"image_mode": "CMYK"}))
    with pytest.raises(InputError, match="mode 'CMYK'"):
        read_info(tmp_path)


def test_a_folder_that_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sample store \(it has no dataset\.json\)"):
        read_samples(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_store(tmp_path, samples(), ["a", "b"], 8, "L")
    shard = tmp_path / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: not readable as Parquet"):
        read_samples(tmp_path)


def test_a_shard_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", samples(), ["a", "b"], 8, "L")
    shard = tmp_path / "store" / "data" / "train-00000-of-00001.parquet"
    shard.rename(tmp_path / "outside.parquet")
    shard.symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(InputError, match="a link leads out of"):
        read_samples(tmp_path / "store")


def test_an_image_counts_once_in_validation_and_in_test_and_stays_in_training() -> None:
    one = np.zeros((1, 4, 4, 1), dtype=np.uint8)
    images = np.concatenate([one] * 6 + [one + 9])
    splits = ["train", "train", "validation", "validation", "test", "test", "test"]
    rows = make_samples(images, np.zeros(7, dtype=np.int64), splits, "real")
    kept = without_held_out_repeats(rows)
    assert kept.splits == ("train", "train", "validation", "test", "test")
    assert len(set(kept.ids[3:])) == 2
