"""The benchmarks of evaluate: what they plant, and how they count."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.store import make_samples, read_samples
from pipeline.data.store_writer import write_store

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dataset(tmp_path):
    random = np.random.default_rng(0)
    labels = np.array([0] * 5 + [1] * 2 + [0, 1] * 4)
    images = random.integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    splits = ["train"] * 7 + ["validation"] * 4 + ["test"] * 4
    write_store(tmp_path / "set", make_samples(images, labels, splits, "real"), ("a", "b"), 8, "L")
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["controls", "evaluate_speed"])
def test_what_stands_for_synthetic_rows_is_made_of_training_rows(name, dataset, tmp_path):
    load(name)._plant(dataset, tmp_path / "planted")
    planted = read_samples(tmp_path / "planted")
    assert set(planted.origins) == {"synthetic"}
    assert set(planted.splits) == {"train"}
    counts = np.bincount(planted.labels)
    assert counts[0] == counts[1] >= 5
    assert not set(planted.ids) & set(read_samples(dataset).ids)


def test_training_rows_stay_and_the_others_are_thinned(dataset, tmp_path, monkeypatch):
    bench = load("controls")
    monkeypatch.setattr(bench, "MOST", {"train": 10, "validation": 3, "test": 2})
    found = []
    for seed in range(2):
        bench._thin(dataset, tmp_path / f"thin-{seed}", seed)
        found.append(read_samples(tmp_path / f"thin-{seed}"))
    assert [found[0].splits.count(name) for name in bench.MOST] == [7, 3, 2]
    assert set(found[0].ids) != set(found[1].ids)


def test_the_gate_is_counted_by_control():
    def row(name, decision, gain):
        return {"name": name, "decision": decision, "gain_points": gain}

    rows = [
        [row("noise", "do_not_use", -1.0), row("copies", "use", 1.0)],
        [row("noise", "do_not_use", -3.0), row("copies", "do_not_use", 0.0)],
    ]
    bench = load("controls")
    for one in rows:
        one += [row("shuffled_labels", "do_not_use", 0.0), row("held_out_real", "use", 5.0)]
    result = bench._summary({"digits-0": rows[0], "digits-1": rows[1]})
    assert result["digits"]["noise"] == {"used": 0, "of": 2, "mean_gain_points": -2.0}
    assert result["digits"]["copies"]["used"] == 1
    assert result["digits"]["held_out_real"]["used"] == 2
    assert result["false_use"] == pytest.approx(1 / 6)
