"""The simulated cluster, tiny: nothing lost, nothing twice, and the same again under a seed."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("scale_world", "scale_model", "scale")


@pytest.fixture(scope="module")
def benches():
    pytest.importorskip("simpy")
    modules, paths = {}, list(sys.path)
    for name in NAMES:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        modules[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    yield modules
    sys.path[:] = paths
    for name in modules:
        del sys.modules[name]


def make_world(benches, **changes):
    return benches["scale_world"].World(**{"workers": 6, "shards": 120, **changes})


FAULTS = {
    "deaths_per_hour": 60.0,
    "stalls_per_hour": 30.0,
    "errors_share": 0.003,
    "kills": 2,
    "down_seconds": 10.0,
    "judge_seconds": 0.0,
}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_dies_no_shard_is_lost_or_comes_twice(benches, seed):
    found = benches["scale_world"].simulate(make_world(benches, seed=seed, **FAULTS))
    assert (found.lost, found.doubled) == (0, 0)
    assert found.kills == 2
    assert found.deaths > 0


def test_a_seed_decides_everything(benches):
    simulate, world = benches["scale_world"].simulate, make_world(benches, seed=3, **FAULTS)
    assert simulate(world) == simulate(world)
    assert simulate(world) != simulate(replace(world, seed=4))


def test_without_faults_nothing_is_wasted_and_the_time_can_be_told(benches):
    world = make_world(
        benches, workers=1, shards=4, speed_sigma=0.0, stragglers=0.0, judge_seconds=0.0
    )
    found = benches["scale_world"].simulate(world)
    assert found.wasted == found.stalled == 0
    assert found.leases == 2
    # Four shards of 128 images at 67 a second, each 10 % more or less, and two starts.
    assert 0.9 * 4 * 128 / 67 < found.useful * found.seconds < 1.1 * 4 * 128 / 67 + 0.1
    assert found.starting * found.seconds == pytest.approx(20 + 2 * 8, abs=1.0)


def test_the_judge_in_the_driver_sets_the_pace(benches):
    world = make_world(benches, judge_seconds=0.1)
    found = benches["scale_world"].simulate(world)
    assert found.seconds > 120 * 128 * 0.1
    assert found.driver_busy > 0.8


def test_a_slow_worker_holds_the_run_up_less_with_backup_tasks(benches):
    simulate = benches["scale_world"].simulate
    world = make_world(benches, judge_seconds=0.0, stragglers=0.3, straggler_times=30.0, seed=0)
    slow, backed = simulate(replace(world, backups=False)), simulate(world)
    assert backed.drawn_seconds < 0.6 * slow.drawn_seconds
    assert slow.wasted == 0 < backed.wasted


def test_a_shard_that_always_fails_stops_the_run_and_the_benchmark_says_so(benches):
    bench = benches["scale"]
    row = bench.play(make_world(benches, errors_share=1.0))
    assert "failed 3 times" in row["stopped"]
    good = bench.play(make_world(benches))
    assert not bench.sound({"growth": [row], "failures": [], "leases": []})
    assert bench.sound({"growth": [good], "failures": [], "leases": []})
    assert not bench.sound({"growth": [], "failures": [{**good, "lost": 1}], "leases": []})
    assert not bench.sound({"growth": [], "failures": [], "leases": [{**good, "doubled": 1}]})


def test_the_benchmark_writes_its_figures_and_fails_where_shards_are_lost(
    benches, monkeypatch, tmp_path, capsys
):
    bench = benches["scale"]
    small = bench.cut(2, 4, (1, 2), 0)
    monkeypatch.setattr(bench, "WORKERS", (2,))
    monkeypatch.setattr(bench, "fail", lambda *_: [bench.play(make_world(benches))])
    monkeypatch.setattr(bench, "cut", lambda *_: small)
    monkeypatch.setattr(bench, "measure_dispatch", lambda _shards, out: made(out))

    def made(out):
        return {"shards": 8, "out": out, "microseconds_per_shard": 3.0, "bytes_per_shard": 170.0}

    options = {"model": False, "images_per_second": 67, "judge_seconds": 0, "candidate_bytes": 64}
    bench.main(True, tmp_path / "figures.json", 5, **options)
    assert '"seed": 5' in (tmp_path / "figures.json").read_text()
    assert "| as shipped | 2 |" in capsys.readouterr().out
    monkeypatch.setattr(bench, "sound", lambda _: False)
    with pytest.raises(typer.Exit):
        bench.main(True, None, 5, **options)


def test_the_real_scheduling_is_measured(benches):
    found = benches["scale"].measure_dispatch(100, 10)
    assert found["microseconds_per_shard"] > 0
    assert 50 < found["bytes_per_shard"] < 1000


def test_the_model_follows_its_formulas(benches):
    model = benches["scale_model"]
    costs = model.Costs(
        images_per_second=100.0, efficiency=0.5, accepted=0.5, shard_images=10, most_shards=10,
        judge_seconds=0.001, file_seconds=0.001, reads=2, submit_seconds=0.1, calls_per_lease=4,
        poll_seconds=1.0, runs_a_look=2, candidate_bytes=10, row_bytes=30, rows_per_file=1000,
        candidate_memory=100, shard_memory=100, good_memory=0,
    )  # fmt: skip
    found = model.cost_of(100_000, 10, costs)  # 200,000 candidates, 20,000 shards, 2,000 leases
    assert found.draw_hours == pytest.approx(400 / 3600)
    assert found.driver_hours == pytest.approx((200 + 40 + 200) / 3600)
    assert found.hours == found.driver_hours
    assert found.terabytes == pytest.approx((2_000_000 + 3_000_000) / 1e12)
    assert found.files == 40_000 + 2_000 + 100
    assert found.calls == 8_000 + 440 * 10
    assert found.memory_gib == pytest.approx((20_000_000 + 2_000_000) / 2**30)


def test_the_document_holds_the_tables_of_the_model(benches):
    model = benches["scale_model"]
    text = (FOLDER.parent / "docs" / "scale.md").read_text()
    for table in model.tables(model.Costs()).split("\n\n"):
        assert table in text
