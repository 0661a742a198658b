import numpy as np
import pytest
from checks.sets import blobs, examined
from sklearn.datasets import load_digits

from pipeline.checks import near_duplicates as module
from pipeline.checks.examined import Examined
from pipeline.checks.likeness import prepare_pictures, unlikeness
from pipeline.checks.near_duplicates import Pairs, cluster_rows, find_pairs, near_duplicates
from pipeline.data.images import Images


def pairs_of(one: Examined) -> Pairs:
    return find_pairs(one, one.first_rows, 1, lambda *step: None)


def named(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def altered(image: Images, how: str) -> Images:
    values = image.astype(float)
    if how == "shift":
        return np.roll(image, 1, axis=1)
    if how == "light":
        return np.clip(0.8 * values + 20, 0, 255).astype(np.uint8)
    if how == "noise":
        noise = np.random.default_rng(3).normal(0, 5, image.shape)
        return np.clip(values + noise, 0, 255).astype(np.uint8)
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["shift", "light", "noise"])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (56, 3)])
def test_altered_copies_are_found_and_nothing_else(how: str, side: int, channels: int) -> None:
    images = blobs(60, side, channels=channels)
    copies = np.stack([altered(image, how) for image in images[:5]])
    one = examined(np.concatenate((images, copies)))
    assert named(pairs_of(one)) == {(row, 60 + row) for row in range(5)}


def test_unlikeness_ignores_light_and_small_shifts_but_not_content() -> None:
    images = blobs(2)
    moved = np.roll(images[:1], 1, axis=2)
    lit = (images[:1] * 0.7 + 30).astype(np.uint8)
    a, b, c, d = (prepare_pictures(x) for x in (images[:1], images[1:], moved, lit))
    assert unlikeness(a, a)[0] == pytest.approx(0, abs=1e-9)
    assert unlikeness(a, d)[0] < 1e-3
    assert unlikeness(a, c)[0] < 0.03
    assert unlikeness(a, b)[0] > 0.5
    assert unlikeness(a, c)[0] == pytest.approx(unlikeness(c, a)[0], rel=1e-4)


def test_colour_alone_tells_pictures_apart() -> None:
    images = blobs(1, 28, channels=3)
    turned = images[..., ::-1]
    assert unlikeness(prepare_pictures(images), prepare_pictures(turned))[0] > 0.3


def test_digits_do_not_collapse() -> None:
    digits = load_digits()
    images = np.clip(digits.images[:600] * 16, 0, 255).astype(np.uint8)[..., None]
    one = examined(images, digits.target[:600].tolist())
    assert len(pairs_of(one).first) <= 3


def test_a_burst_of_many_copies_is_still_one() -> None:
    random = np.random.default_rng(0)
    images = blobs(60)
    burst = np.clip(images[:1] + random.normal(0, 3, (9, 28, 28, 1)), 0, 255).astype(np.uint8)
    one = examined(np.concatenate((images, burst)))
    clusters, broken = cluster_rows(one, pairs_of(one))
    assert not broken
    assert set(np.flatnonzero(clusters == 0).tolist()) == {0, *range(60, 69)}


def test_blank_images_are_no_near_duplicates_of_each_other() -> None:
    images = np.stack([np.full((28, 28, 1), value, np.uint8) for value in range(20)])
    assert len(pairs_of(examined(images)).first) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_smallest_sets_are_searched_without_fuss(count: int) -> None:
    assert len(pairs_of(examined(blobs(2)[:count])).first) == 0


def test_a_chain_that_fills_a_class_falls_apart_into_exact_copies() -> None:
    images = blobs(30)
    images[29] = images[0]
    first = np.arange(12)
    pairs = Pairs(first, first + 1, np.zeros(12))
    clusters, (finding,) = cluster_rows(examined(images), pairs)
    np.testing.assert_array_equal(clusters, [*range(29), 0])
    assert (finding.check, finding.count) == ("near_duplicate_bursts", 1)
    assert finding.examples[0].detail == "with 12 others"


def test_findings_tell_labels_and_sides_apart() -> None:
    one = examined(
        blobs(6), [0, 0, 0, 1, 0, 0], splits=(None, None, "train", "train", "train", "test")
    )
    pairs = Pairs(np.array([0, 2, 4]), np.array([1, 3, 5]), np.array([0.1, 0.2, 0.3]))
    found = {finding.check: finding for finding in near_duplicates(one, pairs)}
    assert found.keys() == {
        "near_duplicates",
        "near_duplicates_across_labels",
        "near_duplicate_leaks",
    }
    assert found["near_duplicates"].severity == "info"
    assert found["near_duplicates_across_labels"].examples[0].detail == (
        "nearly the same as 3.png, labelled 'b', not 'a'"
    )
    leak = found["near_duplicate_leaks"]
    assert leak.severity == "warning"
    assert leak.examples[0].detail == "nearly the same as 5.png: train and test"


def test_the_index_of_large_sets_finds_the_same_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    images = blobs(300)
    copies = np.stack([altered(image, "light") for image in images[:20]])
    one = examined(np.concatenate((images, copies)))
    exact = named(pairs_of(one))
    monkeypatch.setattr(module, "_FLAT_ROWS", 100)
    assert exact >= named(pairs_of(one)) >= {(row, 300 + row) for row in range(20)}
