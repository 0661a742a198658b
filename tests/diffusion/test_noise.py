import math

import pytest
import torch

from pipeline.diffusion import noise as module
from pipeline.diffusion.noise import SIGMA_DATA, TIMESTEPS, Levels, NoiseProcess, make_betas

SCHEDULES = ["linear", "cosine", "sigmoid", "lognormal"]
PREDICTIONS = ["noise", "velocity", "sample", "edm"]


def levels_of(sigma):
    """Levels of given sigma = noise / signal, in float64; the time does not matter."""
    signal = 1 / (1 + sigma**2).sqrt()
    return Levels(signal, sigma * signal, torch.zeros_like(sigma))


def normal(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wide(values):
    return values[:, None, None, None]


@pytest.mark.parametrize("name", SCHEDULES)
def test_signal_falls_from_one_to_nearly_nothing(name):
    levels = NoiseProcess(name, "velocity").at(torch.arange(TIMESTEPS))
    assert (levels.signal[1:] < levels.signal[:-1]).all()
    assert levels.signal[0] > 0.99
    assert levels.signal[-1] < 0.02
    assert torch.allclose(levels.signal**2 + levels.noise**2, torch.ones(TIMESTEPS))
    assert torch.allclose(levels.snr, (levels.signal / levels.noise) ** 2)


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


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_target_tells_the_clean_image(name, prediction):
    process = NoiseProcess(name, prediction)
    images = normal((5, 1, 4, 4), dtype=torch.float32).clamp(-1, 1)
    noise = normal(images.shape, 1, torch.float32)
    steps = torch.tensor([0, 10, 300, 600, 800])
    for levels in (process.at(steps), process.spread(5)):
        noisy = process.diffuse(images, noise, levels)
        target = process.target(images, noise, levels)
        assert torch.allclose(process.clean(noisy, target, levels), images, atol=2e-4)


@pytest.mark.parametrize("prediction", ["velocity", "sample", "edm"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_pure_noise_has_a_target_that_tells_the_clean_image(name, prediction):
    process = NoiseProcess(name, prediction, zero_terminal_snr=True)
    levels = process.at(torch.tensor([TIMESTEPS - 1]))
    images, noise = normal((1, 1, 4, 4)).float(), normal((1, 1, 4, 4), 1).float()
    noisy = process.diffuse(images, noise, levels)
    assert torch.equal(noisy, noise)
    target = process.target(images, noise, levels)
    assert torch.allclose(process.clean(noisy, target, levels), images, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_only_edm_sees_its_input_at_unit_variance(prediction):
    process = NoiseProcess("lognormal", prediction)
    levels = process.spread(6)
    images = SIGMA_DATA * normal((6, 1, 200, 200), dtype=torch.float32)
    noisy = process.diffuse(images, normal(images.shape, 1, torch.float32), levels)
    seen = process.network_input(noisy, levels)
    if prediction != "edm":
        assert torch.equal(seen, noisy)
        assert seen.std(dim=(1, 2, 3)).min() < 0.7
    else:
        assert torch.allclose(seen.std(dim=(1, 2, 3)), torch.ones(6), atol=0.02)


def test_edm_is_the_preconditioning_of_karras_et_al():
    # Table 1 and equations 7 and 8 of Karras et al. 2022, in their x = y + sigma n.
    sigma = torch.logspace(-2.5, 2, 7, dtype=torch.float64)
    s, levels, process = SIGMA_DATA, levels_of(sigma), NoiseProcess("lognormal", "edm")
    y, n, f = (normal((7, 2, 3, 3), seed) for seed in range(3))
    x = y + wide(sigma) * n
    c_skip = s**2 / (sigma**2 + s**2)
    c_out = sigma * s / (sigma**2 + s**2).sqrt()
    c_in = 1 / (sigma**2 + s**2).sqrt()
    ours = process.diffuse(y, n, levels)
    assert torch.allclose(ours / wide(levels.signal), x)
    assert torch.allclose(process.network_input(ours, levels), wide(c_in) * x)
    assert torch.allclose(process.clean(ours, f, levels), wide(c_skip) * x + wide(c_out) * f)
    target = (y - wide(c_skip) * x) / wide(c_out)
    assert torch.allclose(process.target(y, n, levels), target)
    weight = (sigma**2 + s**2) / (sigma * s) ** 2 * c_out**2
    assert torch.allclose(process.weight(levels, "edm", 5.0), weight)
    assert torch.allclose(weight, torch.ones_like(sigma))


def test_edm_of_data_of_unit_spread_is_minus_the_velocity(monkeypatch):
    monkeypatch.setattr(module, "SIGMA_DATA", 1.0)
    edm, velocity = NoiseProcess("cosine", "edm"), NoiseProcess("cosine", "velocity")
    levels = edm.at(torch.tensor([0, 100, 500, 998]))
    images, noise, answer = (normal((4, 1, 3, 3), seed).float() for seed in range(3))
    noisy = edm.diffuse(images, noise, levels)
    target = edm.target(images, noise, levels)
    assert torch.allclose(target, -velocity.target(images, noise, levels), atol=1e-6)
    assert torch.allclose(
        edm.clean(noisy, answer, levels), velocity.clean(noisy, -answer, levels), atol=1e-6
    )
    assert torch.allclose(edm.network_input(noisy, levels), noisy)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["min_snr", "edm"])
def test_a_weighting_is_one_rule_for_the_clean_image_in_the_units_of_the_prediction(
    weighting, prediction
):
    # An error d of the prediction is one of J d of the clean image.
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    levels, process = levels_of(sigma), NoiseProcess("cosine", prediction)
    noisy, predicted = normal((9, 1, 1, 1)), normal((9, 1, 1, 1), 1)
    slope = process.clean(noisy, predicted + 1, levels) - process.clean(noisy, predicted, levels)
    found = process.weight(levels, weighting, 5.0)
    if weighting == "min_snr":  # Hang et al. 2023
        of_clean = (1 / sigma**2).clamp(max=5.0)
    else:  # Karras et al. 2022
        of_clean = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    assert torch.allclose(found, of_clean * slope.flatten() ** 2)


def test_min_snr_and_uniform_weights_in_numbers():
    levels = levels_of(torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64))
    assert NoiseProcess("cosine", "sample").weight(levels, "min_snr", 5.0).tolist() == (
        pytest.approx([5, 1, 0.01])
    )
    assert NoiseProcess("cosine", "noise").weight(levels, "min_snr", 5.0).tolist() == (
        pytest.approx([0.05, 1, 1])
    )
    for prediction in PREDICTIONS:
        assert NoiseProcess("cosine", prediction).weight(levels, "uniform", 5.0).tolist() == [1] * 3


@pytest.mark.parametrize("weighting", ["min_snr", "uniform", "edm"])
@pytest.mark.parametrize("prediction", ["velocity", "sample", "edm"])
def test_weights_of_pure_noise_are_finite(prediction, weighting):
    process = NoiseProcess("cosine", prediction, zero_terminal_snr=True)
    weight = process.weight(process.at(torch.arange(TIMESTEPS)), weighting, 5.0)
    assert torch.isfinite(weight).all()
    assert weight.min() >= 0


def log_sigma(levels):
    return (levels.noise.double() / levels.signal.double()).log()


def test_log_normal_levels_are_drawn_as_karras_et_al_do():
    levels = NoiseProcess("lognormal", "edm").draw(200_000, torch.Generator().manual_seed(0))
    values = log_sigma(levels)
    assert values.mean().item() == pytest.approx(-1.2, abs=0.015)
    assert values.std().item() == pytest.approx(1.2, abs=0.015)
    standard = (values + 1.2) / 1.2
    assert standard.pow(3).mean().item() == pytest.approx(0, abs=0.05)
    assert standard.pow(4).mean().item() == pytest.approx(3, abs=0.1)
    assert torch.allclose(levels.signal**2 + levels.noise**2, torch.ones(200_000))


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_discrete_levels_are_drawn_evenly(name):
    process = NoiseProcess(name, "velocity")
    levels = process.draw(100_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(levels.time.long(), minlength=TIMESTEPS)
    assert len(counts) == TIMESTEPS
    assert counts.min() >= 50
    assert counts.max() <= 150
    assert levels.time.mean().item() == pytest.approx(499.5, abs=3)
    assert torch.equal(levels.signal, process.at(levels.time.long()).signal)


@pytest.mark.parametrize("name", SCHEDULES)
def test_draws_depend_on_the_generator_alone(name):
    process = NoiseProcess(name, "velocity")
    one, same, other = (process.draw(50, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one.signal, same.signal)
    assert not torch.equal(one.signal, other.signal)


@pytest.mark.parametrize("name", SCHEDULES)
def test_spread_is_the_stratified_version_of_draw(name):
    process = NoiseProcess(name, "velocity")
    spread = process.spread(2000)
    assert (spread.noise[1:] >= spread.noise[:-1]).all()
    drawn = process.draw(200_000, torch.Generator().manual_seed(0))
    for power in (1, 2, 3):
        for field in ("signal", "noise", "time"):
            one, other = getattr(spread, field), getattr(drawn, field)
            scale = 1000**power if field == "time" else 1
            gap = one.double().pow(power).mean() - other.double().pow(power).mean()
            assert abs(gap.item()) / scale < 0.003
    if name == "lognormal":
        values = log_sigma(spread)
        assert values.mean().item() == pytest.approx(-1.2, abs=1e-5)
        assert values.std().item() == pytest.approx(1.2, abs=0.003)
        assert log_sigma(process.spread(1)).item() == pytest.approx(-1.2, abs=1e-5)
    else:
        assert process.spread(TIMESTEPS).time.tolist() == list(range(TIMESTEPS))
        assert process.spread(4).time.tolist() == [125, 375, 625, 875]


@pytest.mark.parametrize("prediction", ["velocity", "noise"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_snr_makes_the_last_level_pure_noise_and_keeps_the_first(name, prediction):
    steps = torch.arange(TIMESTEPS)
    plain, process = (NoiseProcess(name, prediction, zero) for zero in (False, True))
    before, after = plain.at(steps), process.at(steps)
    assert after.signal[-1] == 0
    assert after.noise[-1] == 1
    assert after.signal[0].item() == pytest.approx(before.signal[0].item(), abs=1e-7)
    assert (after.signal[1:] < after.signal[:-1]).all()
    # Lin et al. 2024, algorithm 1: an affine map of sqrt(alpha-bar).
    first, last = before.signal[0], before.signal[-1]
    expected = (before.signal - last) * first / (first - last)
    assert torch.allclose(after.signal, expected, atol=1e-6)
    for one in (plain, process):
        assert torch.isfinite(one.betas).all()
        assert one.betas.min() > 0
        assert one.betas.max() < 1
        kept = torch.cumprod(1 - one.betas, dim=0).sqrt().float()
        assert (kept[1:] < kept[:-1]).all()
        assert torch.allclose(kept, one.at(steps).signal, atol=1e-4)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_network_is_told_times_from_0_to_1000_that_rise_with_the_noise(name, zero_terminal_snr):
    process = NoiseProcess(name, "velocity", zero_terminal_snr)
    for levels in (
        process.at(torch.arange(TIMESTEPS)),
        process.spread(500),
        process.draw(10_000, torch.Generator().manual_seed(0)),
    ):
        assert levels.time.min() >= 0
        assert levels.time.max() <= 1000
        order = levels.signal.argsort(descending=True)
        falls = levels.time[order].diff().clamp(max=0)
        assert falls.min() > -0.1  # float32 cannot tell apart the signal of the first levels
        assert levels.time.dtype == levels.signal.dtype == levels.noise.dtype == torch.float32


def test_log_normal_times_are_those_of_a_cosine_schedule_at_the_same_sigma():
    process = NoiseProcess("lognormal", "edm")
    for levels in (process.spread(100), process.at(torch.arange(10, TIMESTEPS, 10))):
        # A plain cosine schedule has signal = cos(pi t / 2 T).
        angle = levels.time.double() * math.pi / 2000
        assert torch.allclose(angle.cos(), levels.signal.double(), atol=1e-5)
        assert torch.allclose(angle.sin(), levels.noise.double(), atol=1e-5)
    # The cosine schedule in use is that one but for its offset s = 0.008.
    steps = torch.arange(TIMESTEPS)
    cosine, told = NoiseProcess("cosine", "edm").at(steps), process.at(steps)
    assert torch.equal(cosine.signal, told.signal)
    assert (cosine.time - told.time).abs().max() < 10


def test_parts_and_devices_of_levels():
    levels = NoiseProcess("cosine", "velocity").at(torch.tensor([1, 2, 3]))
    part = levels.part(slice(1, 3)).to(torch.device("cpu"))
    for field in ("signal", "noise", "time"):
        assert torch.equal(getattr(part, field), getattr(levels, field)[1:])
