import csv
import json
import math

import pytest

from pipeline.diffusion.curves import CHECK_COLUMNS, Curves
from pipeline.diffusion.stopping import Check
from pipeline.tracking.tracker import NullTracker

CHECK = Check(1_234_567, 0.10, 0.25, math.nan, 0.0, math.nan)


@pytest.fixture
def curves():
    found = Curves("train")
    found.add(1_234_567, 0.123456789, 2.0, 1.0e-4, 300.0, NullTracker())
    found.add_check(CHECK, NullTracker())
    return found


def test_curves_come_back_from_the_numbers_of_a_checkpoint(curves):
    numbers = json.loads(json.dumps(curves.numbers(), allow_nan=False))
    again = Curves("train")
    assert again.last_step == 0
    assert math.isnan(again.last_loss)
    again.load(numbers)
    assert again.rows == curves.rows
    assert again.last_step == 1_234_567
    assert again.last_loss == 0.123456789
    (found,) = again.checks
    assert (found.step, found.ema_length, found.training_loss, found.copy_share) == (
        1_234_567, 0.10, 0.25, 0.0,
    )  # fmt: skip
    assert math.isnan(found.heldout_loss)
    assert math.isnan(found.quality)
    assert again.numbers() == curves.numbers()


def test_files_hold_whole_steps_and_blanks_for_what_is_unknown(curves, tmp_path):
    curves.lengths = [CHECK]
    curves.write(tmp_path)

    def read(name):
        return list(csv.DictReader((tmp_path / name).read_text().splitlines()))

    assert read("curve.csv") == [
        {"step": "1234567", "loss": "0.123457", "gradient_norm": "2", "learning_rate": "0.0001"}
    ]
    (row,) = read("checks.csv")
    assert tuple(row) == CHECK_COLUMNS
    assert row["step"] == "1234567"
    assert (row["heldout_loss"], row["quality"], row["copy_share"]) == ("", "", "0")
    assert read("lengths.csv") == [row]


def test_trackers_are_told_of_finite_numbers_alone(recording_tracker):
    curves = Curves("pretrain")
    curves.add(10, 0.5, 2.0, 0.1, 300.0, recording_tracker)
    curves.add_check(CHECK, recording_tracker)
    curves.add_check(Check(20, 0.10, 0.25, 0.75, 0.5, -0.125), recording_tracker)
    assert recording_tracker.metrics_calls == [
        (
            {
                "pretrain/loss": 0.5,
                "pretrain/gradient_norm": 2.0,
                "pretrain/learning_rate": 0.1,
                "pretrain/images_per_second": 300.0,
            },
            10,
        ),
        ({"pretrain/heldout_train_loss": 0.25, "pretrain/copy_share": 0.0}, 1_234_567),
        (
            {
                "pretrain/heldout_train_loss": 0.25,
                "pretrain/validation_loss": 0.75,
                "pretrain/loss_gap": 0.5,
                "pretrain/copy_share": 0.5,
                "pretrain/kernel_distance": -0.125,
            },
            20,
        ),
    ]
