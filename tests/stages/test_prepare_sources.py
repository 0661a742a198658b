"""prepare on what sources bring beside labels: groups, times, masks, texts, given splits."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.checks.findings import read_findings
from pipeline.data.images import decode_png
from pipeline.data.store import Samples, read_samples
from pipeline.errors import InputError
from pipeline.params import Columns, PrepareParams
from pipeline.stages.prepare import PrepareSummary, run
from pipeline.tracking.tracker import NullTracker


def write_table(root: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write a manifest, and an image of 8 px for each of its rows."""
    root.mkdir(parents=True)
    random = np.random.default_rng(0)
    for row in rows:
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(root / row["path"])
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "images.csv"


def rows_of(count: int, **columns: Any) -> list[dict[str, str]]:
    return [
        {"path": f"{i:03d}.png", "label": "ab"[i % 2]}
        | {name: make(i) for name, make in columns.items()}
        for i in range(count)
    ]


def prepare(table: Path, out: Path, **changes: Any) -> PrepareSummary:
    settings = {
        "source": "manifest",
        "path": str(table),
        "pool_path": str(table.parent / "none"),
        "imbalance": None,
        "near_duplicates": "off",
        "label_issues": "off",
    }
    params = PrepareParams(**{**settings, **changes})
    return run(params, {}, out / "prepare", NullTracker())


def samples(out: Path) -> Samples:
    return read_samples(out / "prepare" / "dataset")


def test_groups_of_a_table_stay_whole(tmp_path: Path) -> None:
    table = write_table(tmp_path / "raw", rows_of(60, group=lambda i: f"patient {i % 12}"))
    prepare(table, tmp_path / "out")
    found = samples(tmp_path / "out")
    sides: dict[str, set[str]] = {}
    for group, split in zip(found.groups, found.splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert set(sides) == {f"patient {i}" for i in range(12)}
    assert all(len(one) == 1 for one in sides.values())
    assert set(found.splits) == {"train", "validation", "test"}


def test_the_latest_images_are_the_test(tmp_path: Path) -> None:
    table = write_table(tmp_path / "raw", rows_of(40, time=lambda i: f"2026-03-{1 + i // 2:02d}"))
    prepare(table, tmp_path / "out", split_by="time")
    found = samples(tmp_path / "out")
    latest = {
        split: max(t for t, s in zip(found.extra["time"], found.splits, strict=True) if s == split)
        for split in ("train", "validation", "test")
    }
    assert latest["train"] < latest["validation"] < latest["test"]


def test_a_missing_time_is_named(tmp_path: Path) -> None:
    rows = rows_of(40, time=lambda i: "" if i == 7 else f"2026-03-{1 + i // 2:02d}")
    table = write_table(tmp_path / "raw", rows)
    with pytest.raises(InputError, match=r"1 images have no time, first 007\.png"):
        prepare(table, tmp_path / "out", split_by="time")


def test_folds_have_other_tests(tmp_path: Path) -> None:
    table = write_table(tmp_path / "raw", rows_of(40))
    tests = []
    for fold in range(4):
        prepare(table, tmp_path / str(fold), fold=fold)
        found = samples(tmp_path / str(fold))
        tests.append({i for i, s in zip(found.ids, found.splits, strict=True) if s == "test"})
    assert len(set.union(*tests)) == sum(map(len, tests)) == 40


def test_columns_by_other_names_masks_and_texts(tmp_path: Path) -> None:
    rows = [
        {"file": row["path"], "path": row["path"], "kind": row["label"], "about": row["about"]}
        | {"region": "mask.png" if i else ""}
        for i, row in enumerate(rows_of(20, about=lambda i: f"number {i}"))
    ]
    table = write_table(tmp_path / "raw", rows)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:4, 2:4] = 255
    Image.fromarray(mask).save(tmp_path / "raw" / "mask.png")
    columns = Columns(path="file", label="kind", text="about", mask="region")
    prepare(table, tmp_path / "out", columns=columns)
    found = samples(tmp_path / "out")
    assert sorted(found.extra["text"]) == sorted(f"number {i}" for i in range(20))
    masks = dict(zip(found.extra["text"], found.extra["mask"], strict=True))
    assert masks["number 0"] is None
    assert np.array_equal(decode_png(masks["number 3"], "L")[:, :, 0], mask)


def test_given_splits_are_kept(tmp_path: Path) -> None:
    given = ("train", "train", "train", "validation", "validation", "test", "test", "train")
    table = write_table(tmp_path / "raw", rows_of(32, split=lambda i: given[i % 8]))
    summary = prepare(table, tmp_path / "out")
    assert {split: sum(n.values()) for split, n in summary.counts.items()} == {
        "train": 16,
        "validation": 8,
        "test": 8,
    }


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    rows = rows_of(60)
    table = write_table(tmp_path / "raw", rows)
    random = np.random.default_rng(1)
    pictures = [
        np.asarray(
            Image.fromarray(random.integers(0, 200, (4, 4), dtype=np.uint8)).resize((32, 32))
        )
        for _ in rows
    ]
    for i in range(0, 60, 10):
        pictures[i + 2] = pictures[i] + 1  # of the same class, a little brighter
    for row, picture in zip(rows, pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / "raw" / row["path"])
    prepare(table, tmp_path / "out", near_duplicates="auto")
    found = samples(tmp_path / "out")
    sizes: dict[str, int] = {}
    for group in found.groups:
        sizes[group] = sizes.get(group, 0) + 1
    assert sorted(sizes.values()) == [1] * 48 + [2] * 6
    checks = {one.check: one.count for one in read_findings(tmp_path / "out/prepare/checks.json")}
    assert any(name.startswith("near_duplicates") for name in checks)
