import importlib.util
import sys
from pathlib import Path

import pytest

from pipeline.data.store import read_info

PATH = Path(__file__).parents[2] / "benchmarks" / "linear.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("linear", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_line_is_the_least_squares_one(bench):
    assert bench.fit_line([1, 2, 4], [5, 7, 11]) == pytest.approx((2, 3, 1))
    slope, intercept, r2 = bench.fit_line([0, 1, 2], [0, 3, 0])
    assert (slope, intercept, r2) == pytest.approx((0, 1, 0))
    assert bench.fit_line([1, 2, 3], [4, 4, 4]) == pytest.approx((0, 4, 1))


def test_figures_are_slopes_an_image_and_the_largest_peak(bench):
    runs = [bench.Run(n, 2 + n / 1000, 300 * 2**20 + 40 * n) for n in (1000, 4000, 16000)]
    figures = bench.summarise(runs)
    assert figures["seconds_per_image"] == pytest.approx(1e-3)
    assert figures["time_intercept_seconds"] == pytest.approx(2)
    assert figures["bytes_per_image"] == pytest.approx(40)
    assert figures["memory_intercept_mib"] == pytest.approx(300)
    assert figures["time_r2"] == pytest.approx(1)
    assert figures["peak_mib"] == pytest.approx(300 + 40 * 16000 / 2**20)
    assert [run["images"] for run in figures["runs"]] == [1000, 4000, 16000]


def test_the_asked_number_of_images_goes_all_the_way(bench, tmp_path):
    run = bench.generate(200, tmp_path, "inline", 2)
    assert run.images == 200
    assert run.seconds > 0
    assert run.peak_bytes > 2**20
    assert read_info(tmp_path / "store").counts == {"train": {"a": 100, "b": 100}}
