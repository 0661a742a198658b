"""The peers' loops and the tables of the sampling benchmarks, with a tiny network."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.unet import Preset, build_unet

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benches():
    modules, paths = {}, list(sys.path)
    for name in ("sampler_steps", "sampling"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    yield modules
    sys.path[:] = paths
    for name in modules:
        del sys.modules[name]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_loop_of_the_guide_draws_what_was_asked_for(benches, sampler):
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    model = build_unet(8, "L", 2, Preset(8, 1), seed=0).eval()
    labels = np.array([0, 1, 1])
    images = benches["sampling"].diffusers_loop(model, spec, sampler, 5, labels)
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 3


def test_a_rate_is_the_median_of_its_runs(benches):
    found = benches["sampling"].repeat(lambda: np.zeros((6, 8, 8, 1), np.uint8), times=3)
    assert len(found.rates) == 3
    assert found.rate == sorted(found.rates)[1]


def test_the_table_and_the_figure_show_every_sampler(benches, tmp_path):
    rows = [
        {"sampler": name, "evaluations": count, "kernel_distance": 0.25, "coverage": 0.5}
        for name, count in (("ddim", 4), ("ddim", 8), ("unipc", 8))
    ]
    ceiling = {"images": 9, "kernel_distance": -0.01, "coverage": 0.9}
    found = {"samples": 32, "ceiling": ceiling, "rows": rows}
    text = benches["sampler_steps"].table("digits", found)
    assert "| sampler | 4 | 8 |" in text
    assert "| ddim | 0.250 (0.50) | 0.250 (0.50) |" in text
    assert "| unipc |  | 0.250 (0.50) |" in text
    benches["sampler_steps"].draw({"digits": found}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
