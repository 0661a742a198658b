import numpy as np
import pytest

from pipeline.curation.alignment import residuals


def picture(seed, side=16, channels=1):
    return np.random.default_rng(seed).integers(40, 200, (1, side, side, channels)).astype(np.int64)


def residual(one, other):
    return residuals(one.astype(np.uint8), other.astype(np.uint8))[0]


@pytest.mark.parametrize("move", [(0, 0), (1, 0), (-2, 2), (2, -1)])
@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (1, 40), (2, -60)])
def test_a_moved_and_relit_picture_leaves_nothing(move, gain, offset):
    one = picture(0) // 2 + 40
    assert residual(one, np.roll(one, move, axis=(1, 2)) * gain + offset) < 0.01


def test_the_residual_is_that_of_the_correlation():
    one, other = picture(0, side=12), picture(1, side=12)
    rho = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    found = residuals(one.astype(np.uint8), other.astype(np.uint8), reach_px=0)[0]
    assert found == pytest.approx(np.sqrt(1 - max(0.0, rho) ** 2), abs=1e-3)


def test_the_best_move_is_found_as_by_trying_all():
    one, other = picture(0), np.roll(picture(0), (1, 2), axis=(1, 2)) + picture(5) // 4
    best = 0.0
    for down in range(-2, 3):
        for right in range(-2, 3):
            a = one[0, max(0, down) : 16 + min(0, down), max(0, right) : 16 + min(0, right)]
            b = other[0, max(0, -down) : 16 + min(0, -down), max(0, -right) : 16 + min(0, -right)]
            best = max(best, np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert residual(one, other) == pytest.approx(np.sqrt(1 - best**2), abs=1e-3)


def test_a_negative_is_another_picture_and_so_is_a_colour_swap():
    one = picture(0, channels=3)
    assert residual(one, 255 - one) > 0.8
    assert residual(one, one[..., ::-1]) > 0.6


def test_flat_images_are_alike_and_unlike_all_others():
    flat = np.full((1, 16, 16, 1), 7)
    assert residual(flat, flat + 100) == 0
    assert residual(flat, picture(0)) == 1


def test_unrelated_pictures_have_little_in_common():
    assert residual(picture(0), picture(1)) > 0.9
