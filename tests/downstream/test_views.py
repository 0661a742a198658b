import numpy as np
import pytest

from pipeline.data.augment import build_image_augmentation
from pipeline.downstream.views import Views

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
ROWS = np.array([0, 3, 3, 5])
NONE = np.zeros(4, dtype=bool)


def views(repetition: int = 0, keep: bool = True, seed: int = 0) -> Views:
    return Views(IMAGES, seed, repetition, flip=False, keep=keep)


def test_without_a_policy_rows_are_as_they_are() -> None:
    assert (views().at("none", 0, ROWS, NONE) == IMAGES[ROWS]).all()


def test_a_view_depends_on_repetition_step_place_and_row_alone() -> None:
    one = views()
    first = one.at("light", 4, ROWS, NONE)
    assert (first != IMAGES[ROWS]).any()
    assert (first[1] != first[2]).any()  # the same row, at another place
    other = one.at("light", 4, np.array([1, 3, 2, 5]), NONE)
    assert (other[[1, 3]] == first[[1, 3]]).all()
    assert (one.at("light", 4, ROWS, NONE) == first).all()
    assert (views(keep=False).at("light", 4, ROWS, NONE) == first).all()
    for changed in (
        views().at("light", 5, ROWS, NONE),
        views(1).at("light", 4, ROWS, NONE),
        views(seed=1).at("light", 4, ROWS, NONE),
        views().at("strong", 4, ROWS, NONE),
        views().at("light", 4, ROWS, ~NONE),
    ):
        assert (changed != first).any()


def test_added_rows_have_views_of_their_own() -> None:
    added = np.array([True, False, False, True])
    mixed = views().at("light", 0, ROWS, added)
    assert (mixed[1:3] == views().at("light", 0, ROWS, NONE)[1:3]).all()
    assert (mixed[[0, 3]] == views().at("light", 0, ROWS, ~NONE)[[0, 3]]).all()


def test_what_was_made_once_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = build_image_augmentation("light", False)

    def counting(policy, flip):
        def augment(image, seed):
            made.append(seed)
            return real(image, seed)

        return augment

    monkeypatch.setattr("pipeline.downstream.views.build_image_augmentation", counting)
    one = views()
    one.at("light", 0, ROWS, NONE)
    one.at("light", 0, ROWS, np.array([False, True, False, False]))
    assert len(made) == 4 + 1
    one.at("light", 0, np.array([0, 3, 4, 5]), NONE)
    assert len(made) == 4 + 1 + 1
    forgetful = views(keep=False)
    made.clear()
    for _ in range(2):
        forgetful.at("light", 0, ROWS, NONE)
    assert len(made) == 8
