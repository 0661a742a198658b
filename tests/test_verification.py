"""Planted faults in a small artifacts folder, each found and named."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.store import (
    concatenate,
    make_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.errors import InputError
from pipeline.folders import MANIFEST, Manifest, made_from, read_manifest, write_manifest
from pipeline.hashing import digest_folder, digest_json
from pipeline.verification import verify

IDS = "unlabelled_ids.txt"


def samples(count, split, seed, origin="real", **extra):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return make_samples(
        images,
        np.arange(count) % 2,
        split,
        origin,
        extra={k: [v] * count for k, v in extra.items()},
    )


@pytest.fixture
def artifacts(tmp_path):
    prepare, pretrain, train, synthesize = (
        tmp_path / n for n in ("prepare", "pretrain", "train", "synthesize")
    )
    real = [samples(6, "train", 0), samples(4, "validation", 1), samples(4, "test", 2)]
    write_store(prepare / "dataset", concatenate(real), ("a", "b"), 8, "L")
    (prepare / IDS).write_text("\n".join(sorted(real[0].ids)))
    prepared = write_manifest(prepare, "prepare", "k", {}, {})
    (pretrain / "base").mkdir(parents=True)
    (pretrain / "base" / "training_ids.txt").write_text("\n".join(real[0].ids))
    inputs = {f"prepare/{IDS}": prepared.files[IDS]}
    based = write_manifest(pretrain, "pretrain", "k", {}, inputs)
    (train / "generator").mkdir(parents=True)
    (train / "generator" / "config.json").write_text("{}")
    (train / "training_ids.txt").write_text("\n".join(real[0].ids))
    inputs = {"prepare": prepared.digest, "pretrain": based.digest}
    trained = write_manifest(train, "train", "k", {}, inputs)
    digest = digest_json(digest_folder(train / "generator"))
    made = samples(4, "train", 3, "synthetic", generator=digest)
    write_store(synthesize / "accepted", made, ("a", "b"), 8, "L")
    inputs = {"prepare": prepared.digest, "train": trained.digest}
    write_manifest(synthesize, "synthesize", "k", {}, inputs)
    return tmp_path


def reseal(folder):
    """Write the manifest anew, as a forger would."""
    old = read_manifest(folder)
    write_manifest(folder, old.stage, old.key, old.params, old.inputs)


def test_a_whole_folder_has_no_problems(artifacts):
    findings = verify(artifacts)
    assert findings.problems == []
    assert any("6 training rows, none of them in test" in line for line in findings.checked)
    assert any("no test or validation row among those of the base" in x for x in findings.checked)
    assert verify(artifacts / "prepare" / "dataset").problems == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: (p / "training_ids.txt").write_text("x"), "changed: training_ids.txt"),
        (lambda p: (p / "training_ids.txt").unlink(), "missing: training_ids.txt"),
        (lambda p: (p / "more.txt").write_text("x"), "added: more.txt"),
    ],
)
def test_changed_missing_and_added_files(artifacts, change, expected):
    change(artifacts / "train")
    assert any(expected in line for line in verify(artifacts).problems)


def test_a_generator_that_saw_test_rows(artifacts):
    test = samples(4, "test", 2)
    (artifacts / "train" / "training_ids.txt").write_text(test.ids[0])
    reseal(artifacts / "train")
    assert any("the generator saw test rows" in line for line in verify(artifacts).problems)


def test_a_synthetic_row_in_the_test_split(artifacts):
    store = artifacts / "prepare" / "dataset"
    path = next((store / "data").glob("test-*"))
    table = pq.read_table(path)
    position = table.schema.get_field_index("origin")
    field = table.schema.field(position)
    pq.write_table(table.set_column(position, field, [["synthetic"] * len(table)]), path)
    assert any("synthetic rows outside train" in line for line in verify(store).problems)


def test_pixels_that_are_not_those_of_the_id(artifacts):
    store = artifacts / "synthesize" / "accepted"
    path = next((store / "data").iterdir())
    table = pq.read_table(path)
    position = table.schema.get_field_index("id")
    ids = table.column("id").to_pylist()
    pq.write_table(table.set_column(position, "id", [[*ids[1:], ids[0]]]), path)
    assert any("pixels are not those of the id" in line for line in verify(store).problems)


def test_stages_of_another_run(artifacts):
    manifest = artifacts / "train" / MANIFEST
    data = json.loads(manifest.read_text())
    data["inputs"]["prepare"] = "0" * 64
    manifest.write_text(json.dumps(data))
    assert any("was made from another prepare" in line for line in verify(artifacts).problems)


@pytest.mark.parametrize(("split", "seed"), [("test", 2), ("validation", 1)])
def test_a_base_that_saw_held_out_rows(artifacts, split, seed):
    held = samples(4, split, seed)
    ids = artifacts / "pretrain" / "base" / "training_ids.txt"
    ids.write_text(ids.read_text() + f"\n{held.ids[3]}\n")
    reseal(artifacts / "pretrain")
    problems = verify(artifacts).problems
    assert any(f"the base saw test or validation rows: {held.ids[3]}" in line for line in problems)


def relabel(artifacts, rows):
    """Prepare again: the same images or others, and other labels."""
    prepare = artifacts / "prepare"
    shutil.rmtree(prepare / "dataset")
    write_store(prepare / "dataset", rows, ("a", "b"), 8, "L")
    train = [i for i, split in zip(rows.ids, rows.splits, strict=True) if split == "train"]
    (prepare / IDS).write_text("\n".join(sorted(train)))
    reseal(prepare)


def test_a_base_depends_on_the_images_and_not_on_their_labels(artifacts):
    real = [samples(6, "train", 0), samples(4, "validation", 1), samples(4, "test", 2)]
    rows = concatenate(real)
    rows.labels[:6] = 1 - rows.labels[:6]
    relabel(artifacts, rows)
    stale = [line for line in verify(artifacts).problems if "was made from another" in line]
    assert not any(f"{artifacts / 'pretrain'}:" in line for line in stale)
    assert any(f"{artifacts / 'train'}: was made from another prepare" in line for line in stale)
    relabel(artifacts, concatenate([*real, samples(1, "train", 7)]))
    stale = [line for line in verify(artifacts).problems if "was made from another" in line]
    assert any(f"{artifacts / 'pretrain'}: was made from another prepare" in line for line in stale)


def test_a_generator_from_another_base(artifacts):
    (artifacts / "pretrain" / "base" / "config.json").write_text("{}")
    reseal(artifacts / "pretrain")
    (problem,) = verify(artifacts).problems
    assert f"{artifacts / 'train'}: was made from another pretrain" in problem


def manifest(stage, inputs=(), **files):
    return Manifest(stage, "k", {}, dict(inputs), files, digest_json(files))


def test_made_from_compares_folders_or_the_one_file_that_counts():
    prepare = manifest("prepare", ids="1", dataset="2")
    whole = manifest("train", {"prepare": prepare.digest})
    part = manifest("pretrain", {"prepare/ids": "1"})
    assert made_from(whole, {"prepare": prepare}) == {}
    assert made_from(part, {"prepare": prepare}) == {}
    other = manifest("prepare", ids="1", dataset="3")
    assert made_from(whole, {"prepare": other}) == {"prepare": (prepare.digest, other.digest)}
    assert made_from(part, {"prepare": other}) == {}
    assert made_from(part, {"prepare": manifest("prepare", ids="4", dataset="2")}) == {
        "prepare": ("1", "4")
    }
    assert made_from(part, {"prepare": manifest("prepare", dataset="2")}) == {
        "prepare": ("1", "nothing")
    }
    assert made_from(whole, {}) == {}  # what is not at hand is not looked at


def test_rows_of_another_generator(artifacts):
    (artifacts / "train" / "generator" / "config.json").write_text('{"x": 1}')
    reseal(artifacts / "train")
    assert any("rows of another generator" in line for line in verify(artifacts).problems)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd"])
def test_a_manifest_that_names_files_outside_its_folder(artifacts, name):
    manifest = artifacts / "train" / MANIFEST
    data = json.loads(manifest.read_text())
    data["files"][name] = "0" * 64
    manifest.write_text(json.dumps(data))
    assert any("not a path inside" in line for line in verify(artifacts).problems)


def test_folders_that_are_not_ours(tmp_path):
    with pytest.raises(InputError, match="holds no finished stage and no sample store"):
        verify(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "absent")


def test_rows_of_the_student_are_at_home_too(artifacts):
    student = artifacts / "train" / "student"
    student.mkdir()
    (student / "config.json").write_text('{"student": 1}')
    reseal(artifacts / "train")
    made = samples(4, "train", 3, "synthetic", generator=digest_json(digest_folder(student)))
    accepted = artifacts / "synthesize" / "accepted"
    shutil.rmtree(accepted)
    write_store(accepted, made, ("a", "b"), 8, "L")
    problems = [one for one in verify(artifacts).problems if "another generator" in one]
    assert problems == []
    (student / "config.json").write_text('{"student": 2}')
    problems = [one for one in verify(artifacts).problems if "another generator" in one]
    assert len(problems) == 1
