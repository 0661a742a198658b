"""The training loop: exact resumption, stopping, what is kept, what moves."""

import functools
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.diffusion import loop
from pipeline.diffusion.bases import pool_base
from pipeline.diffusion.checkpoints import load_state
from pipeline.diffusion.curves import CHECK_COLUMNS
from pipeline.diffusion.ema import PowerAverages, find_recipe, power, rebuild
from pipeline.diffusion.fitting import make_objective
from pipeline.diffusion.loop import (
    Course,
    Rows,
    class_chances,
    fixed_loss,
    learning_rate,
    train_generator,
)
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.starting import start_from
from pipeline.diffusion.trainable import choose_trainable
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.params import TrainParams
from pipeline.team import Team
from pipeline.tracking.tracker import NullTracker

STEPS, CHECKS, EVERY = 12, 3, 5  # checks at 4, 8 and 12; checkpoints at 5 and 10
LIMIT = 0.01
FILES = ("curve.csv", "checks.csv", "lengths.csv")


def rows(count=12, seed=0):
    images = np.random.default_rng(seed).uniform(-1, 1, (count, 1, 8, 8))
    return Rows(torch.from_numpy(images).float(), torch.arange(count) % 2)


def settings(**changes):
    values = {
        "steps": STEPS,
        "checks": CHECKS,
        "batch_images": 8,
        "warmup_steps": 2,
        "checkpoint_every_steps": EVERY,
        "precision": "float32",
        "patience_checks": 0,
    }
    return TrainParams(**{**values, **changes})


def objective(params=None):
    params = params or settings()
    weight = params.class_balance_weight
    return make_objective(params, "float32", 2, params.label_dropout, weight)


def network(params=None, channels=8):
    params = params or settings()
    return build_unet(8, "L", 2, Preset(channels, 1), params.seed, params.dropout or 0.0)


def network_of_a_base(params):
    plain = build_unet(8, "L", 0, Preset(8, 1), seed=5)
    with torch.no_grad():  # all that diffusers starts with noughts would hide what is frozen
        for weight in plain.parameters():
            weight.add_(0.01)
    base = pool_base(
        plain, source="test", schedule="cosine", prediction="velocity", training_ids=[]
    )
    model, fit = start_from(
        base,
        image_size_px=8,
        image_mode="L",
        classes=("a", "b"),
        class_map={},
        dropout=0.0,
        seed=0,
    )
    choose_trainable(model, params.trainable, fit.reinitialised, 2, params.seed)
    return model


def weigh(model):
    """Look at a network: no copies; the quality is a number that any change of weights moves."""
    return 0.0, float(model.conv_out.weight.double().abs().sum())


class Script:
    """Gives out (copies, quality) call by call: the checks first, then the lengths."""

    def __init__(self, *looks, then=(0.0, 99.0)):
        self.looks, self.then, self.calls = looks, then, 0

    def __call__(self, model):
        self.calls += 1
        return self.looks[self.calls - 1] if self.calls <= len(self.looks) else self.then


def train(
    work,
    params=None,
    tracker=None,
    model=None,
    examine=weigh,
    draw_sheet=lambda model, step: None,
    heldout=None,
):
    params = params or settings()
    course = Course(
        "train",
        params.steps,
        params.checks,
        LIMIT,
        params.patience_checks,
        None if params.ema_length == "auto" else params.ema_length,
    )
    if model is None:
        model = network(params) if params.trainable == "all" else network_of_a_base(params)
    training = rows()
    return train_generator(
        model,
        objective(params),
        training,
        rows(6, seed=1) if heldout is None else heldout,
        class_chances(training.labels, params.class_balance_power),
        params,
        course,
        work,
        tracker or NullTracker(),
        examine,
        draw_sheet,
        Team(),
    )


class Killer(NullTracker):
    def __init__(self, step):
        self.step = step

    def progress(self, task, done, total, unit):
        if task == "train" and done == self.step:
            raise KeyboardInterrupt


def assert_same(one, other, work_of_one, work_of_other):
    """Check that two trainings ended with the very same weights, numbers and files."""
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert (one.kept, one.steps, one.final_loss) == (other.kept, other.steps, other.final_loss)
    assert [astuple(c) for c in one.checks] == [astuple(c) for c in other.checks]
    assert [astuple(c) for c in one.lengths] == [astuple(c) for c in other.lengths]
    for name in FILES:
        assert (work_of_one / name).read_bytes() == (work_of_other / name).read_bytes(), name


# Resumption

MODES = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "augment": {"augment": ("flip", "translate", "rotate"), "augment_probability": 0.5},
    "class balance": {"class_balance_weight": 0.5},
    "micro batches": {"micro_batch_images": 3, "dropout": 0.3},
    "edm": {"schedule": "lognormal", "prediction": "edm", "weighting": "edm"},
    "zero terminal snr": {"zero_terminal_snr": True, "prediction": "sample"},
    "inner": {"trainable": "inner"},
    "lora": {"trainable": "lora"},
    "fixed length": {"ema_length": 0.08},
    "all at once": {
        "dropout": 0.2,
        "augment": ("scale",),
        "class_balance_weight": 0.1,
        "micro_batch_images": 5,
        "trainable": "lora",
        "schedule": "lognormal",
        "prediction": "edm",
        "weighting": "edm",
    },
}


@pytest.fixture(autouse=True, scope="module")
def _rows_of_the_curve_between_checkpoints():
    """Give curves a row every second step of 12: checkpoints then hold a loss yet to be told."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_CURVE_ROWS", 6)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return `unbroken(mode)`: the outcome of an uninterrupted training, and its folder."""

    @functools.cache
    def run(mode):
        work = tmp_path_factory.mktemp("unbroken")
        return train(work, settings(**MODES[mode])), work

    return run


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_training_resumes_to_the_very_same_weights_and_curves(tmp_path, unbroken, mode):
    expected, whole = unbroken(mode)
    params = settings(**MODES[mode])
    # Before the first checkpoint, at it, between two, after the last: each goes on from there.
    for killed_at, kept in ((3, None), (5, 5), (9, 5), (11, 10)):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, params, Killer(killed_at))
        state = load_state(tmp_path)
        assert (state.numbers["step"] if state else None) == kept
    assert_same(train(tmp_path, params), expected, tmp_path, whole)


@pytest.mark.parametrize("mode", ["plain", "augment", "lora"])
def test_one_that_is_asked_to_stop_keeps_what_it_has_done(tmp_path, unbroken, monkeypatch, mode):
    expected, whole = unbroken(mode)
    params = settings(**MODES[mode])
    draw, drawn = Objective.draw, []

    def interrupted(self, images, labels, generator):
        drawn.append(len(images))
        if len(drawn) == 9:  # in the middle of a step, between two checkpoints
            raise KeyboardInterrupt
        return draw(self, images, labels, generator)

    monkeypatch.setattr(Objective, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, params)
    assert load_state(tmp_path).numbers["step"] == 8
    assert_same(train(tmp_path, params), expected, tmp_path, whole)
    assert len(drawn) == 9 + STEPS - 8


def test_one_that_is_stopped_as_its_weights_change_goes_on_from_the_last_checkpoint(
    tmp_path, unbroken, monkeypatch
):
    expected, whole = unbroken("plain")
    update, updates = PowerAverages.update, []

    def interrupted(self, step):
        updates.append(step)
        if len(updates) == 9:
            raise KeyboardInterrupt
        update(self, step)

    monkeypatch.setattr(PowerAverages, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert load_state(tmp_path).numbers["step"] == 5
    assert_same(train(tmp_path), expected, tmp_path, whole)


def test_the_modes_train_otherwise_than_the_plain_one(unbroken):
    plain = unbroken("plain")[0].model.state_dict()["conv_in.weight"]
    for mode in set(MODES) - {"plain", "inner", "lora", "all at once"}:
        other = unbroken(mode)[0].model.state_dict()["conv_in.weight"]
        assert not torch.equal(plain, other), mode


@pytest.mark.parametrize(
    ("mode", "killed_at"), [("plain", 4), ("dropout", 8), ("lora", 8), ("augment", 12)]
)
def test_killed_right_after_a_check(tmp_path, unbroken, mode, killed_at):
    expected, whole = unbroken(mode)
    params = settings(**MODES[mode])

    def draw_sheet(model, step):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, params, draw_sheet=draw_sheet)
    assert_same(train(tmp_path, params), expected, tmp_path, whole)


@pytest.mark.parametrize(("mode", "call"), [("plain", 1), ("dropout", 2), ("lora", 2)])
def test_killed_in_the_search_of_lengths(tmp_path, unbroken, mode, call):
    expected, whole = unbroken(mode)
    params = settings(**MODES[mode])
    assert len(expected.lengths) >= 3
    calls = []

    def examine(model):
        calls.append(model)
        if len(calls) == CHECKS + call:
            raise KeyboardInterrupt
        return weigh(model)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, params, examine=examine)
    assert_same(train(tmp_path, params), expected, tmp_path, whole)


def test_killed_after_an_early_stop_it_does_not_go_on_training(tmp_path):
    params = settings(steps=60, checks=15, patience_checks=2, checkpoint_every_steps=1000)
    looks = [(0.0, float(i)) for i in range(3)]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(whole, params, examine=Script(*looks), heldout=rows(0))
    assert expected.steps == 12

    class Dying(Script):
        def __call__(self, model):
            if self.calls == len(looks):
                raise KeyboardInterrupt
            return super().__call__(model)

    with pytest.raises(KeyboardInterrupt):
        train(broken, params, examine=Dying(*looks), heldout=rows(0))
    # The checks are made: what is left are the lengths.
    resumed = train(broken, params, examine=Script(), heldout=rows(0))
    assert_same(resumed, expected, broken, whole)


@pytest.mark.parametrize("junk", [b"", b"half a file", None])
def test_a_damaged_checkpoint_starts_afresh(tmp_path, unbroken, junk):
    expected, whole = unbroken("plain")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tracker=Killer(9))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if junk is None else junk)
    assert_same(train(tmp_path), expected, tmp_path, whole)


def test_a_resumed_training_says_so(tmp_path, recording_tracker):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, tracker=Killer(9))
    train(tmp_path, tracker=recording_tracker)
    assert recording_tracker.notes == ["train: goes on from step 5"]
    assert recording_tracker.progress_calls[0] == ("train", 6, STEPS, "steps")


# Micro batches

# Adding a number to all keys changes no attention: the gradient of this bias is rounding alone,
# which Adam brings to the size of any other.
NOISE = ("to_k.bias",)


def difference(ours, theirs, start):
    """Return how far two networks are apart, over how far they went from the start."""
    names = [name for name in ours if not name.endswith(NOISE)]
    apart = sum((ours[name] - theirs[name]).square().sum() for name in names)
    way = sum((ours[name] - start[name]).square().sum() for name in names)
    return float((apart / way).sqrt())


@pytest.mark.parametrize(
    "mode", [{}, {"augment": ("flip", "scale"), "class_balance_weight": 0.5}], ids=["plain", "rich"]
)
def test_micro_batches_give_the_weights_of_the_whole_batch(tmp_path, mode):
    states = {}
    for size in (None, 3, 1):
        params = settings(
            steps=6, checks=1, micro_batch_images=size, dropout=0.0, ema_length=0.1, **mode
        )
        # Two channels a group: with one, the norm would undo a bias: its gradient is noise then.
        model = network(params, channels=16)
        states[size] = train(tmp_path / str(size), params, model=model).model.state_dict()
    start = network(channels=16).state_dict()
    for size in (3, 1):
        assert 0 < difference(states[size], states[None], start) < 1e-3


# Stopping, and what is kept


def steps_done(tracker):
    return [call for call in tracker.progress_calls if call[0] == "train"]


@pytest.mark.parametrize(("patience", "stops_after"), [(1, 3), (2, 4), (3, 5), (0, 8)])
def test_worse_and_worse_checks_stop_the_training(
    tmp_path, recording_tracker, patience, stops_after
):
    params = settings(steps=32, checks=8, patience_checks=patience)
    qualities = [3.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0][:stops_after]
    # Without held-out rows, the quality alone decides.
    outcome = train(
        tmp_path,
        params,
        recording_tracker,
        examine=Script(*((0.0, q) for q in qualities)),
        heldout=rows(0),
    )
    assert outcome.steps == 4 * stops_after
    assert [check.step for check in outcome.checks] == [4 * i for i in range(1, stops_after + 1)]
    assert [check.quality for check in outcome.checks] == qualities
    assert (outcome.kept.step, outcome.kept.quality, outcome.kept.ema_length) == (8, 1.0, 0.1)
    last = steps_done(recording_tracker)[-1]
    assert last == ("train", outcome.steps, outcome.steps, "steps")
    assert {call[2] for call in steps_done(recording_tracker)[:-1]} <= {32}


def test_a_falling_heldout_loss_keeps_the_training_going(tmp_path):
    params = settings(steps=32, checks=8, patience_checks=2, learning_rate=3.0e-3)
    looks = [(0.0, float(i)) for i in range(8)]
    outcome = train(tmp_path, params, examine=Script(*looks))
    losses = [check.heldout_loss for check in outcome.checks]
    assert losses[-1] < losses[0]
    assert outcome.steps == 32
    assert outcome.kept.step == 4  # the quality decides what is kept


class Recorder(NullTracker):
    """Keeps a copy of the weights after every step."""

    def __init__(self, model):
        self.model, self.weights = model, []

    def progress(self, task, done, total, unit):
        if task == "train":
            own = dict(self.model.named_parameters())
            self.weights.append({k: v.detach().double().clone() for k, v in own.items()})


def power_average(weights, length):
    """Return the average of (steps) weights whose profile is t ** gamma, in the slow way."""
    gamma, last = power(length), len(weights)
    edges = (np.arange(last + 1) / last) ** (gamma + 1)
    shares = np.diff(edges)
    return {
        name: sum(share * one[name] for share, one in zip(shares, weights, strict=True))
        for name in weights[0]
    }


@pytest.mark.parametrize("ema_length", ["auto", 0.05, 0.08, 0.1])
def test_the_kept_weights_are_those_averaged_up_to_the_kept_step(tmp_path, ema_length):
    params = settings(
        steps=48, checks=12, patience_checks=2, ema_length=ema_length, learning_rate=3.0e-3
    )
    model = network(params)
    recorder = Recorder(model)
    looks = [(0.0, quality) for quality in (3.0, 2.0, 1.0, 4.0, 5.0)]
    outcome = train(
        tmp_path, params, recorder, model=model, examine=Script(*looks), heldout=rows(0)
    )
    assert (outcome.steps, outcome.kept.step) == (20, 12)
    length = 0.1 if ema_length == "auto" else ema_length
    assert outcome.kept.ema_length == length
    found = dict(outcome.model.named_parameters())
    # The formula in the code, on the snapshots of the steps up to the kept one ...
    steps = [4, 8, 12]
    snapshots = [
        load_file(tmp_path / "snapshots" / f"step-{step:08d}.safetensors") for step in steps
    ]
    recipe = find_recipe(steps, length)
    rebuilt = rebuild(snapshots, recipe)
    assert all(torch.equal(found[name], rebuilt[name]) for name in found)
    # ... and the average itself, over the weights of every step.
    expected = power_average(recorder.weights[:12], length)
    other = power_average(recorder.weights, length)
    near = far = 0.0
    for name, weight in found.items():
        near = max(near, (weight - expected[name]).abs().max().item())
        far = max(far, (weight - other[name]).abs().max().item())
    assert near < (1e-5 if length in (0.05, 0.1) else 5e-4)
    assert far > 10 * near


def test_another_length_is_kept_where_it_is_better(tmp_path):
    looks = [(0.0, 3.0), (0.0, 2.0), (0.0, 1.0)]
    tried = [check.ema_length for check in train(tmp_path / "look", settings()).lengths]
    others = [length for length in tried if length != 0.1]
    assert len(others) >= 2  # so that the best is not the one that was looked at last
    better = Script(*looks, *((0.0, 0.5 if n == others[0] else 2.0) for n in others))
    outcome = train(tmp_path / "better", examine=better, heldout=rows(0))
    assert (outcome.kept.step, outcome.kept.ema_length) == (12, others[0])
    assert [check.ema_length for check in outcome.lengths] == tried
    steps = [4, 8, 12]
    folder = tmp_path / "better" / "snapshots"
    snapshots = [load_file(folder / f"step-{step:08d}.safetensors") for step in steps]
    rebuilt = rebuild(snapshots, find_recipe(steps, others[0]))
    found = dict(outcome.model.named_parameters())
    assert all(torch.equal(found[name], rebuilt[name]) for name in found)
    # The same quality, but it copies.
    copying = Script(*looks, *((0.5, 0.5) for _ in others))
    outcome = train(tmp_path / "copying", examine=copying, heldout=rows(0))
    assert (outcome.kept.step, outcome.kept.ema_length) == (12, 0.1)


@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        ((0.0, 0.5, 0.5), 4),
        ((0.5, 0.01, 0.02), 8),  # at the limit is within it
        ((0.5, 0.5, 0.0), 12),
        ((0.5, 0.3, 0.4), 8),  # all copy: the one that does least
    ],
)
def test_copies_above_the_limit_are_not_kept_while_an_honest_check_exists(tmp_path, shares, kept):
    looks = [(share, quality) for share, quality in zip(shares, (9.0, 5.0, 1.0), strict=True)]
    outcome = train(tmp_path, examine=Script(*looks, then=(0.9, 0.0)))
    assert outcome.kept.step == kept
    assert outcome.kept.copy_share == shares[kept // 4 - 1]


def test_copying_checks_count_as_no_improvement(tmp_path):
    params = settings(steps=32, checks=8, patience_checks=2, learning_rate=3.0e-3)
    outcome = train(tmp_path, params, examine=Script((0.0, 5.0), (0.5, 1.0), (0.6, 0.5)))
    assert (outcome.steps, outcome.kept.step) == (12, 4)


# Numbers on the way


def test_sheets_are_drawn_at_the_checks_and_checks_are_written(tmp_path, recording_tracker):
    sheets = []

    def draw_sheet(model, step):
        assert not model.training
        sheets.append(step)

    outcome = train(tmp_path, tracker=recording_tracker, draw_sheet=draw_sheet)
    assert sheets == [4, 8, 12]
    lines = (tmp_path / "checks.csv").read_text().splitlines()
    assert lines[0] == ",".join(CHECK_COLUMNS)
    assert [line.split(",")[0] for line in lines[1:]] == ["4", "8", "12"]
    steps = [s for values, s in recording_tracker.metrics_calls if "train/copy_share" in values]
    assert steps == sheets
    curve = (tmp_path / "curve.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in curve] == [2, 4, 6, 8, 10, 12]
    lengths = (tmp_path / "lengths.csv").read_text().splitlines()[1:]
    assert len(lengths) == len(outcome.lengths)


@pytest.mark.parametrize(("steps", "checks"), [(7, 3), (10, 10), (3, 10), (100, 7), (1, 1)])
def test_checks_are_spread_evenly_and_the_last_is_the_end(steps, checks):
    course = Course("train", steps, checks, LIMIT, 0, None)
    found = [step for step in range(1, steps + 1) if course.is_check(step)]
    assert found[-1] == steps
    assert len(found) == min(steps, checks)
    gaps = np.diff([0, *found])
    assert gaps.max() - gaps.min() <= 1


def test_training_lowers_the_loss(tmp_path):
    params = settings(steps=40, learning_rate=3.0e-3, checks=2)
    outcome = train(tmp_path, params)
    for found, known in (
        (outcome.kept.training_loss, rows()),
        (outcome.kept.heldout_loss, rows(6, 1)),
    ):
        assert found < 0.8 * fixed_loss(network(), objective(), known, params.seed)
    assert math.isfinite(outcome.final_loss)
    assert outcome.steps == 40


def test_fixed_loss_is_the_same_at_every_call_and_without_rows_unknown():
    model = network()
    values = {fixed_loss(model, objective(), rows(), 0) for _ in range(2)}
    assert len(values) == 1
    assert fixed_loss(model, objective(), rows(), 1) not in values
    assert math.isnan(fixed_loss(model, objective(), rows(0), 0))


def test_chances_are_proportional_to_the_power_of_the_class_size():
    labels = torch.tensor([0] * 16 + [1] * 4)
    for exponent in (0.0, 0.5, 1.0):
        chances = class_chances(labels, exponent)
        assert chances.sum().item() == pytest.approx(1)
        ratio = chances[labels == 0].sum() / chances[labels == 1].sum()
        assert ratio.item() == pytest.approx(4**exponent)


def test_the_rate_warms_up_and_falls_to_a_tenth():
    params = settings(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, 100, params) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


# A loss that is not finite


def break_loss(monkeypatch, after):
    """Make the loss NaN after so many calls."""
    original, calls = Objective.__call__, []

    def broken(self, model, batch):
        calls.append(None)
        return original(self, model, batch) * (math.nan if len(calls) > after else 1.0)

    monkeypatch.setattr(Objective, "__call__", broken)


def test_a_loss_that_is_not_finite_names_task_step_rate_and_checkpoint(
    tmp_path, unbroken, monkeypatch
):
    expected, whole = unbroken("plain")
    with monkeypatch.context() as patched:
        break_loss(patched, after=7)
        with pytest.raises(StageError) as caught:
            train(tmp_path)
    message = str(caught.value)
    assert message.startswith("train: the loss is not finite at step 8; lower train.learning_rate")
    assert "(now 0.001)" in message
    assert f"the checkpoint of step 5 is kept in {tmp_path}" in message
    state = load_state(tmp_path)
    assert state.numbers["step"] == 5
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())
    # Whole enough to go on from, to where a run without the fault ends.
    assert_same(train(tmp_path), expected, tmp_path, whole)


def test_a_loss_that_is_not_finite_in_the_first_steps_has_no_checkpoint(tmp_path, monkeypatch):
    break_loss(monkeypatch, after=1)
    with pytest.raises(StageError, match=r"not finite at step 2; .*the checkpoint of step 0 is"):
        train(tmp_path)
    assert load_state(tmp_path) is None


def test_weights_that_are_not_finite_do_not_reach_the_checkpoint(tmp_path, monkeypatch):
    # The loss is still finite where its gradient no longer is.
    original, calls = Objective.__call__, []

    def broken(self, model, batch):
        calls.append(None)
        loss = original(self, model, batch)
        if len(calls) == 10:
            weight = model.conv_out.bias.sum()
            loss = loss + (weight - weight.detach()).abs().sqrt()  # value 0, gradient NaN
        return loss

    monkeypatch.setattr(Objective, "__call__", broken)
    with pytest.raises(StageError, match=r"not finite at step 10; .*the checkpoint of step 5"):
        train(tmp_path)
    state = load_state(tmp_path)
    assert state.numbers["step"] == 5
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


# What moves


@pytest.mark.parametrize("what", ["inner", "lora"])
def test_frozen_weights_do_not_move(tmp_path, what):
    params = settings(trainable=what, learning_rate=3.0e-3)
    model = network_of_a_base(params)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    chosen = {name for name, weight in model.named_parameters() if weight.requires_grad}
    outcome = train(tmp_path, params, model=model)
    for one in (model, outcome.model):
        after = dict(one.named_parameters())
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == chosen
    assert chosen != set(before)


def test_a_batch_too_small_for_the_team_is_refused(tmp_path):
    shares = [Team(rank, 3).share_of(2) for rank in range(3)]
    assert sorted(len(share) for share in shares) == [0, 1, 1]
    with pytest.raises(InputError, match=r"batch_images = 2, fewer than the 3 processes"):
        train_generator(
            network(), objective(), rows(), rows(0), torch.full((12,), 1 / 12),
            settings(batch_images=2), Course("train", 4, 1, LIMIT, 0, None), tmp_path,
            NullTracker(), weigh, lambda model, step: None, replace(Team(), size=3),
        )  # fmt: skip
