from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from pipeline.errors import StageError
from pipeline.metrics import kernel as module
from pipeline.metrics.kernel import class_kernel, class_kernel_distance, kernel_distance


def polynomial(a, b):
    return (a @ b / len(a) + 1) ** 3


def gaussian(real):
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]]
    width = np.median(gaps)
    return lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * width**2))


def test_two_points_in_closed_form():
    a, b = np.array([1.0, 2.0]), np.array([0.0, -1.0])
    found = kernel_distance(np.tile(a, (5, 1)), np.tile(b, (4, 1)))
    # (5 / 2 + 1)^3 + (1 / 2 + 1)^3 - 2 (-2 / 2 + 1)^3
    assert found.value == pytest.approx(3.5**3 + 1.5**3)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert (found.n_real, found.n_fake, found.kernel) == (5, 4, "polynomial")


def test_a_simplex_in_closed_form_for_the_gaussian_kernel():
    corners = np.eye(8)
    # Every two real rows are sqrt(2) apart, so 2 s^2 = 4.
    found = kernel_distance(corners[:4], 10 * corners[4:], "gaussian")
    assert found.value == pytest.approx(np.exp(-2 / 4) + np.exp(-200 / 4) - 2 * np.exp(-101 / 4))
    same = kernel_distance(corners[:4], corners[4:], "gaussian")
    assert same.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
def test_it_agrees_with_plain_loops(name):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 3)), random.normal(size=(6, 3)) + 1.5
    k = polynomial if name == "polynomial" else gaussian(x)
    xx = np.array([[k(a, b) for b in x] for a in x])
    yy = np.array([[k(a, b) for b in y] for a in y])
    xy = np.array([[k(a, b) for b in y] for a in x])
    value = (
        np.mean([xx[i, j] for i, j in permutations(range(5), 2)])
        + np.mean([yy[i, j] for i, j in permutations(range(6), 2)])
        - 2 * np.mean([xy[i, j] for i, j in product(range(5), range(6))])
    )
    found = kernel_distance(x, y, name)
    assert found.value == pytest.approx(value)
    assert found.spread**2 == pytest.approx(plain_variance(xx, yy, xy))


def plain_variance(xx, yy, xy):
    """Average every product of kernel values over distinct rows: unbiased term by term."""
    n, m = xy.shape
    first = 4 * plain_row_variance(xx, xy) / n + 4 * plain_row_variance(yy, xy.T) / m
    assert first > 0  # else the estimate is clipped, and this comparison says nothing
    between = np.mean(
        [
            xy[i, j] ** 2 - xy[i, j] * xy[i, q] - xy[i, j] * xy[p, j] + xy[i, j] * xy[p, q]
            for (i, p), (j, q) in product(permutations(range(n), 2), permutations(range(m), 2))
        ]
    )
    second = 2 * plain_interaction(xx) / (n * (n - 1)) + 2 * plain_interaction(yy) / (m * (m - 1))
    return first + second + 4 * between / (n * m)


def plain_interaction(k):
    return np.mean(
        [
            k[a, b] ** 2 - 2 * k[a, b] * k[a, c] + k[a, b] * k[c, d]
            for a, b, c, d in permutations(range(len(k)), 4)
        ]
    )


def plain_row_variance(own, other):
    n, m = other.shape
    within = np.mean(
        [own[a, b] * (own[a, c] - own[c, d]) for a, b, c, d in permutations(range(n), 4)]
    )
    mixed = np.mean(
        [
            own[a, b] * (other[a, j] - other[c, j])
            for (a, b, c), j in product(permutations(range(n), 3), range(m))
        ]
    )
    between = np.mean(
        [
            other[a, j] * (other[a, q] - other[b, q])
            for (a, b), (j, q) in product(permutations(range(n), 2), permutations(range(m), 2))
        ]
    )
    return within - 2 * mixed + between


def draw(random, n, m, shift):
    return random.normal(size=(n, 6)), random.normal(size=(m, 6)) + shift


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (200, 60)])
def test_one_distribution_is_within_three_spreads_of_nought(name, n, m):
    random = np.random.default_rng(3)
    found = [kernel_distance(*draw(random, n, m, 0.0), name) for _ in range(10)]
    assert all(abs(one.value) < 3 * one.spread for one in found)
    assert min(one.value for one in found) < 0 < max(one.value for one in found)


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
def test_a_shifted_a_noisy_and_a_collapsed_generator_stand_far_off(name):
    random = np.random.default_rng(4)
    real, fake = draw(random, 100, 100, 0.0)
    none = kernel_distance(real, fake, name)
    for worse in (fake + 1.0, 3 * fake, np.repeat(fake[:1], 100, axis=0)):
        found = kernel_distance(real, worse, name)
        assert found.value > none.value
        assert found.value > 3 * found.spread
    near, far = (kernel_distance(real, fake + shift, name).value for shift in (1.0, 2.0))
    assert far > near


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.95, 1.5), (0.7, 0.85, 1.15)])
def test_the_value_is_unbiased_and_the_spread_is_that_of_repeated_draws(name, shift, low, high):
    random = np.random.default_rng(5)
    found = [kernel_distance(*draw(random, 20, 30, shift), name) for _ in range(300)]
    values = np.array([one.value for one in found])
    deviation = values.std(ddof=1)
    if not shift:
        assert abs(values.mean()) < 4 * deviation / np.sqrt(len(values))
    spread = np.sqrt(np.mean([one.spread**2 for one in found]))
    assert low < spread / deviation < high


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
def test_blocks_change_nothing(name, monkeypatch):
    real, fake = draw(np.random.default_rng(6), 25, 17, 0.3)
    whole = kernel_distance(real, fake, name)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 4)
    parts = kernel_distance(real, fake, name)
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    assert parts.spread == pytest.approx(whole.spread, rel=1e-9)


def test_the_bandwidth_of_many_rows_comes_from_rows_evenly_spread(monkeypatch):
    real, fake = draw(np.random.default_rng(7), 400, 50, 0.5)
    # Sorted, as a folder of classes is: the first rows alone would give another bandwidth.
    real = np.sort(real, axis=0)
    whole = kernel_distance(real, fake, "gaussian")
    monkeypatch.setattr(module, "_BANDWIDTH_ROWS", 100)
    assert kernel_distance(real, fake, "gaussian").value == pytest.approx(whole.value, rel=0.05)


def test_the_gaussian_kernel_does_not_mind_where_the_origin_is():
    real, fake = draw(np.random.default_rng(8), 30, 30, 0.5)
    near, far = (kernel_distance(real + c, fake + c, "gaussian").value for c in (0.0, 1.0e6))
    assert far == pytest.approx(near, rel=1e-6)


def test_float32_features_are_worked_in_float64():
    real, fake = (rows.astype(np.float32) for rows in draw(np.random.default_rng(9), 30, 30, 0.0))
    wide = kernel_distance(real.astype(np.float64), fake.astype(np.float64))
    assert kernel_distance(real, fake) == wide


def test_bad_features_are_refused():
    good = np.random.default_rng(10).normal(size=(4, 2))
    with pytest.raises(StageError, match="kernel_distance: 3 real rows; it needs at least 4"):
        kernel_distance(good[:3], good)
    with pytest.raises(StageError, match="kernel_distance: 0 fake rows; it needs at least 4"):
        kernel_distance(good, good[:0])
    with pytest.raises(StageError, match="real rows have 2 features and fake rows 1;"):
        kernel_distance(good, good[:, :1])
    with pytest.raises(StageError, match="fake features hold values that are not finite"):
        kernel_distance(good, np.where(good == good[0, 0], np.inf, good))
    with pytest.raises(StageError, match=r"real has the shape \(4,\), not \(N, D\)"):
        kernel_distance(good[:, 0], good)
    with pytest.raises(StageError, match="the polynomial kernel overflows"):
        kernel_distance(good * 1.0e100, good)
    with pytest.raises(StageError, match="the median distance between real rows is 0"):
        kernel_distance(np.ones((4, 2)), good, "gaussian")


def test_the_minimum_is_enough():
    random = np.random.default_rng(11)
    found = kernel_distance(random.normal(size=(4, 2)), random.normal(size=(4, 2)))
    assert np.isfinite(found.value)
    assert found.spread > 0


def classes(counts, seed, shift=0.0):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = 2 * np.eye(len(counts), 6)
    return centres[labels] + shift + random.normal(size=(len(labels), 6)), labels


def test_the_class_distance_is_the_mean_of_the_classes_distances():
    real, real_labels = classes((6, 9, 1), 0)
    fake, fake_labels = classes((8, 5, 7), 1)
    expected = sum(
        n * kernel_distance(real[real_labels == c], fake[fake_labels == c]).value
        for c, n in ((0, 6), (1, 9))
    )
    found = class_kernel_distance(real, real_labels, fake, fake_labels)
    assert found == pytest.approx(expected / 15)


def test_the_class_distance_is_without_bias_at_other_shares_and_sees_swapped_labels():
    found = [
        class_kernel_distance(*classes((3, 2, 5), 100 + s), *classes((20, 30, 10), 200 + s))
        for s in range(200)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    fake, labels = classes((40, 40, 40), 3)
    right = class_kernel_distance(*classes((40, 40, 40), 4), fake, labels)
    assert class_kernel_distance(*classes((40, 40, 40), 4), fake, (labels + 1) % 3) > right + 0.5


def test_a_class_distance_without_a_class_of_two_is_refused():
    rows = np.zeros((2, 3))
    with pytest.raises(StageError, match="no class has 2 real and 2 fake rows"):
        class_kernel_distance(rows, np.array([0, 1]), rows, np.array([0, 1]))


def test_the_gap_of_two_class_distances_has_the_spread_that_it_states():
    # Two generators, paired: the same noise, the second one's images shifted.
    def gap(seed):
        random = np.random.default_rng(seed)
        labels = np.repeat([0, 1], (25, 15))
        real = random.normal(size=(40, 4)) + labels[:, None]
        fake_labels = np.repeat([0, 1], (50, 30))
        noise = random.normal(size=(80, 4)) + fake_labels[:, None]
        one = class_kernel(real, labels, noise + 0.3, fake_labels)
        other = class_kernel(real, labels, noise + 0.5, fake_labels)
        assert one.gap_error(one) == 0
        assert one.gap_error(other) == pytest.approx(other.gap_error(one))
        return one.value - other.value, one.gap_error(other), other.value

    gaps, errors, values = np.array([gap(seed) for seed in range(200)]).T
    assert gaps.mean() < 0
    assert np.sqrt((errors**2).mean()) == pytest.approx(gaps.std(), rel=0.15)
    # What the two have in common drops out.
    assert gaps.std() < values.std()


def test_a_class_distance_says_what_it_is_made_of():
    real, labels = classes((3, 2, 1), 0)
    fake, fake_labels = classes((4, 4, 4), 1)
    found = class_kernel(real, labels, fake, fake_labels)
    assert found.shares == {0: 0.6, 1: 0.4}  # class 2 has one row
    assert found.value == class_kernel_distance(real, labels, fake, fake_labels)
    assert not found.real_terms[labels == 2].any()
    assert not found.fake_terms[fake_labels == 2].any()
    assert found.real_terms[labels == 0].all()


def test_it_equals_torch_fidelity_on_one_subset_of_all_rows():
    random = np.random.default_rng(12)
    real, fake = random.normal(size=(40, 5)), random.normal(size=(40, 5)) + 0.5
    peer = kid_features_to_metric(
        torch.from_numpy(real),
        torch.from_numpy(fake),
        kid_subsets=1,
        kid_subset_size=40,
        verbose=False,
    )
    found = kernel_distance(real, fake).value
    assert found == pytest.approx(peer["kernel_inception_distance_mean"], rel=1e-10)


@pytest.mark.parametrize("name", ["polynomial", "gaussian"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_many_rows_are_averaged_over_blocks_without_bias(name, shift, monkeypatch):
    random = np.random.default_rng(13)
    draws = [draw(random, 48, 30, shift) for _ in range(150)]
    whole = np.array([kernel_distance(*one, name).value for one in draws])
    monkeypatch.setattr(module, "EXACT_ROWS", 40)
    found = [kernel_distance(*one, name) for one in draws]
    assert {one.blocks for one in found} == {4}
    values = np.array([one.value for one in found])
    assert abs((values - whole).mean()) < 4 * (values - whole).std() / np.sqrt(150)
    spread = np.sqrt(np.mean([one.spread**2 for one in found]))
    assert 0.85 < spread / values.std() < 1.6
    assert kernel_distance(*draws[0], name) == found[0]  # the shuffle is always the same


def test_blocks_are_disjoint_and_hold_all_rows_and_never_too_few(monkeypatch):
    assert kernel_distance(*draw(np.random.default_rng(14), 9, 9, 0.0)).blocks == 1
    monkeypatch.setattr(module, "EXACT_ROWS", 10)
    for n, m, count in ((5, 400, 1), (9, 400, 2), (100, 60, 15), (20, 20, 5)):
        blocks = module._blocks(n, m)
        assert len(blocks) == count
        if count > 1:
            for side, rows in ((0, n), (1, m)):
                assert sorted(np.concatenate([one[side] for one in blocks])) == list(range(rows))
                assert min(len(one[side]) for one in blocks) >= module.MINIMUM_ROWS


def test_a_memory_map_gives_the_same_as_the_array(tmp_path):
    real, fake = (rows.astype(np.float32) for rows in draw(np.random.default_rng(15), 30, 20, 0.3))
    real.tofile(tmp_path / "real.bin")
    mapped = np.memmap(tmp_path / "real.bin", np.float32, "r", shape=real.shape)
    for name in ("polynomial", "gaussian"):
        assert kernel_distance(mapped, fake, name) == kernel_distance(real, fake, name)
