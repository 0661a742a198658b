"""Distillation: targets against float64 DDIM, plans, and a student that learns on stripes."""

import math

import numpy as np
import pytest
import torch
from tiny_store import stripes, train_params

from pipeline.diffusion.checkpoints import (
    GeneratorSpec,
    StudentSpec,
    load_student,
    read_student,
    save_student,
)
from pipeline.diffusion.distillation import (
    consistency_loss,
    consistency_target,
    make_plan,
    noisy_at,
    progressive_loss,
    progressive_target,
    step_down,
)
from pipeline.diffusion.fitting import make_objective, to_rows
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.ladders import make_ladder
from pipeline.diffusion.loop import class_chances
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.solvers import ddim_step
from pipeline.diffusion.teaching import teach
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.folders import write_json
from pipeline.params import check_params
from pipeline.seeds import torch_generator
from pipeline.tracking.tracker import NullTracker

CPU = torch.device("cpu")
SPEC = GeneratorSpec(("rows", "columns"), 8, "L", "cosine", "velocity", False, "", None)
MEAN, DEVIATION = 0.3, 0.1
SCHEDULES = ["linear", "cosine", "sigmoid", "lognormal"]


def process(schedule="cosine", zero_terminal_snr=False, prediction="velocity"):
    return NoiseProcess(schedule, prediction, zero_terminal_snr)


def gaussian(ladder):
    """Return what sees E[x_0 | x] of pixels from N(MEAN, DEVIATION**2), at the ladder's levels."""

    def see(x, rungs):
        signal, noise = (torch.tensor(v).double()[rungs] for v in (ladder.signal, ladder.noise))
        signal, noise = (one[:, None, None, None].to(x.dtype) for one in (signal, noise))
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
        return (MEAN + gain * (x - signal * MEAN)).clamp(-1, 1)

    return see


def noisy(ladder, count, dtype=torch.float64, stride=1):
    generator = torch.Generator().manual_seed(0)
    images = MEAN + DEVIATION * torch.randn((count, 1, 4, 4), generator=generator, dtype=dtype)
    noise = torch.randn((count, 1, 4, 4), generator=generator, dtype=dtype)
    rungs = torch.arange(count) * stride % len(ladder)
    return noisy_at(ladder, images, noise, rungs), rungs


# Targets


@pytest.mark.parametrize("spacing", ["quadratic", "even", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_one_step_to_the_target_ends_where_two_of_the_teacher_do(
    schedule, zero_terminal_snr, spacing
):
    ladder = make_ladder(process(schedule, zero_terminal_snr), 8, spacing)
    see = gaussian(ladder)
    x, rungs = noisy(ladder, 4, stride=2)
    target = progressive_target(ladder, see, x, rungs)
    for i, rung in enumerate(rungs.tolist()):
        one = x[i : i + 1]
        expected = one
        for below in (rung, rung + 1):
            clean = see(expected, torch.tensor([below]))
            expected = ddim_step(expected, clean, ladder, below)
        found = ddim_step(one, target[i : i + 1], ladder, rung, to=rung + 2)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    exact = progressive_target(ladder, see, x.float(), rungs)
    assert torch.allclose(exact.double(), target, rtol=0, atol=1e-5)
    assert target.abs().max() <= 1


def test_at_the_last_rung_the_target_is_the_second_clean_image():
    ladder = make_ladder(process(), 4, "quadratic")
    see = gaussian(ladder)
    x, _ = noisy(ladder, 5)
    rungs = torch.full((5,), 2)
    below = step_down(ladder, x, see(x, rungs), rungs)
    target = progressive_target(ladder, see, x, rungs)
    assert torch.equal(target, see(below, rungs + 1))
    assert torch.isfinite(target).all()


def test_the_targets_of_clipped_images_are_not_outside():
    ladder = make_ladder(process(), 32, "quadratic")
    x, rungs = noisy(ladder, 16, torch.float32, stride=2)
    images = iter([torch.ones_like(x), -torch.ones_like(x)])
    target = progressive_target(ladder, lambda x, rungs: next(images), x, rungs)
    assert target.abs().max() <= 1


@pytest.mark.parametrize("count", [1, 2, 8])
def test_consistency_looks_one_step_down_and_below_the_last_rung_is_clean(count):
    ladder = make_ladder(process(), count, "quadratic")
    see = gaussian(ladder)
    x, at = noisy(ladder, 8)

    def student(x, rungs):
        return 100.0 * rungs[:, None, None, None] + x

    target = consistency_target(ladder, see, student, x, at)
    for i, rung in enumerate(at.tolist()):
        one = x[i : i + 1]
        below = ddim_step(one, see(one, torch.tensor([rung])), ladder, rung)
        expected = below if rung + 1 == count else 100.0 * (rung + 1) + below
        assert torch.allclose(target[i : i + 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_student_that_agrees_with_its_teacher_has_no_loss(schedule):
    # Of a single image the teacher sees the same from everywhere: so does a copy of it.
    ladder = make_ladder(process(schedule), 16, "quadratic")
    image = torch.full((8, 1, 4, 4), 0.25)
    rungs = torch.arange(8) * 2
    x = noisy_at(ladder, image, torch.ones_like(image), rungs)

    def see(x, rungs):
        return image

    assert progressive_loss(ladder, image, progressive_target(ladder, see, x, rungs), rungs) == 0
    target = consistency_target(ladder, see, see, x, rungs + 1)
    assert consistency_loss(image, target).item() == pytest.approx(0, abs=1e-7)


def test_losses_in_closed_form():
    ladder = make_ladder(process(), 4, "quadratic")
    clean, target = torch.zeros(4, 1, 2, 2), torch.full((4, 1, 2, 2), 0.5)
    ratios = [(ladder.signal[i] / ladder.noise[i]) ** 2 for i in range(4)]
    expected = np.mean([0.25 * max(ratio, 1.0) for ratio in ratios])
    assert progressive_loss(ladder, clean, target, torch.arange(4)) == pytest.approx(expected)
    c = 0.00054 * 2
    huber = math.sqrt(4 * 0.25 + c**2) - c
    assert consistency_loss(clean, target).item() == pytest.approx(huber, rel=1e-5)


# Plans


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [8, 4, 2, 1])
@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_a_student_stands_on_rungs_of_its_teacher(schedule, steps, method):
    plan = make_plan(method, process(schedule), steps, 1.5, None, 600)
    assert plan.times == make_ladder(process(schedule), steps, "quadratic").times
    assert set(plan.times) <= set(plan.phases[-1].ladder.times)
    for phase, after in zip(plan.phases, plan.phases[1:], strict=False):
        assert after.ladder.times == phase.ladder.times[::2]
    assert [phase.guidance for phase in plan.phases] == [1.5] + [1.0] * (len(plan.phases) - 1)
    assert plan.sampler == ("ddim" if method == "progressive" else "consistency")


@pytest.mark.parametrize("steps", [8, 4, 2, 1])
@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_distillation_costs_about_a_training_however_many_phases(steps, method):
    plan = make_plan(method, process(), steps, 1.5, None, 600)
    own = 3 if method == "progressive" else 4
    cost = sum((own + phase.evaluations) * plan.phase_steps for phase in plan.phases)
    assert cost == pytest.approx(3 * 600, rel=0.05)
    assert plan.steps == plan.phase_steps * len(plan.phases)
    assert make_plan(method, process(), steps, 1.5, 7, 600).phase_steps == 7
    assert make_plan(method, process(), steps, 1.5, None, 1).phase_steps == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"distill": "progressive", "prediction": "noise"},
            "prediction noise says next to nothing",
        ),
        (
            {"distill": "consistency", "prediction": "noise"},
            "prediction noise says next to nothing",
        ),
        ({"distill": "consistency", "prediction": "sample"}, "distill consistency needs a network"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_any_work(changes, message):
    with pytest.raises(InputError, match=message):
        check_params({"train": changes}, "params.yaml")
    assert check_params({"train": {"distill": "progressive", "prediction": "sample"}}, "p")


# The loop


class Recorder(NullTracker):
    def __init__(self, stop_at=None):
        self.losses, self.notes, self.stop_at = [], [], stop_at

    def metrics(self, values, step=None):
        self.losses.append((step, values["distill/loss"]))

    def note(self, message):
        self.notes.append(message)

    def progress(self, task, done, total, unit):
        if done == self.stop_at:
            raise KeyboardInterrupt


ROWS = stripes([12, 8], "train", 0)


def learn(folder, tracker=None, method="progressive", model=None, plan=None, digest="d", **changes):
    values = {"checkpoint_every_steps": 4, "batch_images": 8, **changes}
    params = train_params(distill=method, **values)
    model = model or build_unet(8, "L", 2, Preset(8, 1), 0)
    plan = plan or make_plan(method, SPEC.process, 4, 1.5, 6, 600)
    beats = []
    student = teach(
        model,
        digest,
        SPEC,
        to_rows(ROWS, CPU),
        class_chances(torch.from_numpy(ROWS.labels), 0.5),
        plan,
        params,
        "float32",
        folder / "distilling",
        tracker or NullTracker(),
        lambda: beats.append(1),
    )
    assert beats
    return student


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_a_killed_distillation_ends_with_the_same_bits(tmp_path, method):
    model = build_unet(8, "L", 2, Preset(8, 1), 0, dropout=0.5)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    whole = learn(tmp_path / "whole", method=method, model=model)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert not same(whole, model)
    for stop_at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path / "broken", Recorder(stop_at), method, model=model)
    assert (tmp_path / "broken" / "distilling").is_dir()
    tracker = Recorder()
    resumed = learn(tmp_path / "broken", tracker, method, model=model)
    assert tracker.notes == ["distil: goes on from step 4"]
    assert same(resumed, whole)
    assert not (tmp_path / "broken" / "distilling").exists()
    assert not resumed.training
    assert not any(weight.requires_grad for weight in resumed.parameters())


def test_it_goes_on_in_a_later_phase_too(tmp_path):
    whole = learn(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "broken", Recorder(stop_at=11))
    assert same(learn(tmp_path / "broken"), whole)


def test_a_checkpoint_of_another_teachers_student_is_not_taken_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, Recorder(stop_at=5), digest="another")
    tracker = Recorder()
    assert same(learn(tmp_path, tracker), learn(tmp_path / "fresh"))
    assert tracker.notes == []


def test_parts_of_a_batch_give_the_same_step(tmp_path):
    plan = make_plan("progressive", SPEC.process, 8, 1.5, 1, 600)
    found = []
    for size in (None, 3):
        tracker = Recorder()
        learn(tmp_path, tracker, plan=plan, micro_batch_images=size)
        found.append(tracker.losses[0][1])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_it(tmp_path):
    model = build_unet(8, "L", 2, Preset(8, 1), 0)
    with torch.no_grad():
        model.conv_out.weight.fill_(math.inf)
    with pytest.raises(StageError, match=r"distil: the loss is not finite at step 1; lower train"):
        learn(tmp_path, model=model)


@pytest.mark.slow
def test_a_student_of_four_steps_goes_where_many_steps_of_its_teacher_go(tmp_path):
    rows = to_rows(stripes([60, 60], "train", 0), CPU)
    model = build_unet(8, "L", 2, Preset(8, 1), 0)
    params = train_params(batch_images=32)
    objective = make_objective(params, "float32", 2, 0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        generator = torch_generator(0, "toy", step)
        chosen = torch.randint(len(rows.labels), (32,), generator=generator)
        batch = objective.draw(rows.images[chosen], rows.labels[chosen], generator)
        torch.autograd.backward(objective(model, batch))
        optimiser.step()
        optimiser.zero_grad()
    model.eval().requires_grad_(False)
    plan = make_plan("progressive", SPEC.process, 4, 1.5, 60, 150)
    chances = class_chances(rows.labels, 0.5)
    student = teach(
        model, "d", SPEC, rows, chances, plan, params, "float32", tmp_path, NullTracker(),
        lambda: None,
    )  # fmt: skip

    def draw(model, settings):
        labels = torch.arange(64) % 2
        noise = [torch_generator(0, "draw", i) for i in range(64)]
        return sample(model, SPEC, labels, noise, settings, CPU)

    many = draw(model, SamplerSettings("ddim", 64, Guidance(1.5)))
    few = draw(model, SamplerSettings("ddim", 4, Guidance(1.5)))
    taught = draw(student, SamplerSettings(plan.sampler, 4, times=plan.times))
    assert (taught - many).square().mean() < 0.7 * (few - many).square().mean()


# On disk


TAUGHT = StudentSpec("progressive", "ddim", (999, 249), 1.5, (8, 4), 10, "d")


def test_a_student_is_read_as_it_was_written(tmp_path):
    model = build_unet(8, "L", 2, Preset(8, 1), 0)
    digest = save_student(tmp_path / "student", SPEC, TAUGHT, model)
    found = load_student(tmp_path / "student", CPU)
    assert (found.spec, found.generator.spec) == (TAUGHT, SPEC)
    assert found.generator.digest == digest
    other = StudentSpec("progressive", "ddim", (999,), 1.5, (8, 4), 10, "d")
    assert save_student(tmp_path / "other", SPEC, other, model) != digest


@pytest.mark.parametrize(
    "changes",
    [
        {"times": [249, 999]},
        {"times": [999, 999]},
        {"times": [1000, 3]},
        {"times": [3, -1]},
        {"times": []},
        {"times": None},
        {"steps": 3},
        {"sampler": "ddpm"},
        {"more": 1},
    ],
)
def test_a_damaged_student_is_refused(tmp_path, changes):
    plain = {**TAUGHT.__dict__, "steps": 2, **changes}
    write_json(tmp_path / "student.json", plain)
    with pytest.raises(InputError, match="not a readable student .*replenish train --force"):
        read_student(tmp_path)
    write_json(tmp_path / "student.json", [1])
    with pytest.raises(InputError, match="not a readable student"):
        read_student(tmp_path)
