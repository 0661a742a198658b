import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_stages import Fake, finish, write_stages

from pipeline.data.store import (
    make_samples,
    read_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.errors import StageError
from pipeline.folders import read_manifest, write_json
from pipeline.params import AssembleParams, Params
from pipeline.stages.assemble import row_weights, run, with_lineage
from pipeline.tracking.tracker import NullTracker

NEEDED = ("prepare", "pretrain", "train", "synthesize", "evaluate")


def assemble(root: Path, fake: Fake | None = None, **changes):
    folders = write_stages(root, fake)
    inputs = {name: folders[name] for name in NEEDED}
    summary = run(AssembleParams(**changes), inputs, root / "assemble", NullTracker())
    return summary, read_samples(root / "assemble" / "dataset")


def rows_of(labels, origin: str, split: str = "train"):
    random = np.random.default_rng(len(labels) + (origin == "real"))
    images = random.integers(0, 255, (len(labels), 4, 4, 1), dtype=np.uint8)
    return make_samples(images, np.asarray(labels), split, origin)


def test_weights_of_a_small_example_by_hand() -> None:
    # Class 0: 2 real. Class 1: 1 real, 2 synthetic. Share 0.75.
    rows = with_lineage(rows_of([0, 0, 1], "real"), rows_of([1, 1], "synthetic"))
    expected = [0.25, 0.25, 0.5 * 0.25, 0.5 * 0.75 / 2, 0.5 * 0.75 / 2]
    assert row_weights(rows, 0.75).tolist() == pytest.approx(expected)


def test_a_class_with_synthetic_rows_alone_gets_its_whole_chance() -> None:
    rows = with_lineage(rows_of([0], "real"), rows_of([1, 1], "synthetic"))
    assert row_weights(rows, 0.25).tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_without_training_rows_there_are_no_weights() -> None:
    with pytest.raises(StageError, match="no training row"):
        row_weights(rows_of([0], "real", "test"), 0.5)


def test_use_adds_every_accepted_row_with_its_lineage(tmp_path: Path) -> None:
    summary, rows = assemble(tmp_path)
    accepted = read_samples(tmp_path / "synthesize" / "accepted")
    synthetic = rows.take([origin == "synthetic" for origin in rows.origins])
    assert synthetic.ids == accepted.ids
    assert set(synthetic.splits) == {"train"}
    for name, values in accepted.extra.items():
        assert synthetic.extra[name] == values, name
    real = rows.take([origin == "real" for origin in rows.origins])
    assert all(value is None for name in accepted.extra for value in real.extra[name])
    assert real.ids == read_samples(tmp_path / "prepare" / "dataset").ids
    assert (summary.decision, summary.share) == ("use", 0.5)
    assert (summary.real_rows, summary.synthetic_rows) == (12 + 9 + 9, 6)


def test_weights_add_up_and_give_the_winning_share(tmp_path: Path) -> None:
    _, rows = assemble(tmp_path, Fake(share=0.25))
    weights = np.asarray(rows.extra["sampling_weight"])
    splits, origins = np.asarray(rows.splits), np.asarray(rows.origins)
    train = splits == "train"
    assert weights[train].sum() == pytest.approx(1.0)
    assert (weights[train] > 0).all()
    assert (weights[~train] == 0).all()
    for label in range(3):
        inside = train & (rows.labels == label)
        share = weights[inside & (origins == "synthetic")].sum() / weights[inside].sum()
        assert weights[inside].sum() == pytest.approx(1 / 3)
        assert share == pytest.approx(0.0 if label == 0 else 0.25)


@pytest.mark.parametrize("accepted", [(0, 2, 4), (0, 0, 0)])
def test_do_not_use_leaves_synthetic_rows_out(tmp_path: Path, accepted) -> None:
    summary, rows = assemble(tmp_path, Fake(decision="do_not_use", accepted=accepted))
    assert set(rows.origins) == {"real"}
    assert set(rows.extra) == {"sampling_weight"}
    assert (summary.share, summary.synthetic_rows) == (None, 0)
    weights = np.asarray(rows.extra["sampling_weight"])
    train = np.asarray(rows.splits) == "train"
    balanced = [weights[train & (rows.labels == label)].sum() for label in range(3)]
    assert balanced == pytest.approx([1 / 3] * 3)


def test_the_pool_stays_behind(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    store = folders["prepare"] / "dataset"
    rows = read_samples(store)
    pool = rows.take([0])
    pool = make_samples(255 - pool.images, np.asarray([-1]), "pool", "real")
    write_store(store, with_lineage(rows, pool), ("digit 0", "digit 1", "digit 2"), 8, "L")
    for name in NEEDED:
        finish(folders[name], Params())
    inputs = {name: folders[name] for name in NEEDED}
    run(AssembleParams(), inputs, tmp_path / "assemble", NullTracker())
    assert "pool" not in read_samples(tmp_path / "assemble" / "dataset").splits


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    assemble(tmp_path / "one")
    assemble(tmp_path / "two")
    one, two = (read_manifest(tmp_path / name / "assemble") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.files == two.files


def test_folders_of_different_runs_are_refused(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    write_json(folders["synthesize"] / "metrics.json", {"accepted": 7})
    finish(folders["synthesize"], Params())
    inputs = {name: folders[name] for name in NEEDED}
    with pytest.raises(StageError, match="`evaluate` was made from another `synthesize` folder"):
        run(AssembleParams(), inputs, tmp_path / "assemble", NullTracker())


def test_a_store_that_was_changed_is_refused(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    path = folders["prepare"] / "dataset" / "dataset.json"
    data = json.loads(path.read_text())
    write_json(path, {**data, "digest": "0" * 64})
    inputs = {name: folders[name] for name in NEEDED}
    with pytest.raises(StageError, match=re.escape("not those of its dataset.json")):
        run(AssembleParams(), inputs, tmp_path / "assemble", NullTracker())


def test_a_real_row_among_the_accepted_is_refused(tmp_path: Path) -> None:
    folders = write_stages(tmp_path)
    rows = make_samples(np.zeros((1, 8, 8, 1), np.uint8), np.asarray([0]), "train", "real")
    store = folders["synthesize"] / "accepted"
    write_store(store, rows, ("digit 0", "digit 1", "digit 2"), 8, "L")
    inputs = {name: folders[name] for name in NEEDED}
    with pytest.raises(StageError, match="a real row among the accepted images"):
        run(AssembleParams(), inputs, tmp_path / "assemble", NullTracker())


@pytest.mark.slow
def test_hugging_face_datasets_loads_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # reads the environment when it is imported

    classes = ("yes: no", "- '\"#", "<script>alert(1)</script>")
    assemble(tmp_path, Fake(classes=classes), rows_per_shard=5)
    folder = tmp_path / "assemble" / "dataset"
    assert (folder / "README.md").is_file()
    data = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in data.items()} == {
        "train": 18,
        "validation": 9,
        "test": 9,
    }
    train = data["train"]
    assert train.features["label"].names == list(classes)
    assert sum(train["sampling_weight"]) == pytest.approx(1.0)
    assert train[0]["image"].size == (8, 8)
    assert train[0]["confidence"] is None
    assert train[-1]["origin"] == "synthetic"
    assert train[-1]["confidence"] > 0
