import numpy as np
import pytest
import torch

from pipeline.errors import InputError, StageError
from pipeline.features import selfsupervised
from pipeline.features.frozen import Encoder
from pipeline.features.selfsupervised import (
    MINIMUM_ROWS,
    SelfSupervision,
    selfsupervised_encoder,
    vicreg_loss,
)

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), dtype=np.uint8)


def trained(steps: int = 2, seed: int = 0, flip: bool = False, images=IMAGES) -> Encoder:
    return selfsupervised_encoder(images, SelfSupervision(steps, seed, flip), CPU)


def test_features_are_one_vector_an_image() -> None:
    encoder = trained()
    found = encoder.embed(IMAGES[:5])
    assert found.shape == (5, encoder.width) == (5, 128)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_equal_arguments_give_equal_encoders_and_others_do_not() -> None:
    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    again = trained()
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.embed(IMAGES), again.embed(IMAGES))
    others = [trained(seed=1), trained(steps=3), trained(flip=True), trained(images=IMAGES[::-1])]
    assert len({first.digest, *(one.digest for one in others)}) == 5


def test_it_draws_from_no_global_generator() -> None:
    state = torch.get_rng_state()
    trained()
    assert torch.equal(state, torch.get_rng_state())


def test_progress_is_told_after_each_step() -> None:
    told: list[int] = []
    selfsupervised_encoder(IMAGES, SelfSupervision(3, 0, False), CPU, told.append)
    assert told == [1, 2, 3]


def test_too_few_rows_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match="63 training and pool rows; it needs at least 64"):
        trained(images=IMAGES[: MINIMUM_ROWS - 1])


def test_a_loss_that_is_not_finite_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(selfsupervised, "vicreg_loss", lambda a, b: (a - b).sum() * torch.nan)
    with pytest.raises(StageError, match="the loss is nan at step 0"):
        trained()


def test_the_loss_of_spread_uncorrelated_equal_views_is_zero() -> None:
    view = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert vicreg_loss(view, view).item() == pytest.approx(0)
    shifted = view + 3  # neither spread nor covariance sees the mean
    assert vicreg_loss(view, shifted).item() == pytest.approx(25 * 9)


def test_the_loss_of_a_collapse_is_the_missing_spread() -> None:
    view = torch.ones(8, 5)
    # Two views, each 1 - sqrt(epsilon) short of the deviation 1.
    assert vicreg_loss(view, view).item() == pytest.approx(25 * 2 * (1 - 0.01), rel=1e-4)


def test_the_loss_counts_squared_covariances() -> None:
    column = torch.tensor([2.0, -2, 2, -2])
    view = torch.stack([column, column], dim=1)
    covariance = 16 / 3  # unbiased, of a column with itself
    assert vicreg_loss(view, view).item() == pytest.approx(2 * 2 * covariance**2 / 2)


@pytest.mark.slow
def test_training_without_labels_brings_the_classes_of_digits_together() -> None:
    """kNN accuracy from 10 labelled digits a class, against the same network untrained.

    Measured with 100 steps: 0.87, 0.86, 0.88 trained and 0.76, 0.69, 0.84 raw (seeds 0 to 2).
    """
    trained_accuracy, raw_accuracy = digits_accuracy(steps=100, seed=0)
    assert trained_accuracy > raw_accuracy + 0.05
    assert trained_accuracy > 0.8


def digits_accuracy(steps: int, seed: int) -> tuple[float, float]:
    """Return the accuracy of the trained and of the raw network on 600 held-out digits."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)[:, :, :, None]
    order = np.random.default_rng(seed).permutation(len(images))
    held_out, rest = order[:600], order[600:]
    labelled = np.concatenate([rest[digits.target[rest] == c][:10] for c in range(10)])

    def accuracy(encoder: Encoder) -> float:
        neighbours = KNeighborsClassifier(5)
        neighbours.fit(encoder.embed(images[labelled]), digits.target[labelled])
        found = neighbours.score(encoder.embed(images[held_out]), digits.target[held_out])
        return float(found)

    rows = images[rest]
    return accuracy(trained(steps, seed, images=rows)), accuracy(trained(0, seed, images=rows))
