import random

import numpy as np
import pytest
import torch

from pipeline.data.images import to_model
from pipeline.features.classifier import (
    FitSettings,
    NextBatch,
    SmallCNN,
    build_classifier,
    embed,
    fit_classifier,
    predict,
)

SETTINGS = FitSettings(steps=40, learning_rate=1.0e-2, weight_decay=0.0, seed=0)


def bright_quadrants(n: int, side_px: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Four classes: which quarter of a noisy image is bright."""
    noise = np.random.default_rng(0)
    images = noise.integers(0, 80, (n, side_px, side_px, 1), dtype=np.uint8)
    labels = np.arange(n) % 4
    half = side_px // 2
    for image, label in zip(images, labels, strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[top : top + half, left : left + half] += 120
    return images, labels.astype(np.int64)


def batches(images: np.ndarray, labels: np.ndarray, batch_images: int = 16) -> NextBatch:
    def next_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.random.default_rng(step).integers(0, len(images), batch_images)
        return to_model(images[rows]), torch.from_numpy(labels[rows])

    return next_batch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("side_px", [8, 12, 28, 32, 64, 96, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_size_keeps_a_map_of_three_by_three(side_px: int, channels: int) -> None:
    model = SmallCNN(channels, 5, 4, side_px)
    images = torch.zeros(2, channels, side_px, side_px)
    assert model(images).shape == (2, 5)
    assert model.body(images).shape[2:] == (3, 3)
    assert model.features(images).shape == (2, model.head.in_features)


def test_weights_depend_on_the_seed_and_on_no_global_generator() -> None:
    torch.manual_seed(1)
    first = build_classifier(1, 3, 4, 8, seed=7).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = build_classifier(1, 3, 4, 8, seed=7).state_dict()
    other = build_classifier(1, 3, 4, 8, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_an_untrained_classifier_prefers_no_class() -> None:
    model = build_classifier(1, 3, 4, 8, seed=0)
    images, _ = bright_quadrants(8)
    assert not predict(model, images).any()


def test_it_learns_where_something_stands() -> None:
    images, labels = bright_quadrants(64)
    model = build_classifier(1, 4, 4, 8, seed=0)
    steps: list[int] = []
    fit_classifier(model, batches(images, labels), SETTINGS, steps.append)
    assert steps == list(range(1, SETTINGS.steps + 1))
    assert not model.training
    assert (predict(model, images).argmax(1) == labels).mean() > 0.95


def test_training_twice_gives_the_same_weights_to_the_bit() -> None:
    images, labels = bright_quadrants(32)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002 - the global generator must not matter
        random.seed(noise)
        model = build_classifier(1, 4, 4, 8, seed=3)
        fit_classifier(model, batches(images, labels), FitSettings(5, 1.0e-2, 0.01, 3))
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_single_step_changes_the_weights() -> None:
    images, labels = bright_quadrants(16)
    model = build_classifier(1, 4, 4, 8, seed=0)
    fit_classifier(model, batches(images, labels), FitSettings(1, 1.0e-2, 0.0, 0))
    assert predict(model, images).any()


def test_predict_and_embed_agree_whatever_the_batch() -> None:
    images, labels = bright_quadrants(20)
    model = build_classifier(1, 4, 4, 8, seed=0)
    fit_classifier(model, batches(images, labels), SETTINGS)
    logits, features = predict(model, images), embed(model, images)
    assert logits.dtype == features.dtype == np.float32
    assert features.shape == (20, model.head.in_features)
    np.testing.assert_allclose(predict(model, images, batch_images=7), logits, atol=0.05)
    head = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    np.testing.assert_allclose(features @ head[0].T + head[1], logits, rtol=0.05, atol=0.1)


def test_no_images_give_no_rows() -> None:
    model = build_classifier(3, 4, 4, 8, seed=0)
    empty = np.zeros((0, 8, 8, 3), dtype=np.uint8)
    assert predict(model, empty).shape == (0, 4)
    assert embed(model, empty).shape == (0, model.head.in_features)
