"""The ablation's arithmetic, its table, and what it takes from earlier work; no training here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_store import stripes

from pipeline.data.store_writer import write_store

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def filters():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import filters
    finally:
        sys.path.remove(str(BENCHMARKS))
    return filters


def way(filters, name, accuracy, images=20, tail=(0.5, 0.5)):
    return filters.Found(name, images, 0.75, list(accuracy), list(tail))


def test_ways_are_compared_with_no_filter_seed_by_seed_and_the_plan_with_fill(filters):
    found = [
        way(filters, "as they come", [0.80, 0.90]),
        way(filters, "labels alone", [0.82, 0.94], tail=(0.6, 0.5)),
        way(filters, "fill", [0.70, 0.70]),
        way(filters, "planned", [0.71, 0.73]),
    ]
    none, labels, _, planned = (filters.differences(one, found) for one in found)
    assert set(none.values()) == {None}
    assert labels["gain_points"] == pytest.approx(3)
    assert labels["error_points"] == pytest.approx(1)
    assert labels["tail_gain_points"] == pytest.approx(5)
    assert planned["gain_points"] == pytest.approx(2)


def test_the_table_has_a_line_a_way(filters):
    found = [way(filters, "as they come", [0.8, 0.9]), way(filters, "labels alone", [0.82, 0.94])]
    ways = [{**vars(one), **filters.differences(one, found)} for one in found]
    text = filters.table("digits", {"training": 246, "test": 1500, "ways": ways})
    assert "### digits: 246 training images, 1,500 test images" in text
    assert "| as they come | 20 | 75% | 85.00 |  |  |  |" in text
    assert "| labels alone | 20 | 75% | 88.00 | +3.00 | 1.00 | +0.00 |" in text


def test_ways_of_an_earlier_run_are_found_by_name(filters, tmp_path):
    file = tmp_path / "found.json"
    assert filters.read_ways(file, "digits") == {}
    one = way(filters, "fill", [0.7, 0.7])
    file.write_text(json.dumps({"digits": {"ways": [{**vars(one), "gain_points": None}]}}))
    assert filters.read_ways(file, "digits") == {"fill": one}
    assert filters.read_ways(file, "other") == {}


def test_candidates_of_a_finished_stage_come_in_their_order(filters, tmp_path):
    for name, first, seed in (("accepted", 1, 0), ("rejected", 0, 1)):
        rows = stripes([2, 2], "train", seed)
        rows.extra["index"] = [first, first + 2, first, first + 2]
        write_store(tmp_path / name, rows, ("a", "b"), 8, "L")
    pool = filters.read_pool(tmp_path)
    assert pool.labels.tolist() == [0] * 4 + [1] * 4
    accepted, rejected = stripes([2, 2], "train", 0), stripes([2, 2], "train", 1)
    assert np.array_equal(pool.images[0], rejected.images[0])
    assert np.array_equal(pool.images[1], accepted.images[0])
