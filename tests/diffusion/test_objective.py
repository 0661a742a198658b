from dataclasses import fields, replace

import pytest
import torch

from pipeline.diffusion.augmentation import Augmentation, feed_augmentation
from pipeline.diffusion.noise import Levels, NoiseProcess
from pipeline.diffusion.objective import Batch, Objective
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.seeds import torch_generator

EVERYTHING = Augmentation(("flip", "flip_vertical", "translate", "rotate", "scale"), 0.5)


class Recorder(torch.nn.Module):
    """Answers zero, and keeps what it was asked with."""

    def __init__(self):
        super().__init__()
        self.seen, self.time, self.labels = [], [], []

    def forward(self, seen, time, class_labels, return_dict):
        assert return_dict is False
        self.seen.append(seen)
        self.time.append(time)
        self.labels.append(class_labels)
        return (torch.zeros_like(seen),)


class Labels(torch.nn.Module):
    """Answers one number a label, wherever and whenever."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def forward(self, seen, time, class_labels, return_dict):
        labels = class_labels[0] if isinstance(class_labels, tuple) else class_labels
        return (self.values[labels][:, None, None, None].expand_as(seen),)


def make(**changes):
    values = {
        "process": NoiseProcess("cosine", "velocity"),
        "weighting": "uniform",
        "min_snr_gamma": 5.0,
        "label_dropout": 0.0,
        "null_class": 7,
        "precision": "float32",
    }
    return Objective(**{**values, **changes})


def draw(objective, count=8, side=8, seed=0, label=0):
    images = torch.rand((count, 1, side, side), generator=torch_generator(9, "images")) * 2 - 1
    return objective.draw(images, torch.full((count,), label), torch_generator(seed, "draws"))


def tensors(batch):
    levels = [getattr(batch.levels, field.name) for field in fields(Levels)]
    found = [getattr(batch, field.name) for field in fields(Batch) if field.name != "levels"]
    assert all(one is not None for one in found)
    return found + levels


def full(**changes):
    return make(augmentation=EVERYTHING, class_balance=0.5, label_dropout=0.5, **changes)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_labels_are_dropped_at_the_stated_share(share):
    model, objective = Recorder(), make(label_dropout=share)
    batch = objective.draw(torch.zeros(4000, 1, 1, 1), torch.zeros(4000).long(), generator_of(0))
    objective(model, batch)
    (labels,), (time,) = model.labels, model.time
    assert set(labels.tolist()) <= {0, 7}
    assert (labels == 7).float().mean().item() == pytest.approx(share, abs=0.03)
    assert time.mean().item() == pytest.approx(500, abs=20)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def test_draws_depend_on_the_generator_alone():
    torch.manual_seed(1)
    one = tensors(draw(full()))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    same, other = tensors(draw(full())), tensors(draw(full(), seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_noise_and_levels_do_not_depend_on_what_else_is_drawn():
    plain, rich = draw(make()), draw(full())
    assert torch.equal(plain.noise, rich.noise)
    assert torch.equal(plain.levels.time, rich.levels.time)
    assert plain.vector is None
    assert plain.others is None
    assert torch.equal(plain.labels, torch.zeros(8).long())


def test_labels_for_balancing_are_drawn_evenly_over_the_classes():
    batch = draw(make(class_balance=1.0), count=7000, side=1, label=3)
    counts = torch.bincount(batch.others)
    assert len(counts) == 7  # the null class is none
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_part_slices_everything():
    whole = draw(full())
    part = whole.part(2, 5)
    assert len(whole) == 8
    assert len(part) == 3
    for one, all_rows in zip(tensors(part), tensors(whole), strict=True):
        assert torch.equal(one, all_rows[2:5])
    bare = draw(make()).part(2, 5)
    assert bare.vector is None
    assert bare.others is None


@pytest.mark.parametrize("prediction", ["velocity", "edm"])
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_whole(prediction):
    objective = full(process=NoiseProcess("cosine", prediction), weighting="min_snr")
    model = build_unet(8, "L", 7, Preset(8, 1), seed=0)
    feed_augmentation(model)
    batch = draw(objective)

    def differentiate(bounds):
        model.zero_grad()
        total = 0.0
        for start, stop in bounds:
            part = batch.part(start, stop)
            loss = objective(model, part) * (len(part) / len(batch))
            loss.backward()
            total += loss.item()
        return total, [weight.grad.clone() for weight in model.parameters()]

    whole, gradients = differentiate([(0, 8)])
    for bounds in ([(0, 3), (3, 6), (6, 8)], [(i, i + 1) for i in range(8)]):
        found, parts = differentiate(bounds)
        assert found == pytest.approx(whole, rel=1e-5)
        for one, other in zip(parts, gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-3)
    assert model.class_embedding.augmentation.weight.grad.abs().max() > 0


def test_the_network_is_told_of_the_augmentation_in_the_batch():
    model, objective = Recorder(), make(augmentation=EVERYTHING)
    batch = draw(objective)
    objective(model, batch)
    (told,) = model.labels
    assert isinstance(told, tuple)
    assert torch.equal(told[0], batch.labels)
    assert torch.equal(told[1], batch.vector)
    assert batch.vector.abs().sum() > 0
    plain = draw(make())
    assert torch.equal(batch.images, EVERYTHING.apply(plain.images, batch.vector))
    assert not torch.equal(batch.images, plain.images)


def test_errors_are_measured_on_images_as_they_are():
    model, objective = Recorder(), full()
    images, noise = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    levels = objective.process.at(torch.tensor([0, 500]))
    labels = torch.tensor([1, 2])
    error = objective.error(model, images, labels, noise, levels)
    assert torch.equal(model.labels[0], labels)  # no vector, none dropped
    # The velocity of noiseless noise is -noise x_0.
    assert error.item() == pytest.approx(levels.noise.square().mean().item())
    assert not error.requires_grad


def test_edm_networks_see_their_input_at_unit_variance():
    model, objective = Recorder(), make(process=NoiseProcess("lognormal", "edm"))
    batch = objective.draw(
        0.5 * torch.randn((16, 1, 64, 64), generator=generator_of(0)),
        torch.zeros(16).long(),
        generator_of(1),
    )
    objective(model, batch)
    assert torch.allclose(model.seen[0].std(dim=(1, 2, 3)), torch.ones(16), atol=0.05)
    assert torch.equal(model.time[0], batch.levels.time)


def test_uniform_weighting_of_a_noise_prediction_of_zero_is_the_noise_variance():
    objective = make(process=NoiseProcess("cosine", "noise"))
    batch = objective.draw(torch.zeros(500, 1, 8, 8), torch.zeros(500).long(), generator_of(0))
    assert objective(Recorder(), batch).item() == pytest.approx(1.0, abs=0.03)


def test_min_snr_lowers_the_weight_of_nearly_clean_images():
    process = NoiseProcess("cosine", "noise")
    images, noise = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    levels, labels = process.at(torch.tensor([1, 1])), torch.zeros(2).long()
    plain, weighted = (
        make(process=process, weighting=weighting).error(Recorder(), images, labels, noise, levels)
        for weighting in ("uniform", "min_snr")
    )
    assert weighted < 0.01 * plain
    assert weighted.item() == pytest.approx(5.0 / levels.snr[0].item(), rel=1e-4)


def balanced(labels, others, values, tau=0.3, weighting="min_snr", with_term=True):
    """The loss, its gradient for each label's answer, and each row's factor of the term."""
    process = NoiseProcess("cosine", "velocity")
    objective = make(process=process, weighting=weighting, null_class=3, class_balance=tau)
    count = len(labels)
    levels = process.at(torch.tensor([50, 300, 500, 700, 900])[:count])
    batch = Batch(
        images=torch.rand((count, 1, 4, 4), generator=generator_of(0)),
        labels=torch.tensor(labels),
        noise=torch.randn((count, 1, 4, 4), generator=generator_of(1)),
        levels=levels,
        vector=None,
        others=torch.tensor(others) if with_term else None,
    )
    model = Labels(values)
    loss = objective(model, batch)
    loss.backward()
    factor = tau * levels.time / 1000 * process.weight(levels, weighting, 5.0) / count
    return loss.item(), model.values.grad, factor


VALUES = [0.5, -1.0, 2.0, 9.0]


def term(labels, others, values=VALUES, **changes):
    loss, gradient, factor = balanced(labels, others, values, **changes)
    without, plain, _ = balanced(labels, others, values, with_term=False, **changes)
    return loss - without, gradient - plain, factor


@pytest.mark.parametrize("weighting", ["min_snr", "uniform"])
def test_the_balancing_term_is_qin_et_al_equation_8(weighting):
    labels, others = [0, 1, 2, 0, 1], [1, 1, 0, 2, 0]
    found, gradient, factor = term(labels, others, weighting=weighting)
    expected, expected_gradient = 0.0, torch.zeros(4)
    for y, other, f in zip(labels, others, factor.tolist(), strict=True):
        gap = VALUES[y] - VALUES[other]
        expected += f * (gap**2 + 0.25 * gap**2)
        # The stop-gradients: the first square moves f(x, y) alone, the second f(x, y') alone.
        expected_gradient[y] += f * 2 * gap
        expected_gradient[other] -= f * 0.25 * 2 * gap
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


def test_the_balancing_term_grows_with_tau():
    (small, *_), (large, *_) = (term([0, 1], [1, 2], tau=tau) for tau in (0.1, 0.3))
    assert small > 0.01
    assert large == pytest.approx(3 * small, rel=1e-4)


def test_equal_predictions_need_no_balancing():
    found, gradient, _ = term([0, 1, 2], [0, 1, 2])
    assert found == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6
    found, gradient, _ = term([0, 1, 2], [1, 2, 0], values=[0.7] * 4)
    assert found == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


def test_rows_of_the_null_class_add_nothing_to_the_balancing_term():
    found, gradient, _ = term([3, 3, 3], [0, 1, 2])
    assert found == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6
    mixed, _, factor = term([3, 0, 3], [0, 1, 2])
    assert mixed == pytest.approx(1.25 * 1.5**2 * factor[1].item(), rel=1e-4)


def test_balancing_asks_the_network_twice_with_the_same_noisy_images():
    model, objective = Recorder(), full()
    batch = draw(objective)
    objective(model, batch)
    assert torch.equal(model.seen[0], model.seen[1])
    assert torch.equal(model.time[0], model.time[1])
    assert torch.equal(model.labels[0][0], batch.labels)
    assert torch.equal(model.labels[1][0], batch.others)
    assert torch.equal(model.labels[0][1], model.labels[1][1])
    alone = Recorder()
    objective(alone, replace(batch, others=None))
    assert len(alone.seen) == 1
