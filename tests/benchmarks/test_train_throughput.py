import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

PATH = Path(__file__).parents[2] / "benchmarks" / "train_throughput.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_throughput", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Tiny(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.one = nn.Conv2d(1, channels, 3, padding=1)
        self.other = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, images, times):
        return self.other(self.one(images))


def test_flops_are_those_of_the_closed_form_and_nothing_is_computed(bench):
    with torch.device("meta"):
        flops = bench.count_flops(Tiny(), 8, labelled=False)
    one = 2 * 4 * 9 * 8 * 8  # a convolution between 1 and 4 channels
    # Forward, the weights' gradient and the inputs', which the first convolution does not need.
    assert flops == one * 2 + one * 3


@pytest.mark.parametrize("wanted", [1, 90, 100, 130, 500, 9_999])
def test_the_closest_candidate_in_ratio_is_found(bench, wanted):
    sizes = range(2, 33, 2)
    found, flops = bench.closest(sizes, lambda size: size**2, wanted)
    best = min(sizes, key=lambda size: max(size**2 / wanted, wanted / size**2))
    assert (found, flops) == (best, best**2)


def test_the_coarsest_level_is_widened_where_the_shape_alone_does_not_fit(bench):
    wanted = 58_000_000  # between those of widths (24, 24) and (32, 32)
    widths, flops = bench.match_diffusers(8, 2, wanted)
    assert flops == pytest.approx(wanted, rel=0.05)
    assert widths[0] < widths[1]
    assert all(width % 8 == 0 for width in widths)


def test_ratios_compare_images_times_flops(bench):
    def loop(name, flops):
        return bench.Contender(name, "net", "float32", flops, lambda steps: 0.0)

    loops = [
        loop(bench.BARE, 100),
        loop(bench.OURS, 100),
        loop(bench.DIFFUSERS, 200),
        loop(bench.DENOISING, 50),
    ]
    rates = {
        bench.BARE: [10.0, 20.0, 40.0],
        bench.OURS: [9.0, 18.0, 36.0],
        bench.DIFFUSERS: [9.0, 9.0, 9.0],
        bench.DENOISING: [9.0, 18.0, 36.0],
    }
    measured = bench.Measured(rates, {"float32": 3600.0, "bfloat16": 7200.0}, 0.05)
    figures = bench.summarise(loops, measured, native_bfloat16=True)
    assert figures["share_of_bare_loop"] == pytest.approx(0.9)
    assert figures["share_of_matmul_peak"] == pytest.approx(0.5)
    assert figures["ratio_vs_diffusers_fp32"] == pytest.approx(1.0)
    assert figures["ratio_vs_denoising_diffusion_pytorch"] == pytest.approx(2.0)
    assert figures["details"]["share_of_bfloat16_matmul_peak"] == pytest.approx(0.25)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(bench.table(figures))
    text = console.export_text()
    assert "of the float32 matrix-product peak: 0.50" in text
    assert "trust nothing" not in text
    assert all(one.name in text for one in loops)


def test_our_loop_and_the_bare_network_run_through_their_adapters(bench, monkeypatch):
    monkeypatch.setattr(bench, "pick_precision", lambda wanted, device: "float32")
    setting = bench.make_setting(8, 4, "cpu")
    for run in (bench.bare(setting), bench.ours(setting)):
        assert bench._alone(lambda run=run: run(1)) > 0


def test_without_the_extra_the_message_says_what_to_install(bench, monkeypatch):
    app = bench.typer.Typer()
    app.command()(bench.main)
    monkeypatch.setattr(bench, "PEERS", ("no_such_package_at_all",))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "pip install -c constraints.txt '.[bench]'" in result.output
