import errno
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import need

from pipeline.data.store import UNLABELLED, read_info, read_samples
from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest
from pipeline.params import Execution, Imbalance, PrepareParams, load_params
from pipeline.stages.prepare import PrepareSummary, run

EXAMPLES = Path(__file__).parents[2] / "examples"

MakeImageFolder = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, make_image_folder: MakeImageFolder) -> Path:
    return make_image_folder(tmp_path / "raw", {"cat": 12, "dog": 10})


def prepare(root: Path, tracker: Any, out: str = "out", **changes: Any) -> PrepareSummary:
    settings = {
        "source": "folder",
        "path": str(root),
        "imbalance": None,
        "validation_fraction": 0.2,
        "test_fraction": 0.35,
    } | changes
    return run(PrepareParams(**settings), {}, root.parent / out / "prepare", tracker)


def quarantined(root: Path, out: str = "out") -> dict[str, tuple[str, str]]:
    text = (root.parent / out / "prepare" / "quarantine.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["file"]: (row["reason"], row["detail"]) for row in rows}


def test_a_folder_becomes_a_store(root: Path, recording_tracker: Any) -> None:
    summary = prepare(root, recording_tracker)
    folder = root.parent / "out" / "prepare"
    assert summary.classes == ["cat", "dog"]
    assert (summary.image_size_px, summary.image_mode) == (12, "RGB")
    assert summary.counts == {
        "train": {"cat": 6, "dog": 4},
        "validation": {"cat": 2, "dog": 2},
        "test": {"cat": 4, "dog": 4},
    }
    assert summary.quarantined == 0
    assert quarantined(root) == {}
    assert read_info(folder / "dataset").digest == summary.dataset_digest
    samples = read_samples(folder / "dataset")
    first = np.asarray(Image.open(root / "cat" / "000.png"))
    assert any(np.array_equal(image, first) for image in samples.images)
    assert set(samples.origins) == {"real"}


def test_the_tracker_hears_everything(root: Path, recording_tracker: Any) -> None:
    (root / "cat" / "bad.png").write_text("text")
    prepare(root, recording_tracker)
    assert recording_tracker.stages == ["prepare"]
    assert recording_tracker.last_metric("prepare/images") == 22
    assert recording_tracker.last_metric("prepare/quarantined") == 1
    assert recording_tracker.progress_calls[-1] == ("prepare", 23, 23, "images")
    assert [(n, rows, context) for n, _, rows, context in recording_tracker.datasets] == [
        ("train", 10, "training"),
        ("test", 8, "evaluation"),
    ]
    assert recording_tracker.notes == [
        "prepare: 1 quarantined (1 not an image); each is listed in prepare/quarantine.jsonl"
    ]


def test_every_bad_file_is_quarantined_by_name(root: Path, recording_tracker: Any) -> None:
    good = (root / "cat" / "000.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(good[: len(good) // 2])
    (root / "cat" / "text.png").write_text("no picture")
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "out.png").symlink_to("/etc/hostname")
    (root / "dog" / "notes.txt").write_text("x")
    Image.new("1", (20_000, 20_000)).save(root / "dog" / "huge.png")
    frames = [Image.new("L", (12, 12), 9 * i) for i in range(3)]
    frames[0].save(root / "dog" / "film.gif", save_all=True, append_images=frames[1:])
    summary = prepare(root, recording_tracker)
    found = quarantined(root)
    assert {name: reason for name, (reason, _) in found.items()} == {
        "cat/cut.png": "truncated",
        "cat/empty.png": "empty file",
        "cat/out.png": "leads out of the folder",
        "cat/text.png": "not an image",
        "dog/film.gif": "animated",
        "dog/huge.png": "too many pixels",
        "dog/notes.txt": "not named as an image",
    }
    assert "400000000 pixels; at most 50000000" in found["dog/huge.png"][1]
    assert str(root) not in json.dumps(found)
    assert summary.quarantined == 7
    assert sum(summary.quarantine_reasons.values()) == 7
    assert sum(summary.counts["train"].values()) == 10


def test_conversions_are_counted(root: Path, recording_tracker: Any) -> None:
    deep = Image.fromarray((np.arange(144).reshape(12, 12) * 400).astype(np.uint16))
    deep.save(root / "cat" / "deep.png")
    Image.new("RGBA", (12, 12), (255, 0, 0, 99)).save(root / "cat" / "clear.png")
    Image.new("CMYK", (12, 12), (9, 99, 0, 0)).save(root / "dog" / "ink.jpg")
    summary = prepare(root, recording_tracker)
    assert summary.quarantined == 0
    assert summary.conversions == {
        "16-bit grey to 8-bit, divided by 257": 1,
        "CMYK to RGB": 1,
        "alpha composited on white": 1,
        "grey to RGB": 1,
    }


def test_the_long_tail_leaves_a_pool(root: Path, recording_tracker: Any) -> None:
    tail = Imbalance(max=5, min=2)
    summary = prepare(root, recording_tracker, imbalance=tail)
    assert summary.counts["train"] == {"cat": 5, "dog": 2}
    assert summary.counts["pool"] == {"unlabelled": 3}
    samples = read_samples(root.parent / "out" / "prepare" / "dataset")
    pool = [i for i, split in enumerate(samples.splits) if split == "pool"]
    assert {int(samples.labels[i]) for i in pool} == {UNLABELLED}
    without = prepare(root, recording_tracker, "other", imbalance=tail, keep_pool=False)
    assert "pool" not in without.counts
    assert without.counts["train"] == summary.counts["train"]


def test_a_class_that_falls_short_of_the_tail_is_noted(root: Path, recording_tracker: Any) -> None:
    summary = prepare(root, recording_tracker, imbalance=Imbalance(max=50, min=3))
    assert summary.counts["train"] == {"cat": 6, "dog": 3}
    assert any("all kept: cat (6 of 50)" in note for note in recording_tracker.notes)


def test_copies_of_training_images_stay_out_of_the_pool(root: Path, recording_tracker: Any) -> None:
    for i in range(12):
        shutil.copy(root / "cat" / f"{i:03d}.png", root / "cat" / f"copy{i:03d}.png")
    prepare(root, recording_tracker, imbalance=Imbalance(max=6, min=2))
    samples = read_samples(root.parent / "out" / "prepare" / "dataset")
    sides: dict[str, set[str]] = {}
    for identity, split in zip(samples.ids, samples.splits, strict=True):
        sides.setdefault(identity, set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert any("exact copies of kept training images" in n for n in recording_tracker.notes)


def test_equal_pixels_under_two_labels_are_all_set_aside(
    root: Path, recording_tracker: Any
) -> None:
    shutil.copy(root / "cat" / "000.png", root / "dog" / "same.png")
    shutil.copy(root / "cat" / "000.png", root / "cat" / "same.png")
    summary = prepare(root, recording_tracker)
    assert summary.quarantine_reasons == {"label conflict": 3}
    assert quarantined(root)["dog/same.png"][1] == (
        "labelled 'dog', with the same pixels as cat/000.png, labelled 'cat'"
    )
    assert set(quarantined(root)) == {"cat/000.png", "cat/same.png", "dog/same.png"}


def test_training_rows_that_are_also_in_test_are_set_aside(
    tmp_path: Path, recording_tracker: Any
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    images[12] = images[0]
    for prefix, rows in (("train", slice(0, 12)), ("t10k", slice(12, 16))):
        part = images[rows]
        labels = bytes(i % 2 for i in range(len(part)))
        head = struct.pack(">4I", 0x803, *part.shape)
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(head + part.tobytes())
        head = struct.pack(">2I", 0x801, len(part))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels)
    summary = prepare(root, recording_tracker, source="idx")
    assert quarantined(root) == {"train/00000": ("also in test", "the same pixels as t10k/00000")}
    assert summary.counts["test"] == {"0": 2, "1": 2}
    assert summary.counts["train"] == {"0": 4, "1": 5}


def test_nothing_usable_names_the_reasons(root: Path, recording_tracker: Any) -> None:
    for path in root.rglob("*.png"):
        path.write_text("text")
    (root / "cat" / "000.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"all 22 files were quarantined \(21 not an image, 1 empty file\)"
    ):
        prepare(root, recording_tracker)


def test_a_class_of_one_image_is_named(root: Path, recording_tracker: Any) -> None:
    for path in sorted((root / "dog").iterdir())[1:]:
        path.write_text("text")
    with pytest.raises(InputError) as caught:
        prepare(root, recording_tracker)
    assert "class 'dog': 1 usable distinct image, and at least 3 are needed" in str(caught.value)
    assert "quarantined: 9 not an image" in str(caught.value)
    assert not (root.parent / "out" / "prepare").exists()


def test_a_missing_folder_is_named(tmp_path: Path, recording_tracker: Any) -> None:
    with pytest.raises(InputError, match=r"prepare\.path = .*absent: no such folder"):
        prepare(tmp_path / "absent", recording_tracker)


def test_workers_and_place_do_not_change_the_digest(
    root: Path, tmp_path: Path, recording_tracker: Any
) -> None:
    (root / "cat" / "bad.png").write_text("text")
    moved = tmp_path / "elsewhere" / "raw"
    shutil.copytree(root, moved)
    for folder, workers in ((root, 1), (moved, 4)):
        prepare(folder, recording_tracker, execution=Execution(workers=workers))
    one = read_manifest(root.parent / "out" / "prepare")
    two = read_manifest(moved.parent / "out" / "prepare")
    assert one is not None
    assert two is not None
    assert one.digest == two.digest


def test_a_change_of_the_raw_data_makes_the_stage_stale(root: Path, recording_tracker: Any) -> None:
    before = prepare(root, recording_tracker)
    assert prepare(root, recording_tracker) == before
    assert recording_tracker.notes[-1].startswith("prepare: up to date")
    (root / "cat" / "000.png").unlink()
    after = prepare(root, recording_tracker)
    assert sum(sum(c.values()) for c in after.counts.values()) == 21


def test_artifacts_that_is_a_file_is_named(root: Path, recording_tracker: Any) -> None:
    (root.parent / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot be opened .*another --artifacts folder"):
        prepare(root, recording_tracker)


def test_a_read_only_folder_is_named(
    root: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/quarantine.jsonl")

    monkeypatch.setattr("pipeline.stages.prepare.write_bytes", refuse)
    with pytest.raises(InputError, match=r"/somewhere.* cannot be opened .*mend its permissions"):
        prepare(root, recording_tracker)


def test_a_full_disk_says_so_and_the_next_run_succeeds(
    root: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.store.pq.write_table", full)
        with pytest.raises(StageError, match=r"the disk is full .*free some space and run"):
            prepare(root, recording_tracker)
    assert not (root.parent / "out" / "prepare").exists()
    assert prepare(root, recording_tracker).quarantined == 0


def test_digits_prepare_by_default(tmp_path: Path, recording_tracker: Any) -> None:
    summary = run(PrepareParams(), {}, tmp_path / "prepare", recording_tracker)
    assert summary.image_size_px == 8
    assert list(summary.counts["train"].values()) == [60, 46, 36, 28, 22, 17, 13, 10, 8, 6]
    assert sum(sum(counts.values()) for counts in summary.counts.values()) == 1797


def test_auto_thins_the_embedded_digits_and_never_the_users_images(
    root: Path, tmp_path: Path, recording_tracker: Any
) -> None:
    kept = prepare(root, recording_tracker, imbalance="auto")
    assert kept.counts["train"] == prepare(root, recording_tracker, "other").counts["train"]
    digits = run(PrepareParams(), {}, tmp_path / "digits" / "prepare", recording_tracker)
    assert list(digits.counts["train"].values()) == [60, 46, 36, 28, 22, 17, 13, 10, 8, 6]


def test_large_images_are_brought_to_32_px_with_a_note(
    tmp_path: Path, make_image_folder: Any, recording_tracker: Any
) -> None:
    root = make_image_folder(tmp_path / "large", {"cat": 4, "dog": 4}, side_px=48)
    assert prepare(root, recording_tracker).image_size_px == 32
    assert any("brought to 32 px" in note for note in recording_tracker.notes)
    assert prepare(root, recording_tracker, "whole", image_size_px=48).image_size_px == 48


@pytest.mark.slow
def test_fashion_mnist_is_thinned_to_409_images(tmp_path: Path, recording_tracker: Any) -> None:
    settings = load_params(EXAMPLES / "fashion_mnist.yaml").prepare
    need(Path(settings.path), "dataset-fashion-mnist")
    summary = run(settings, {}, tmp_path / "prepare", recording_tracker)
    assert (summary.image_size_px, summary.image_mode) == (28, "L")
    assert sum(summary.counts["train"].values()) == 409
    assert summary.counts["train"]["0"] == 100
    assert summary.counts["train"]["9"] == 10
    assert set(summary.counts["test"].values()) == {1000}
    assert sum(summary.counts["validation"].values()) == 3000
    assert summary.quarantined == 0
