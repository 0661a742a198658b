import math
from dataclasses import replace

import pytest
import torch

from pipeline.diffusion import guides
from pipeline.diffusion.base_files import build_network
from pipeline.diffusion.checkpoints import load_snapshot, save_snapshot
from pipeline.diffusion.ema import PowerAverages
from pipeline.diffusion.guides import (
    drop_guide_state,
    earlier_network,
    earlier_step,
    halve_width,
    smaller_network,
)
from pipeline.diffusion.loop import Rows
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.stopping import Check
from pipeline.diffusion.trainable import choose_trainable
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.params import TrainParams
from pipeline.tracking.tracker import NullTracker

PARAMS = TrainParams(batch_images=8, warmup_steps=8, precision="float32", checkpoint_every_steps=2)
OBJECTIVE = Objective(NoiseProcess("cosine", "velocity", False), "min_snr", 5.0, 0.1, 2, "float32")


def network(width=16, seed=0):
    return build_unet(8, "L", 2, Preset(width, 1), seed)


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 1, 8, 8), generator=generator) * 2 - 1
    return Rows(images, torch.arange(count) % 2)


def checks(*steps):
    return [Check(step, 0.1, math.nan, math.nan, math.nan, math.nan) for step in steps]


# Earlier


@pytest.mark.parametrize(
    ("steps", "kept", "expected"),
    [
        (range(60, 601, 60), 600, 120),  # 150 lies between 120 and 180: the earlier of equals
        (range(60, 601, 60), 300, 60),
        (range(60, 601, 60), 120, 60),
        ((100, 200, 300), 300, 100),
        ((10, 30, 1000), 100, 30),
        ((100, 200, 300), 100, None),
        ((50,), 50, None),
    ],
)
def test_the_check_nearest_to_a_quarter_of_the_kept_step_is_taken(steps, kept, expected):
    assert earlier_step(checks(*steps), kept) == expected


def snapshot(model, work, step):
    weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
    averages = PowerAverages(weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(0.5)
    averages.update(5)
    save_snapshot(work, step, averages.tensors())


def test_an_earlier_network_has_the_longer_average_of_its_step(tmp_path):
    model = network()
    snapshot(model, tmp_path, 5)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    guide = earlier_network(model, tmp_path, 5)
    kept = load_snapshot(tmp_path, 5)
    for name, weight in guide.named_parameters():
        assert torch.equal(weight, kept[f"1.{name}"])
        assert not torch.equal(weight, kept[f"0.{name}"])
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


@pytest.mark.parametrize("what", ["inner", "lora"])
def test_weights_that_were_not_trained_are_those_of_the_network(tmp_path, what):
    model = network()
    choose_trainable(model, what, (), 2, 0)
    snapshot(model, tmp_path, 5)
    guide = earlier_network(model, tmp_path, 5)
    plain = network()
    own = dict(guide.named_parameters())
    assert set(own) == {name for name, _ in plain.named_parameters()}
    assert torch.equal(own["conv_out.weight"], plain.conv_out.weight)
    assert not torch.equal(own["class_embedding.weight"], plain.class_embedding.weight)
    guide(torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1).long())


def test_a_missing_snapshot_is_told(tmp_path):
    with pytest.raises(StageError, match="step-00000005.safetensors: not readable"):
        earlier_network(network(), tmp_path, 5)


# Smaller


@pytest.mark.parametrize(
    ("width", "widths"), [(64, [32, 64]), (32, [16, 32]), (16, [16, 16]), (8, [8, 8])]
)
def test_half_the_width(width, widths):
    model = network(width)
    half = halve_width(model, 3)
    assert list(half.config["block_out_channels"]) == widths
    assert half.config["num_class_embeds"] == 3
    same = dict(halve_width(model, 3).named_parameters())
    other = dict(halve_width(model, 4).named_parameters())
    for name, weight in half.named_parameters():
        assert torch.equal(weight, same[name])
    assert not torch.equal(half.conv_in.weight, other["conv_in.weight"])
    half(torch.zeros(1, 1, 8, 8), torch.zeros(1), class_labels=torch.zeros(1).long())


def test_a_network_of_strangers_is_halved_as_its_groups_allow():
    config = {
        **dict(network().config),
        "block_out_channels": [96, 224],
        "norm_num_groups": 32,
        "attention_head_dim": 8,
    }
    assert list(halve_width(build_network(config), 0).config["block_out_channels"]) == [32, 96]


def test_a_network_that_cannot_be_halved_is_told(monkeypatch):
    def fail(config):
        raise ValueError("no such block")

    monkeypatch.setattr(guides, "build_network", fail)
    with pytest.raises(InputError, match=r"cannot be halved \(no such block\); set train.guide"):
        halve_width(network(), 0)


def train(work, tracker=None, seed=0, kept=24):
    params = PARAMS.model_copy(update={"seed": seed})
    return smaller_network(
        network(32), OBJECTIVE, rows(12), rows(4, 1), torch.full((12,), 1 / 12).double(), params,
        kept, work, tracker or NullTracker(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return train(tmp_path_factory.mktemp("small"))


def equal(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_smaller_network_is_trained_for_a_quarter_of_the_steps(
    small, recording_tracker, tmp_path
):
    model, steps = small
    assert steps == 6
    assert list(model.config["block_out_channels"]) == [16, 32]
    assert not any(weight.requires_grad for weight in model.parameters())
    again, _ = train(tmp_path, recording_tracker)
    assert equal(model, again)
    assert recording_tracker.progress_calls[-1] == ("guide", 6, 6, "steps")
    rates = [
        m["guide/learning_rate"] for m, _ in recording_tracker.metrics_calls if "guide/loss" in m
    ]
    assert max(rates) == rates[1] == PARAMS.learning_rate  # warm-up of 8 / 4 steps
    assert not equal(model, halve_width(network(32), 0))


def test_it_has_a_seed_path_of_its_own(small, tmp_path):
    assert not equal(small[0], train(tmp_path, seed=1)[0])


def test_a_killed_one_goes_on_to_the_same_weights(small, tmp_path):
    class Killer(NullTracker):
        def progress(self, task, done, total, unit):
            if done == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Killer())
    told = []

    class Listener(NullTracker):
        def note(self, message):
            told.append(message)

    assert equal(small[0], train(tmp_path, Listener())[0])
    assert told == ["guide: goes on from step 4"]
    drop_guide_state(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_step_at_least(tmp_path):
    assert train(tmp_path, kept=1)[1] == 1


def test_the_network_does_not_depend_on_what_looks_at_it(small, tmp_path):
    # No held-out rows: nothing to look at.
    params = PARAMS
    nothing = replace(rows(4), images=rows(4).images[:0], labels=rows(4).labels[:0])
    found, _ = smaller_network(
        network(32), OBJECTIVE, rows(12), nothing, torch.full((12,), 1 / 12).double(), params, 24,
        tmp_path, NullTracker(),
    )  # fmt: skip
    assert equal(small[0], found)
