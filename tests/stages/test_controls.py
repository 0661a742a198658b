import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.data.store import Samples, concatenate, make_samples, read_samples
from pipeline.data.store_writer import write_store
from pipeline.errors import InputError
from pipeline.params import EvaluateParams, Execution
from pipeline.stages.controls import (
    CONTROLS,
    copies,
    held_out_real,
    noise,
    run_controls,
    shuffled_labels,
)

SIZES = {"train": 40, "validation": 20, "test": 80}


def digits() -> Samples:
    """Rows of the digits 3, 8 and 9, in three splits."""
    data = load_digits()
    images = (data.images * 15).astype(np.uint8)[..., None]
    parts, used = [], 0
    for split, each in SIZES.items():
        rows = [np.flatnonzero(data.target == d)[used : used + each] for d in (3, 8, 9)]
        labels = np.repeat(np.arange(3), each)
        parts.append(make_samples(images[np.concatenate(rows)], labels, split, "real"))
        used += each
    return concatenate(parts)


ROWS = digits()
TRAIN = ROWS.take(np.asarray(ROWS.splits) == "train")
SYNTHETIC = make_samples(255 - TRAIN.images[:70], TRAIN.labels[:70], "train", "synthetic")


def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("plant", [shuffled_labels, noise, copies])
def test_negative_controls_leave_the_real_rows_alone(plant) -> None:
    rows, planted = plant(ROWS, SYNTHETIC, random())
    assert rows is ROWS
    assert len(planted) == len(SYNTHETIC)
    assert set(planted.origins) == {"synthetic"}
    counts = np.bincount(planted.labels, minlength=3)
    assert counts.tolist() == np.bincount(SYNTHETIC.labels, minlength=3).tolist()


def test_each_control_plants_what_it_says() -> None:
    _, shuffled = shuffled_labels(ROWS, SYNTHETIC, random())
    assert (shuffled.images == SYNTHETIC.images).all()
    assert (shuffled.labels != SYNTHETIC.labels).any()
    _, copied = copies(ROWS, SYNTHETIC, random())
    of_class = dict(zip(TRAIN.ids, TRAIN.labels, strict=True))
    assert all(of_class[one] == label for one, label in zip(copied.ids, copied.labels, strict=True))
    _, noisy = noise(ROWS, SYNTHETIC, random())
    assert not set(noisy.ids) & set(ROWS.ids)
    rows, planted = held_out_real(ROWS, SYNTHETIC, random())
    assert set(planted.ids) | set(rows.ids) == set(ROWS.ids)
    assert not set(planted.ids) & set(rows.ids)
    assert np.bincount(planted.labels).tolist() == [20, 20, 20]
    assert [rows.splits.count(name) for name in SIZES] == [60, 60, 240]


def test_single_rows_cannot_be_held_out() -> None:
    rows = ROWS.take([0, 40, 80])
    with pytest.raises(InputError, match="none can be held out"):
        held_out_real(rows, SYNTHETIC, random())


def test_without_synthetic_rows_training_rows_stand_in() -> None:
    none = SYNTHETIC.take([])
    _, planted = noise(ROWS, none, random())
    assert len(planted) == len(TRAIN)


@pytest.mark.slow
def test_the_gate_refuses_what_is_worthless_and_takes_what_is_not(
    tmp_path: Path, recording_tracker
) -> None:
    few = ROWS.take(
        np.asarray(
            [
                row
                for row, split in enumerate(ROWS.splits)
                if split != "train" or row % 40 < 2  # so few that one more is worth something
            ]
        )
    )
    dataset, accepted = tmp_path / "dataset", tmp_path / "accepted"
    write_store(dataset, few, ("three", "eight", "nine"), 8, "L")
    write_store(accepted, SYNTHETIC, ("three", "eight", "nine"), 8, "L")
    params = EvaluateParams(
        execution=Execution(device="cpu", workers=1),
        search_seeds=0,
        seeds=4,
        steps=80,
        batch_images=32,
        base_channels=8,
        bootstrap_resamples=1000,
    )
    out = tmp_path / "controls"
    found = run_controls(
        params, dataset, accepted, out, recording_tracker, ("real_augmented", "mixed")
    )
    assert [one.name for one in found] == list(CONTROLS)
    assert all(one.as_expected for one in found), found
    written = json.loads((out / "controls.json").read_text())["rows"]
    assert [row["gain_points"] for row in written] == [one.gain_points for one in found]
    assert read_samples(dataset).ids == few.ids
    assert [call[1] for call in recording_tracker.progress_calls if call[0] == "controls"] == [
        0, 1, 2, 3, 4
    ]  # fmt: skip
