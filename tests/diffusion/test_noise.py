import math

import pytest
import torch

from pipeline.diffusion.noise import TIMESTEPS, NoiseLevels, make_betas

CPU = torch.device("cpu")
SCHEDULES = ["linear", "cosine", "sigmoid"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls_from_one_to_nearly_nothing(name):
    levels = NoiseLevels(name, CPU)
    assert (levels.signal[1:] < levels.signal[:-1]).all()
    assert levels.signal[0] > 0.99
    assert levels.signal[-1] < 0.02
    assert torch.allclose(levels.signal**2 + levels.noise**2, torch.ones(TIMESTEPS))


def test_linear_is_ho_et_al():
    betas = make_betas("linear")
    assert betas[0].item() == pytest.approx(1e-4)
    assert betas[-1].item() == pytest.approx(0.02)


def test_cosine_is_nichol_and_dhariwal_equation_17():
    kept = torch.cumprod(1 - make_betas("cosine"), dim=0)

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 250, 500, 900):
        assert kept[t - 1].item() == pytest.approx(f(t) / f(0), rel=1e-9)


def test_sigmoid_is_jabri_et_al():
    kept = torch.cumprod(1 - make_betas("sigmoid"), dim=0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    expected = (sigmoid(3) - sigmoid(0)) / (sigmoid(3) - sigmoid(-3))
    assert kept[499].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "sample"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_target_tells_the_clean_image(name, prediction):
    levels = NoiseLevels(name, CPU)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((5, 1, 4, 4), generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    time = torch.tensor([0, 10, 300, 600, 800])
    noisy = levels.diffuse(images, noise, time)
    target = levels.target(images, noise, time, prediction)
    assert torch.allclose(levels.clean(noisy, target, time, prediction), images, atol=2e-4)


def test_min_snr_weights_are_one_rule_in_three_units():
    # Hang et al. 2023: the x0 error is weighed by min(SNR, gamma), whatever is predicted.
    levels = NoiseLevels("cosine", CPU)
    time = torch.tensor([5, 300, 700, 990])
    snr = levels.snr[time]
    sample = levels.min_snr_weight(time, 5.0, "sample")
    assert torch.allclose(sample, snr.clamp(max=5.0))
    assert torch.allclose(levels.min_snr_weight(time, 5.0, "noise") * snr, sample)
    assert torch.allclose(levels.min_snr_weight(time, 5.0, "velocity") * (snr + 1), sample)
