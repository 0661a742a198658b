"""Samplers against a network that knows the answer: data that are one Gaussian a pixel."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.noise import NoiseLevels
from pipeline.diffusion.sampling import SamplerSettings, quadratic_times, sample
from pipeline.diffusion.unet import build_unet
from pipeline.seeds import torch_generator

CPU = torch.device("cpu")
MEANS = {0: -0.4, 1: 0.3}
DEVIATION = 0.1


class GaussianDenoiser(torch.nn.Module):
    """Predicts the exact velocity for pixels drawn from N(MEANS[label], DEVIATION**2)."""

    def __init__(self, schedule="cosine"):
        super().__init__()
        self.levels = NoiseLevels(schedule, CPU)
        self.config = {"in_channels": 1}
        self.calls = []

    def forward(self, noisy, time, class_labels):
        self.calls.append(len(noisy))
        signal, noise = self.levels.signal[time], self.levels.noise[time]
        means = torch.tensor([MEANS.get(int(label), 0.0) for label in class_labels])
        means = means[:, None, None, None]
        # E[x0 | x_t] of a Gaussian prior.
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
        clean = means + gain * (noisy - signal * means)
        epsilon = (noisy - signal * clean) / noise
        return SimpleNamespace(sample=signal * epsilon - noise * clean)


def spec(**changes):
    values = {
        "classes": ("a", "b"),
        "image_size_px": 8,
        "image_mode": "L",
        "schedule": "cosine",
        "prediction": "velocity",
        "training_rows_digest": "",
    }
    return GeneratorSpec(**{**values, **changes})


def draw(model, sampler, steps, guidance=1.0, count=64, label=0):
    settings = SamplerSettings(sampler, steps, guidance, "float32")
    generators = [torch_generator(0, "test", i) for i in range(count)]
    return sample(model, spec(), torch.full((count,), label), generators, settings, CPU)


@pytest.mark.parametrize(("sampler", "steps"), [("dpmsolver++", 20), ("ddim", 100), ("ddpm", 250)])
@pytest.mark.parametrize("label", [0, 1])
def test_samples_have_the_mean_and_the_spread_of_the_data(sampler, steps, label):
    images = draw(GaussianDenoiser(), sampler, steps, label=label)
    assert images.shape == (64, 1, 8, 8)
    assert images.mean().item() == pytest.approx(MEANS[label], abs=0.01)
    assert images.std().item() == pytest.approx(DEVIATION, rel=0.12)


def test_guidance_costs_one_call_of_twice_the_batch_and_moves_away_from_the_null_class():
    plain, guided = GaussianDenoiser(), GaussianDenoiser()
    without = draw(plain, "dpmsolver++", 10, guidance=1.0)
    with_guidance = draw(guided, "dpmsolver++", 10, guidance=2.0)
    assert plain.calls == [64] * 10
    assert guided.calls == [128] * 10
    assert with_guidance.mean() < without.mean() - 0.05


@pytest.mark.parametrize("sampler", ["dpmsolver++", "ddim", "ddpm"])
def test_the_noise_of_an_image_does_not_depend_on_its_neighbours(sampler):
    model = GaussianDenoiser()
    settings = SamplerSettings(sampler, 10, 1.0, "float32")

    def one(numbers):
        generators = [torch_generator(0, "test", i) for i in numbers]
        return sample(model, spec(), torch.zeros(len(numbers)).long(), generators, settings, CPU)

    assert torch.allclose(one([7])[0], one([3, 7, 9])[1], atol=1e-5)
    assert not torch.allclose(one([7])[0], one([3])[0], atol=1e-2)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "sample"])
@pytest.mark.parametrize("sampler", ["dpmsolver++", "ddim", "ddpm"])
def test_every_sampler_takes_every_prediction_of_a_real_network(sampler, prediction):
    model = build_unet(8, "RGB", 2, 8, seed=0)
    settings = SamplerSettings(sampler, 3, 1.5, "float32")
    generators = [torch_generator(0, "test", i) for i in range(2)]
    described = spec(image_mode="RGB", prediction=prediction)
    images = sample(model, described, torch.tensor([0, 1]), generators, settings, CPU)
    assert images.shape == (2, 3, 8, 8)
    assert torch.isfinite(images).all()
    assert images.abs().max() <= 1


@pytest.mark.parametrize("steps", [1, 2, 20, 500, 1000])
def test_quadratic_times_fall_from_the_last_to_nearly_the_first(steps):
    times = quadratic_times(steps)
    assert len(set(times)) == steps
    assert times == sorted(times, reverse=True)
    assert times[0] == 999
    assert times[-1] >= 0
    if steps > 2:
        assert times[-1] < 20
