import math

import numpy as np
import pytest
import torch

from pipeline.diffusion import loop
from pipeline.diffusion.checkpoints import load_state
from pipeline.diffusion.ema import ExponentialAverage
from pipeline.diffusion.loop import Rows, class_chances, learning_rate, train_generator
from pipeline.diffusion.noise import NoiseLevels
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.unet import build_unet
from pipeline.errors import StageError
from pipeline.params import TrainParams
from pipeline.tracking.tracker import NullTracker

CPU = torch.device("cpu")


def rows(count=12):
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (count, 1, 8, 8))).float()
    return Rows(images, torch.arange(count) % 2)


def settings(**changes):
    values = {
        "steps": 12,
        "batch_images": 8,
        "warmup_steps": 2,
        "checkpoint_every_steps": 5,
        "sheet_every_steps": 6,
        "precision": "float32",
    }
    return TrainParams(**{**values, **changes})


def objective():
    return Objective(NoiseLevels("cosine", CPU), "velocity", 5.0, 0.1, 2, "float32")


def train(work, params=None, tracker=None, sheets=None):
    params = params or settings()
    return train_generator(
        build_unet(8, "L", 2, 8, seed=0),
        objective(),
        rows(),
        rows(6),
        params,
        params.steps,
        work,
        tracker or NullTracker(),
        lambda model, step: sheets.append(step) if sheets is not None else None,
    )


class Killer(NullTracker):
    def __init__(self, step):
        self.step = step

    def progress(self, task, done, total, unit):
        if done == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 9, 11])
def test_a_killed_training_resumes_to_the_very_same_weights_and_curves(tmp_path, step):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(broken, tracker=Killer(step))
    resumed = train(broken)
    for one, other in zip(expected.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("curve.csv", "heldout.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_sheets_are_drawn_on_the_way_and_at_the_end(tmp_path):
    sheets = []
    train(tmp_path, settings(steps=8), sheets=sheets)
    assert sheets == [6, 8]


def test_training_lowers_the_loss(tmp_path):
    outcome = train(tmp_path, settings(steps=60, learning_rate=3.0e-3, sheet_every_steps=1))
    lines = (tmp_path / "heldout.csv").read_text().splitlines()[1:]
    first, last = (float(line.split(",")[1]) for line in (lines[0], lines[-1]))
    assert last < 0.8 * first
    assert math.isfinite(outcome.validation_loss)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    original = Objective.__call__
    calls = []

    def broken(self, model, images, labels, generator):
        calls.append(None)
        loss = original(self, model, images, labels, generator)
        return loss * math.nan if len(calls) > 7 else loss

    monkeypatch.setattr(Objective, "__call__", broken)
    with pytest.raises(StageError, match=r"not finite at step 8; lower train.learning_rate"):
        train(tmp_path)
    assert load_state(tmp_path).numbers["step"] == 5


def test_chances_are_proportional_to_the_power_of_the_class_size():
    labels = torch.tensor([0] * 16 + [1] * 4)
    for power in (0.0, 0.5, 1.0):
        chances = class_chances(labels, power)
        assert chances.sum().item() == pytest.approx(1)
        ratio = chances[labels == 0].sum() / chances[labels == 1].sum()
        assert ratio.item() == pytest.approx(4**power)


def test_the_rate_warms_up_and_falls_to_a_tenth():
    params = settings(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, 100, params) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_the_average_follows_a_constant_model_and_lags_a_moving_one():
    model = torch.nn.Linear(1, 1, bias=False)
    average = ExponentialAverage(model, 0.9)
    start = model.weight.item()
    with torch.no_grad():
        model.weight += 1
    average.update(1000)
    assert average.model.weight.item() == pytest.approx(start + 0.1)


def test_heldout_loss_is_the_same_at_every_call():
    model = build_unet(8, "L", 2, 8, seed=0)
    values = {loop.heldout_loss(model, objective(), rows(), 0) for _ in range(2)}
    assert len(values) == 1
    assert math.isnan(loop.heldout_loss(model, objective(), rows(0), 0))
