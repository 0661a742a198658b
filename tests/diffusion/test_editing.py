"""Edits and inpainting against Gaussians whose conditional distributions are known."""

import pytest
import torch
from oracles.mixture import Mixture

from pipeline.diffusion.editing import edit, inpaint
from pipeline.diffusion.ladders import make_ladder
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.solvers import get_solver

COSINE = NoiseProcess("cosine", "velocity")
CORRELATION = 0.8
SPREAD = 0.04  # variance of each of two pixels
PIXELS = Mixture(
    torch.ones(1, dtype=torch.float64),
    torch.zeros(1, 2, dtype=torch.float64),
    SPREAD * torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64),
)


def noise(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 1, 1, 2, generator=generator, dtype=torch.float64)


def denoiser(ladder):
    def denoise(x, rung):
        flat = PIXELS.clean(x.reshape(-1, 2), ladder.signal[rung], ladder.noise[rung])
        return flat.reshape(x.shape)

    return denoise


def parents(count):
    generator = torch.Generator().manual_seed(5)
    return PIXELS.draw(count, generator).reshape(count, 1, 1, 2)


def repaint(times, count=4000, steps=30):
    ladder = make_ladder(COSINE, steps, "quadratic")
    start = parents(count)
    mask = torch.tensor([0.0, 1.0]).expand(count, 1, 1, 2)  # the second pixel is drawn anew
    found = inpaint(start, mask, ladder, denoiser(ladder), noise(count), times)
    return start, found


def test_the_kept_part_is_the_parents_to_the_last_bit():
    start, found = repaint(2, count=50)
    assert torch.equal(found[..., 0], start[..., 0])
    assert not torch.isclose(found[..., 1], start[..., 1]).any()


def test_the_new_part_fits_the_kept_part_as_the_data_do():
    start, found = repaint(8)
    given, new = start[..., 0].flatten(), found[..., 1].flatten()
    slope = (given * new).mean() / given.square().mean()
    assert slope.item() == pytest.approx(CORRELATION, abs=0.08)
    left = (new - CORRELATION * given).var().item()
    assert left == pytest.approx(SPREAD * (1 - CORRELATION**2), rel=0.25)


def test_going_over_a_level_again_makes_the_parts_fit_better():
    def slope(times):
        start, found = repaint(times, steps=10)
        given, new = start[..., 0].flatten(), found[..., 1].flatten()
        return ((given * new).mean() / given.square().mean()).item()

    assert abs(slope(1) - CORRELATION) > abs(slope(8) - CORRELATION) + 0.05


def test_the_denoiser_is_asked_as_often_as_said():
    ladder = make_ladder(COSINE, 5, "even")
    asked = []

    def denoise(x, rung):
        asked.append(rung)
        return denoiser(ladder)(x, rung)

    mask = torch.ones(2, 1, 1, 2)
    inpaint(parents(2), mask, ladder, denoise, noise(2), 3)
    assert asked == [rung for rung in range(4) for _ in range(3)] + [4]


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 40), ("dpmsolver++", 40), ("ddpm", 200)])
def test_the_stronger_the_edit_the_less_is_left_of_the_parent(sampler, steps):
    start = parents(2000)
    kept = []
    for strength in (0.0, 0.2, 0.5, 1.0):
        ladder = make_ladder(COSINE, steps, "quadratic", strength)
        solve = get_solver(sampler, 0.0)
        found = edit(start, ladder, denoiser(ladder), solve, noise(2000))
        both = torch.stack([start.flatten(), found.flatten()])
        kept.append(torch.corrcoef(both)[0, 1].item())
        # Whatever the strength, an edit looks like the data.
        assert found.std().item() == pytest.approx(SPREAD**0.5, rel=0.08)
    assert kept[0] == pytest.approx(1.0)
    assert kept[0] > kept[1] + 0.01
    assert kept[1] > kept[2] + 0.1
    assert kept[3] == pytest.approx(0.0, abs=0.06)


def test_an_edit_of_strength_nought_is_the_parent():
    start = parents(3)
    nothing = make_ladder(COSINE, 40, "quadratic", 0.0)
    assert torch.equal(edit(start, nothing, None, None, None), start)
