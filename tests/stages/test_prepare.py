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
from recipe.sets import regime
from support import need

from pipeline.data.store import UNLABELLED, Samples, read_info, read_samples
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
        "pool_path": str(root.parent / "pool"),
        "imbalance": None,
        "validation_fraction": 0.2,
        "test_fraction": 0.35,
    } | changes
    return run(PrepareParams(**settings), {}, root.parent / out / "prepare", tracker)


def notes(tracker: Any) -> list[str]:
    """Return what was noted beside what the checks found and what the recipe says."""
    others = ("prepare: warning:", "prepare: recipe:")
    return [note for note in tracker.notes if not note.startswith(others)]


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
    assert ("prepare", 23, 23, "images") in recording_tracker.progress_calls
    assert recording_tracker.progress_calls[-1] == ("write", 22, 22, "images")
    assert [(n, rows, context) for n, _, rows, context in recording_tracker.datasets] == [
        ("train", 10, "training"),
        ("test", 8, "evaluation"),
    ]
    assert notes(recording_tracker) == [
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
    assert any("copies of kept training images" in n for n in recording_tracker.notes)


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


@pytest.fixture
def pool(root: Path) -> Path:
    """Return a pool of five new images beside `root`, two of them in folders."""
    folder = root.parent / "pool"
    random = np.random.default_rng(7)
    for name in ("a.png", "b.png", "c.png", "more/d.png", "more/still/e.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return folder


def rows_of(root: Path, split: str, out: str = "out") -> Samples:
    return read_samples(root.parent / out / "prepare" / "dataset", (split,))


def unlabelled_ids(root: Path, out: str = "out") -> list[str]:
    text = (root.parent / out / "prepare" / "unlabelled_ids.txt").read_bytes().decode()
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)


def test_the_pool_joins_without_labels(root: Path, pool: Path, recording_tracker: Any) -> None:
    without = prepare(root, recording_tracker, "without", pool_path=str(root.parent / "absent"))
    summary = prepare(root, recording_tracker)
    assert summary.counts == without.counts | {"pool": {"unlabelled": 5}}
    assert summary.quarantined == 0
    rows = rows_of(root, "pool")
    assert rows.labels.tolist() == [UNLABELLED] * 5
    assert set(rows.origins) == {"real"}
    assert np.array_equal(rows.images[4], np.asarray(Image.open(pool / "more/still/e.png")))
    for split in ("train", "validation", "test"):
        assert rows_of(root, split).ids == rows_of(root, split, "without").ids
    assert unlabelled_ids(root) == sorted(rows.ids + rows_of(root, "train").ids)
    assert unlabelled_ids(root, "without") == sorted(rows_of(root, "train").ids)
    assert ("prepare", 27, 27, "images") in recording_tracker.progress_calls
    assert recording_tracker.progress_calls[-1] == ("write", 27, 27, "images")


def test_a_pool_of_no_rows_changes_nothing(root: Path, recording_tracker: Any) -> None:
    before = prepare(root, recording_tracker)
    first = read_manifest(root.parent / "out" / "prepare")
    (root.parent / "pool").mkdir()
    (root.parent / "pool" / "README.md").write_text("x")
    assert prepare(root, recording_tracker) == before
    assert recording_tracker.notes[-1].startswith("prepare: up to date")
    (root.parent / "pool" / "bad.png").write_text("no picture")
    after = prepare(root, recording_tracker)
    assert after.dataset_digest == before.dataset_digest
    assert after.counts == before.counts
    assert quarantined(root).keys() == {"pool/bad.png"}
    second = read_manifest(root.parent / "out" / "prepare")
    assert first is not None
    assert second is not None
    changed = {name for name in first.files if first.files[name] != second.files[name]}
    assert changed == {"quarantine.jsonl", "summary.json"}


def test_bad_files_of_the_pool_are_quarantined_by_name(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    (pool / "text.png").write_text("no picture")
    (pool / "notes.txt").write_text("x")
    (pool / "more" / "out.png").symlink_to(root / "cat" / "000.png")
    (root / "cat" / "text.png").write_text("no picture")
    good = (pool / "a.png").read_bytes()
    (pool / "cut.png").write_bytes(good[: len(good) // 2])
    summary = prepare(root, recording_tracker)
    assert {name: reason for name, (reason, _) in quarantined(root).items()} == {
        "cat/text.png": "not an image",
        "pool/cut.png": "truncated",
        "pool/more/out.png": "leads out of the folder",
        "pool/notes.txt": "not named as an image",
        "pool/text.png": "not an image",
    }
    assert summary.quarantined == 5
    assert summary.quarantine_reasons["not an image"] == 2
    assert summary.counts["pool"] == {"unlabelled": 5}


def test_a_bad_pool_is_not_blamed_for_the_labelled_images(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    (pool / "text.png").write_text("no picture")
    for path in root.rglob("*.png"):
        path.write_text("text")
    with pytest.raises(InputError, match=r"no usable image; all 22 files were quarantined"):
        prepare(root, recording_tracker)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_image_in_the_pool_is_refused(
    root: Path, pool: Path, recording_tracker: Any, split: str
) -> None:
    prepare(root, recording_tracker)
    held = rows_of(root, split)
    save(held.images[0], pool / "more" / "copied\x1b[2J.bmp")  # other bytes, the same pixels
    with pytest.raises(InputError) as caught:
        prepare(root, recording_tracker)
    assert str(caught.value) == (
        f"prepare.pool_path = {pool}: 1 image with the pixels of a validation or test image: "
        "pool/more/copied\\x1b[2J.bmp; a generator that learned from them would spoil the "
        "verdict; remove these files from the pool"
    )


def test_at_most_five_held_out_files_are_named(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    with pytest.raises(InputError, match="12 images with the pixels of a validation or test") as e:
        prepare(root, recording_tracker, pool_path=str(root))
    assert str(e.value).count("pool/") == 5
    assert "and 7 more; a generator" in str(e.value)


def test_what_the_pool_repeats_is_left_out_and_counted(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    prepare(root, recording_tracker, "before")
    shutil.copy(pool / "a.png", pool / "more" / "a again.png")
    (pool / "more" / "a link.png").symlink_to("../a.png")
    save(rows_of(root, "train", "before").images[0], pool / "0.png")
    prepare(root, recording_tracker)
    assert rows_of(root, "pool").ids == rows_of(root, "pool", "before").ids
    assert notes(recording_tracker) == [
        "prepare: 3 exact copies of training images or of other pool images are left out of the "
        "pool"
    ]


def test_the_users_pool_stands_beside_what_thinning_leaves(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    tail = Imbalance(max=5, min=2)
    none = str(root.parent / "absent")
    prepare(root, recording_tracker, "thinned", imbalance=tail, pool_path=none)
    left = rows_of(root, "pool", "thinned")
    assert len(left) == 3
    save(left.images[0], pool / "left.png")
    prepare(root, recording_tracker, imbalance=tail)
    assert len(rows_of(root, "pool")) == 8
    assert rows_of(root, "pool").ids[:3] == left.ids
    assert "prepare: 1 exact copies of training images or of other" in notes(recording_tracker)[-1]
    # Thrown away with its label, the same image may come back as one of the user's own.
    prepare(root, recording_tracker, "own", imbalance=tail, keep_pool=False)
    assert len(rows_of(root, "pool", "own")) == 6


def test_a_colour_pool_follows_grey_images(
    tmp_path: Path, make_image_folder: MakeImageFolder, recording_tracker: Any
) -> None:
    root = make_image_folder(tmp_path / "raw", {"cat": 8, "dog": 8}, mode="L")
    pool = tmp_path / "pool"
    save(np.full((40, 20, 3), (255, 0, 0), np.uint8), pool / "red.png")
    save(np.full((12, 12, 1), 9, np.uint8), pool / "grey.png")
    summary = prepare(root, recording_tracker)
    assert (summary.image_size_px, summary.image_mode) == (12, "L")
    assert summary.conversions == {"colour to grey": 1, "padded to a square": 1, "resized": 1}
    rows = rows_of(root, "pool")
    assert rows.images.shape == (2, 12, 12, 1)
    assert rows.images[1][6, 6, 0] == 76  # luma of pure red
    # The same file as a test image is found although the pool holds it in colour.
    test = rows_of(root, "test").images[0]
    save(test.repeat(3, axis=2), pool / "same.png")
    with pytest.raises(InputError, match=r"1 image .*: pool/same\.png; a generator"):
        prepare(root, recording_tracker)


def test_a_grey_pool_follows_colour_images(root: Path, recording_tracker: Any) -> None:
    save(np.full((12, 12, 1), 9, np.uint8), root.parent / "pool" / "grey.png")
    summary = prepare(root, recording_tracker)
    assert summary.image_mode == "RGB"
    assert summary.conversions == {"grey to RGB": 1}
    assert rows_of(root, "pool").images.shape == (1, 12, 12, 3)


def test_digits_take_a_pool_too(tmp_path: Path, recording_tracker: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 1), np.uint8)
    save(image, tmp_path / "pool" / "new.png")
    params = PrepareParams(pool_path=str(tmp_path / "pool"))
    summary = run(params, {}, tmp_path / "out" / "prepare", recording_tracker)
    before = run(PrepareParams(), {}, tmp_path / "without" / "prepare", recording_tracker)
    more = before.counts["pool"]["unlabelled"] + 1
    assert summary.counts == before.counts | {"pool": {"unlabelled": more}}
    ids = unlabelled_ids(tmp_path / "x")
    assert len(ids) == sum(summary.counts["train"].values()) + more
    assert ids == sorted(ids)


def test_new_labels_for_the_same_rows_leave_the_unlabelled_ids(
    root: Path, pool: Path, recording_tracker: Any
) -> None:
    before = prepare(root, recording_tracker, "before")
    (root / "dog").rename(root / "dingo")
    (pool / "a.png").rename(pool / "z.png")
    after = prepare(root, recording_tracker)
    assert after.classes != before.classes
    assert unlabelled_ids(root) == unlabelled_ids(root, "before")


def test_the_unlabelled_ids_count_repeated_rows(root: Path, recording_tracker: Any) -> None:
    for path in sorted((root / "cat").iterdir()):
        shutil.copy(path, path.with_name(f"copy{path.name}"))
    prepare(root, recording_tracker)
    ids = unlabelled_ids(root)
    assert ids == sorted(rows_of(root, "train").ids)
    assert len(ids) > len(set(ids))


# The recipe


def read_json(root: Path, name: str, out: str = "out") -> Any:
    return json.loads((root.parent / out / "prepare" / name).read_text())


def test_the_recipe_is_said_and_written_before_anything_trains(
    root: Path, pool: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.recipe.advice.read_regimes", lambda: ())
    prepare(root, recording_tracker)
    assert recording_tracker.notes[-1] == (
        "prepare: recipe: 10 training images in 2 classes (4 to 6), 5 unlabelled ones, 12 px: "
        "pretrain.base: auto = none (fewer than 500 unlabelled images); no measured regime is near "
        "this set: the comparison will say what it gains"
    )
    assert read_json(root, "settings.json") == {"base": "none"}
    assert read_json(root, "recipe.json") == {
        "recipe": "auto",
        "facts": {
            "labelled": 10,
            "classes": 2,
            "smallest": 4,
            "median": 5.0,
            "largest": 6,
            "pool": 5,
            "image_size_px": 12,
            "image_mode": "RGB",
        },
        "settings": {"base": "none"},
        "reasons": {"base": "fewer than 500 unlabelled images"},
    }


def test_another_measured_regime_changes_the_words_and_no_digest(
    root: Path, pool: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    like = {"labelled": 10, "classes": 2, "smallest": 4, "largest": 6, "image_size_px": 12}
    found: list[Any] = []
    monkeypatch.setattr("pipeline.recipe.advice.read_regimes", lambda: tuple(found))
    said, manifests = [], []
    for out in ("before", "after"):
        prepare(root, recording_tracker, out)
        said.append(recording_tracker.notes[-1])
        manifests.append(read_manifest(root.parent / out / "prepare"))
        found.append(regime(image_mode="RGB", **like))
    assert "no measured regime is near" in said[0]
    assert "sets like it gained +2.0 points" in said[1]
    assert manifests[0] == manifests[1] is not None


def test_without_a_recipe_there_are_facts_and_no_advice(root: Path, recording_tracker: Any) -> None:
    prepare(root, recording_tracker, recipe="none")
    assert not any("recipe" in note for note in recording_tracker.notes)
    written = read_json(root, "recipe.json")
    assert (set(written), written["recipe"]) == ({"recipe", "facts"}, "none")
    assert read_json(root, "settings.json") == {"base": "none"}


def test_the_digits_use_their_pool_unless_told_otherwise(
    tmp_path: Path, recording_tracker: Any
) -> None:
    for recipe, base in (("auto", "pool"), ("none", "none")):
        out = tmp_path / recipe / "prepare"
        summary = run(PrepareParams(recipe=recipe), {}, out, recording_tracker)
        assert json.loads((out / "settings.json").read_text()) == {"base": base}
        assert summary.counts["pool"]["unlabelled"] == 831


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
    # Three fewer than 5 % of 60,000: near duplicates stay together.
    assert sum(summary.counts["validation"].values()) == 2997
    assert summary.quarantined == 0
