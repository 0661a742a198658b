"""Samplers against a network that knows the answer: data that are one Gaussian a pixel."""

import math

import pytest
import torch

from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.noise import SIGMA_DATA, make_betas
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.seeds import torch_generator

CPU = torch.device("cpu")
MEANS = {0: -0.4, 1: 0.3}
DEVIATION = 0.1
PREDICTIONS = ["noise", "velocity", "sample", "edm"]
SCHEDULES = ["linear", "cosine", "sigmoid", "lognormal"]
SAMPLERS = [
    ("dpmsolver++", 20),
    ("dpmsolver++sde", 40),
    ("unipc", 20),
    ("heun", 39),
    ("ddim", 60),
    ("ddpm", 150),
]
NAMES = [name for name, _ in SAMPLERS]


def spec(**changes):
    values = {
        "classes": ("a", "b"),
        "image_size_px": 8,
        "image_mode": "L",
        "schedule": "cosine",
        "prediction": "velocity",
        "zero_terminal_snr": False,
        "training_rows_digest": "",
        "base_digest": None,
    }
    return GeneratorSpec(**{**values, **changes})


class GaussianDenoiser(torch.nn.Module):
    """Predicts exactly what it is asked for, for pixels drawn from N(MEANS[label], DEVIATION**2).

    It works out its noise level from the time alone, in float64, and knows no `NoiseProcess`.
    """

    def __init__(self, described):
        super().__init__()
        self.schedule, self.prediction = described.schedule, described.prediction
        betas = make_betas(described.schedule, described.zero_terminal_snr)
        self.kept = torch.cumprod(1 - betas, dim=0)
        self.config = {"in_channels": 1}
        self.calls = []

    def level(self, time):
        if self.schedule == "lognormal":
            angle = time.double() * math.pi / 2000
            return angle.cos(), angle.sin()
        kept = self.kept[time.long()]
        return kept.sqrt(), (1 - kept).sqrt()

    def forward(self, seen, time, class_labels, return_dict):
        assert return_dict is False
        self.calls.append(len(seen))
        signal, noise = (one[:, None, None, None] for one in self.level(time))
        total = (noise**2 + (SIGMA_DATA * signal) ** 2).sqrt()
        noisy = seen * total if self.prediction == "edm" else seen.double()
        means = torch.tensor([MEANS.get(int(label), 0.0) for label in class_labels])
        means = means[:, None, None, None]
        # E[x0 | x_t] of a Gaussian prior.
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
        clean = means + gain * (noisy - signal * means)
        epsilon = (noisy - signal * clean) / noise
        answer = {
            "noise": epsilon,
            "velocity": signal * epsilon - noise * clean,
            "sample": clean,
            "edm": (clean - SIGMA_DATA**2 * signal / total**2 * noisy)
            / (SIGMA_DATA * noise / total),
        }[self.prediction]
        return (answer.float(),)


def draw(described, sampler, steps, guidance=1.0, count=64, label=0):
    model = GaussianDenoiser(described)
    settings = SamplerSettings(sampler, steps, Guidance(guidance))
    generators = [torch_generator(0, "test", i) for i in range(count)]
    labels = torch.full((count,), label)
    return sample(model, described, labels, generators, settings, CPU), model.calls


def expect_the_data(images, label):
    assert images.shape == (64, 1, 8, 8)
    assert images.mean().item() == pytest.approx(MEANS[label], abs=0.01)
    assert images.std().item() == pytest.approx(DEVIATION, rel=0.12)


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("label", [0, 1])
def test_samples_have_the_mean_and_the_spread_of_the_data(sampler, steps, prediction, label):
    images, _ = draw(spec(prediction=prediction), sampler, steps, label=label)
    expect_the_data(images, label)


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_every_schedule_is_stepped_back_through(sampler, steps, schedule, zero_terminal_snr):
    # The most unlike of the predictions; noise says nothing of pure noise.
    described = spec(schedule=schedule, prediction="edm", zero_terminal_snr=zero_terminal_snr)
    expect_the_data(draw(described, sampler, steps, label=1)[0], 1)


def test_every_level_can_be_stepped_through_where_the_last_ones_are_nearly_pure_noise():
    # Three levels of `linear` were once one and the same to the solver: 0 / 0 at 1,000 steps.
    described = spec(schedule="linear", zero_terminal_snr=True)
    expect_the_data(draw(described, "dpmsolver++", 1000, label=1)[0], 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("prediction", "zero_terminal_snr"),
    [(p, z) for p in PREDICTIONS for z in (False, True) if not (z and p == "noise")],
)
def test_what_is_predicted_makes_no_difference(schedule, prediction, zero_terminal_snr):
    shared = {"schedule": schedule, "zero_terminal_snr": zero_terminal_snr}
    found, _ = draw(spec(prediction=prediction, **shared), "dpmsolver++", 20)
    expected, _ = draw(spec(prediction="sample", **shared), "dpmsolver++", 20)
    expect_the_data(found, 0)
    assert torch.allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_costs_one_call_of_twice_the_batch_and_moves_away_from_the_null_class(prediction):
    described = spec(prediction=prediction)
    without, plain = draw(described, "dpmsolver++", 10, guidance=1.0)
    with_guidance, guided = draw(described, "dpmsolver++", 10, guidance=2.0)
    assert plain == [64] * 10
    assert guided == [128] * 10
    assert with_guidance.mean() < without.mean() - 0.05


@pytest.mark.parametrize("sampler", NAMES)
def test_the_noise_of_an_image_does_not_depend_on_its_neighbours(sampler):
    model = GaussianDenoiser(spec())
    settings = SamplerSettings(sampler, 10)

    def one(numbers):
        generators = [torch_generator(0, "test", i) for i in numbers]
        return sample(model, spec(), torch.zeros(len(numbers)).long(), generators, settings, CPU)

    assert torch.allclose(one([7])[0], one([3, 7, 9])[1], atol=1e-5)
    assert not torch.allclose(one([7])[0], one([3])[0], atol=1e-2)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", NAMES)
def test_every_sampler_takes_every_prediction_of_a_real_network(sampler, prediction):
    model = build_unet(8, "RGB", 2, Preset(8, 1), seed=0).eval()
    settings = SamplerSettings(sampler, 3, Guidance(1.5))
    generators = [torch_generator(0, "test", i) for i in range(2)]
    described = spec(image_mode="RGB", prediction=prediction)
    images = sample(model, described, torch.tensor([0, 1]), generators, settings, CPU)
    assert images.shape == (2, 3, 8, 8)
    assert torch.isfinite(images).all()
    assert images.abs().max() <= 1
