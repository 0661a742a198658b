import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

PATH = Path(__file__).parents[2] / "benchmarks" / "metrics.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("metrics_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sets(bench):
    return bench.make(600, 1), bench.make(600, 2)


def test_both_sides_of_a_ratio_work_out_the_same_thing(bench, sets):
    ours, peer = bench.ours_prdc(*sets), bench.peer_prdc(*sets)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(ours, name) == pytest.approx(peer[name], abs=0.01)
    assert 0.05 < ours.precision < 0.999  # the data is not degenerate
    assert ours.coverage > 0.05
    score = bench.ours_vendi(*sets).value
    assert bench.peer_vendi_dual(*sets) == pytest.approx(score, rel=1e-3)
    distance = bench.ours_frechet(*sets)
    assert bench.ours_frechet_interval(*sets).value == pytest.approx(distance)
    assert bench.peer_frechet(*sets)["frechet_inception_distance"] == pytest.approx(
        distance, rel=1e-3
    )
    kernel = bench.peer_kernel(*sets)["kernel_inception_distance_mean"]
    assert bench.ours_kernel(*sets).value == pytest.approx(kernel, abs=1e-4)
    assert np.allclose(bench.ours_nearest(*sets).distances, bench.peer_nearest(*sets)[0], rtol=1e-4)


def test_a_run_in_a_process_has_seconds_and_memory(bench):
    run = bench.in_a_process("ours vendi", 500, (300, 8.0))
    assert run["seconds"] > 0
    assert len(run["all_seconds"]) == bench.REPEATS[500]
    assert run["resident_mib"] > run["peak_mib"] >= 0


def test_a_run_out_of_memory_or_time_says_so(bench):
    # 16,000 x 16,000 similarities are 1 GiB by themselves.
    assert bench.in_a_process("vendi-score", 16_000, (300, 1.0))["failed"] == "out of 1 GiB"
    assert bench.in_a_process("ours vendi", 500, (0.01, 8.0))["failed"] == "over 0.01 s"


def test_rows_from_a_file_are_the_fake_ones(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SCALE_REAL", 250)
    seen = []
    monkeypatch.setitem(bench.WORKS, "look", lambda real, fake: seen.append((real, fake)))
    rows = bench.make(300, 2)
    rows.tofile(tmp_path / "rows.bin")
    bench.measure("look", 300, tmp_path / "rows.bin")
    assert seen[-1][0].shape == (250, 512)
    assert np.array_equal(seen[-1][1], rows)


def test_ratios_are_peer_over_ours_and_missing_where_a_side_failed(bench):
    runs = [
        {"name": "ours prdc", "rows": 10, "seconds": 2.0, "peak_mib": 5.0},
        {"name": "prdc", "rows": 10, "seconds": 7.0, "peak_mib": 90.0},
        {"name": "ours vendi", "rows": 10, "seconds": 2.0, "peak_mib": 8.0},
        {"name": "vendi-score", "rows": 10, "failed": "over 600 s"},
    ]
    figures = bench.summarise(runs)
    assert figures["ratio_prdc_10"] == 3.5
    assert figures["ratio_vendi_10"] is None
    assert figures["peak_mib_10"] == 8.0
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(bench.table(runs))
    text = console.export_text()
    assert "7.00 (90)" in text
    assert "over 600 s" in text
    assert bench.line(runs[3]).endswith("over 600 s")
