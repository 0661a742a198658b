"""The search against plain float64 distances: ties, repeats, far origins, any block and pool."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline.errors import StageError
from pipeline.metrics import neighbours as module
from pipeline.metrics import tiles
from pipeline.metrics.neighbours import nearest, nearest_others, pairs_within
from pipeline.metrics.tiles import distances


def layouts():
    random = np.random.default_rng(0)
    outlier = random.normal(size=(150, 3)).astype(np.float32)
    outlier[-1] = 1e6
    return {
        "normal": random.normal(size=(150, 5)),
        "grid": random.integers(0, 3, size=(150, 3)).astype(np.float64),
        "repeats far off": np.repeat(random.normal(size=(30, 4)), 5, axis=0) + 1e4,
        "constant": np.ones((150, 2)),
        "an outlier": outlier,
        "small spread": 1 + 1e-9 * random.normal(size=(150, 3)),
        "tiny": 1e-170 * np.ones((150, 1)),
    }


@pytest.fixture(params=[(1024, 1 << 20), (7, 1), (64, 1)], ids=str)
def sizes(request, monkeypatch):
    """Set blocks and pools so small that every path is taken."""
    monkeypatch.setattr(tiles, "BLOCK_ROWS", request.param[0])
    monkeypatch.setattr(module, "_LEAST_POOL", request.param[1])


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("name", layouts())
def test_nearest_others_are_those_of_a_plain_search(name, k):
    rows = layouts()[name]
    apart = cdist(rows, rows)
    np.fill_diagonal(apart, np.inf)
    found = nearest_others(rows, k)
    assert found.exact
    assert found.distances == pytest.approx(np.sort(apart, axis=1)[:, :k], rel=1e-12, abs=0)
    named = np.take_along_axis(apart, found.rows, axis=1)
    assert named == pytest.approx(found.distances, rel=1e-12, abs=0)
    assert all(len(set(one)) == k for one in found.rows.tolist())


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", layouts())
def test_nearest_are_those_of_a_plain_search_whichever_side_is_longer(name):
    rows = layouts()[name]
    for queries, base in ((rows[::3] + 0.25, rows), (rows, rows[::3])):
        found = nearest(queries, base, 2)
        plain = np.sort(cdist(queries, base), axis=1)[:, :2]
        assert found.distances == pytest.approx(plain, rel=1e-12, abs=0)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", layouts())
def test_pairs_within_are_all_pairs_and_none_twice(name):
    x = layouts()[name]
    y = x[::2]
    every = np.indices((len(x), len(y))).reshape(2, -1)
    apart = distances(x, y, *every).reshape(len(x), len(y))
    # Reaches that tie with distances: the k-th nearest, and none at all.
    x_reach, y_reach = np.sort(apart, axis=1)[:, 4], np.sort(apart, axis=0)[9]
    y_reach[::5] = 0
    seen = np.zeros(apart.shape, int)
    in_x, in_y = np.zeros(apart.shape, bool), np.zeros(apart.shape, bool)
    for pairs in pairs_within(x, y, x_reach, y_reach):
        seen[pairs.i, pairs.j] += 1
        in_x[pairs.i, pairs.j] = pairs.within(x_reach[pairs.i])
        in_y[pairs.i, pairs.j] = pairs.within(y_reach[pairs.j])
        half = pairs.only(pairs.i % 2 == 0)
        assert np.array_equal(half.within(x_reach[half.i]), in_x[half.i, half.j])
    assert seen.max(initial=0) <= 1
    assert np.array_equal(in_x, apart < x_reach[:, None])
    assert np.array_equal(in_y, apart < y_reach)


def test_every_distance_lies_between_its_bounds():
    random = np.random.default_rng(1)
    for width, spread in ((1, 1.0), (7, 1e-20), (300, 1e3)):
        x = (spread * random.normal(size=(60, width)) + spread).astype(np.float32)
        y = np.concatenate([x[:20], x[:20] * np.float32(1 + 1e-6), x[::2] * 0.5])
        frame = tiles.Frame.around(x, y)
        widest = max(float((frame.apply(rows) ** 2).sum(axis=1).max()) for rows in (x, y))
        square = (cdist(x.astype(np.float64), y.astype(np.float64)) * frame.scale) ** 2
        for pair in tiles.strip_pairs(frame, x, y, 16):
            tile = tiles.multiply(*pair)
            i, j, low, high = tile.pick(np.ones(tile.low.shape, bool))
            assert (low <= square[i, j]).all()
            assert (square[i, j] <= high).all()
            assert (high - low < 4.1 * frame.error * widest + 4.1 * tiles.TINY).all()


def test_the_order_of_the_two_rows_changes_no_distance():
    rows = np.random.default_rng(2).normal(size=(50, 33)).astype(np.float32)
    i, j = np.indices((50, 50)).reshape(2, -1)
    there = distances(rows, rows, i, j)
    assert np.array_equal(there, distances(rows, rows, j, i))
    assert np.array_equal(there[::7], distances(rows, rows, i[::7], j[::7]))
    assert (there[i == j] == 0).all()


def test_a_memory_map_is_searched_as_it_is(tmp_path):
    rows = np.random.default_rng(3).normal(size=(70, 4)).astype(np.float32)
    rows.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", np.float32, "r", shape=(70, 4))
    assert np.array_equal(nearest_others(mapped, 3).rows, nearest_others(rows, 3).rows)
    assert np.array_equal(nearest(mapped, mapped, 3).distances, nearest(rows, rows, 3).distances)


def clustered(rows):
    random = np.random.default_rng(4)
    centres = 3 * random.normal(size=(12, 16))
    drawn = centres[random.integers(0, 12, rows)] + random.normal(size=(rows, 16))
    return drawn.astype(np.float32)


def test_past_the_limit_an_index_finds_most_and_measures_exactly(monkeypatch):
    rows = clustered(1500)
    exact = nearest_others(rows, 5)
    monkeypatch.setattr(module, "EXACT_PAIRS", 1000)
    found = nearest_others(rows, 5)
    assert not found.exact
    assert (found.rows != np.arange(1500)[:, None]).all()
    assert (found.distances >= exact.distances).all()
    same = [len(set(a) & set(b)) for a, b in zip(found.rows, exact.rows, strict=True)]
    assert np.mean(same) / 5 > 0.95
    here = np.arange(1500).repeat(5)
    plain = distances(rows, rows, here, found.rows.reshape(-1)).reshape(-1, 5)
    assert np.array_equal(found.distances, plain)
    across = nearest(rows[:300] + np.float32(0.01), rows, 2)
    assert not across.exact
    assert np.mean(across.rows[:, 0] == np.arange(300)) > 0.95


def test_rows_whose_cells_are_too_empty_are_searched_in_full(monkeypatch):
    monkeypatch.setattr(module, "EXACT_PAIRS", 10)
    monkeypatch.setattr(module, "_INDEX_PROBES", 1)
    # Each row is a cell of its own, or nearly.
    rows = 100.0 * np.arange(20)[:, None] ** 2 + np.zeros((1, 3))
    found = nearest_others(rows, 4)
    apart = cdist(rows, rows)
    np.fill_diagonal(apart, np.inf)
    assert found.distances == pytest.approx(np.sort(apart, axis=1)[:, :4])
    assert nearest(rows, rows, 4).distances[:, 0].tolist() == [0.0] * 20


def test_the_index_gives_the_same_whatever_the_threads(monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(module, "EXACT_PAIRS", 1000)
    rows, threads = clustered(1500), faiss.omp_get_max_threads()
    found = []
    for count in (1, 2):
        faiss.omp_set_num_threads(count)
        found.append(nearest_others(rows, 5))
    faiss.omp_set_num_threads(threads)
    assert np.array_equal(found[0].rows, found[1].rows)
    assert np.array_equal(found[0].distances, found[1].distances)


def test_faiss_is_loaded_only_past_the_limit():
    code = (
        "import sys, numpy as np; from pipeline.metrics.neighbours import nearest_others;"
        "nearest_others(np.eye(4), 1); sys.exit('faiss' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_searched_is_refused():
    rows = np.eye(4)
    with pytest.raises(StageError, match="neighbours: k is 4, and there are 3 other rows"):
        nearest_others(rows, 4)
    with pytest.raises(StageError, match="neighbours: k is 5, and there are 4 rows"):
        nearest(rows, rows, 5)
    with pytest.raises(StageError, match="neighbours: k is 0"):
        nearest(rows, rows, 0)
    with pytest.raises(StageError, match="too large to square; scale them down"):
        nearest_others(rows * 1e200, 1)
