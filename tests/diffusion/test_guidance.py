"""Guidance against networks that know the answer, and what it costs."""

import math

import pytest
import torch

from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.guidance import Denoiser, Guidance
from pipeline.diffusion.ladders import make_ladder
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.seeds import torch_generator

CPU = torch.device("cpu")
SPEC = GeneratorSpec(("a", "b"), 8, "L", "cosine", "sample", False, "", None)
NULL = 2
LADDER = make_ladder(SPEC.process, 20, "quadratic")
LEVELS = {"all": (0.0, math.inf), "some": (0.3, 3.0)}


class Gaussian(torch.nn.Module):
    """Predicts E[x_0 | x] for pixels drawn from N(means[label], deviation**2)."""

    def __init__(self, means, deviation=0.1):
        super().__init__()
        self.means, self.deviation = means, deviation
        betas = SPEC.process.betas
        self.kept = torch.cumprod(1 - betas, dim=0)
        self.config = {"in_channels": 1}
        self.calls = []

    def forward(self, seen, time, class_labels, return_dict=False):
        self.calls.append((len(seen), class_labels.tolist()))
        kept = self.kept[time.long()][:, None, None, None]
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        means = torch.tensor([self.means[int(label)] for label in class_labels])
        means = means[:, None, None, None].double()
        gain = signal * self.deviation**2 / (signal**2 * self.deviation**2 + noise**2)
        return ((means + gain * (seen.double() - signal * means)).float(),)


def network(means=(-0.3, 0.2, 0.0), deviation=0.1):
    return Gaussian(means, deviation)


def call(module):
    """A module as `Denoiser` calls it."""
    return lambda seen, time, labels: module(seen, time, class_labels=labels)[0]


def draw(guidance, main, weaker=None, sampler="dpmsolver++", steps=20):
    labels = torch.tensor([0, 1, 1])
    noise = [torch_generator(0, "test", i) for i in range(3)]
    settings = SamplerSettings(sampler, steps, guidance)
    return sample(main, SPEC, labels, noise, settings, CPU, weaker)


def denoise(guidance, rung, main, weaker=None):
    labels = torch.tensor([0, 1])
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    guide = None if weaker is None else call(weaker)
    denoiser = Denoiser(call(main), guide, SPEC.process, LADDER, labels, NULL, guidance)
    return x, denoiser(x, rung)


def clean(module, x, rung, labels):
    time = torch.full((len(x),), float(LADDER.times[rung]))
    return module(x, time, class_labels=torch.tensor(labels))[0]


@pytest.mark.parametrize("rung", [2, 10, 19])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("guide", ["null_class", "weaker"])
def test_the_clean_image_is_drawn_away_from_the_guides(rung, weight, guide):
    main, weaker = network(), network((-0.1, 0.1, 0.5), 0.2)
    x, found = denoise(Guidance(weight, guide=guide), rung, main, weaker)
    seen = clean(main, x, rung, [0, 1])
    other = clean(weaker, x, rung, [0, 1]) if guide == "weaker" else clean(main, x, rung, [2, 2])
    expected = other + weight * (seen - other)
    assert torch.allclose(found, expected.clamp(-1, 1), atol=1e-6)
    assert not torch.allclose(found, seen, atol=1e-3)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "sample", "edm"])
def test_what_is_predicted_makes_no_difference_to_guidance(prediction):
    # All predictions are linear in the clean image, so guiding either is one and the same.
    process = NoiseProcess("cosine", prediction, False)
    main, rung = network(), 8
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    level = process.at(torch.full((2,), LADDER.times[rung]))

    def predict(seen, time, labels):
        noisy = torch.cat([x] * (len(seen) // 2))
        target = main(noisy, time, class_labels=labels)[0]
        levels = process.at(torch.full((len(seen),), LADDER.times[rung]))
        noise = (noisy - levels.signal[:, None, None, None] * target) / levels.noise[
            :, None, None, None
        ]
        return process.target(target, noise, levels)

    denoiser = Denoiser(predict, None, process, LADDER, torch.tensor([0, 1]), NULL, Guidance(2.0))
    other, seen = clean(main, x, rung, [2, 2]), clean(main, x, rung, [0, 1])
    assert torch.allclose(denoiser(x, rung), (2 * seen - other).clamp(-1, 1), atol=1e-4)
    assert level.signal[0] == pytest.approx(LADDER.signal[rung], rel=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_null_class_is_asked_in_the_same_call_and_only_where_guidance_acts(levels):
    low, high = LEVELS[levels]
    main = network()
    draw(Guidance(2.0, low, high), main)
    acts = [low < LADDER.sigma(rung) <= high for rung in range(20)]
    assert [n for n, _ in main.calls] == [6 if one else 3 for one in acts]
    assert [labels for n, labels in main.calls if n == 6] == [[0, 1, 1, NULL, NULL, NULL]] * sum(
        acts
    )
    assert 0 < sum(acts) <= 20
    assert (sum(acts) == 20) == (levels == "all")


@pytest.mark.parametrize("levels", LEVELS)
def test_the_weaker_network_is_told_the_same_labels_and_only_where_guidance_acts(levels):
    low, high = LEVELS[levels]
    main, weaker = network(), network((0.0, 0.0, 0.0))
    draw(Guidance(2.0, low, high, "weaker"), main, weaker)
    acts = sum(low < LADDER.sigma(rung) <= high for rung in range(20))
    assert main.calls == [(3, [0, 1, 1])] * 20
    assert weaker.calls == [(3, [0, 1, 1])] * acts


def test_the_ends_of_the_interval():
    guidance = Guidance(2.0, 0.5, 2.0)
    assert [guidance.acts(sigma) for sigma in (0.4, 0.5, 0.51, 2.0, 2.01)] == [
        False, False, True, True, False,
    ]  # fmt: skip
    assert not Guidance(1.0).acts(1.0)


@pytest.mark.parametrize("guide", ["null_class", "weaker"])
def test_weight_1_is_no_guidance_and_costs_nothing(guide):
    main, weaker = network(), network((0.0, 0.0, 0.0))
    guided = draw(Guidance(1.0, guide=guide), main, weaker)
    plain = draw(Guidance(), network())
    assert torch.equal(guided, plain)
    assert [n for n, _ in main.calls] == [3] * 20
    assert weaker.calls == []


def test_a_guide_that_is_there_and_not_asked_for_is_not_run():
    main, weaker = network(), network((0.0, 0.0, 0.0))
    with_it = draw(Guidance(2.0), main, weaker)
    assert weaker.calls == []
    assert torch.equal(with_it, draw(Guidance(2.0), network()))


def test_a_guide_as_good_as_the_network_changes_nothing():
    plain = draw(Guidance(), network())
    assert torch.allclose(draw(Guidance(3.0, guide="weaker"), network(), network()), plain)


def test_autoguidance_without_a_weaker_network_is_refused():
    with pytest.raises(ValueError, match="autoguidance needs a weaker network"):
        draw(Guidance(2.0, guide="weaker"), network())


def test_autoguidance_undoes_what_the_weaker_network_does_more():
    # Both err towards the other class, the weaker one twice as much: weight 2 takes all of it back.
    right, worse, worst = (network((-m, m, 0.0)) for m in (0.4, 0.3, 0.2))
    truth = draw(Guidance(), right)
    mended = draw(Guidance(2.0, guide="weaker"), worse, worst)
    assert (mended - truth).abs().mean() < 0.01
    assert (draw(Guidance(), worse) - truth).abs().mean() > 0.05


@pytest.mark.parametrize("sampler", ["dpmsolver++", "heun", "ddim", "unipc", "ddpm"])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("guide", ["null_class", "weaker"])
@pytest.mark.parametrize("steps", [1, 11])
def test_the_evaluations_of_an_image_are_counted(sampler, levels, guide, steps):
    guidance = Guidance(2.0, *LEVELS[levels], guide)
    main, weaker = network(), network((0.0, 0.0, 0.0))
    draw(guidance, main, weaker, sampler, steps)
    done = sum(n for n, _ in main.calls + weaker.calls)
    assert SamplerSettings(sampler, steps, guidance).evaluations(SPEC.process) == done / 3


@pytest.mark.parametrize(
    ("guidance", "text"),
    [
        (Guidance(), "no guidance"),
        (Guidance(1.0, 0.3, 3.0, "weaker"), "no guidance"),
        (Guidance(1.5), "classifier-free guidance 1.5"),
        (Guidance(2, 0.3, 3), "classifier-free guidance 2 at sigma 0.3 to 3"),
        (Guidance(3, guide="weaker"), "autoguidance 3"),
    ],
)
def test_guidance_in_words(guidance, text):
    assert guidance.describe() == text
