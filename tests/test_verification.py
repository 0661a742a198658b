"""Planted faults in a small artifacts folder, each found and named."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.store import concatenate, make_samples, write_store
from pipeline.errors import InputError
from pipeline.folders import MANIFEST, read_manifest, write_manifest
from pipeline.hashing import digest_folder, digest_json
from pipeline.verification import verify


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
    prepare, train, synthesize = (tmp_path / n for n in ("prepare", "train", "synthesize"))
    real = [samples(6, "train", 0), samples(4, "validation", 1), samples(4, "test", 2)]
    write_store(prepare / "dataset", concatenate(real), ("a", "b"), 8, "L")
    prepared = write_manifest(prepare, "prepare", "k", {}, {})
    (train / "generator").mkdir(parents=True)
    (train / "generator" / "config.json").write_text("{}")
    (train / "training_ids.txt").write_text("\n".join(real[0].ids))
    trained = write_manifest(train, "train", "k", {}, {"prepare": prepared.digest})
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
