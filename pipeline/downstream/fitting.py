"""One classifier: an arm's rows and loss, a repetition's draws, and what it then predicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from pipeline.data.images import Images, to_model
from pipeline.downstream.arms import SOFT, Arm, draw_rows
from pipeline.downstream.bench import Bench, Probabilities
from pipeline.downstream.mixing import mix_rows
from pipeline.downstream.views import Views
from pipeline.features.classifier import (
    Batch,
    Classifier,
    FitSettings,
    Loss,
    fit_classifier,
    predict,
)
from pipeline.features.losses import class_weighted, focal, logit_adjusted
from pipeline.features.networks import NetworkSpec, build_network
from pipeline.params import EvaluateParams
from pipeline.seeds import derive_seed, numpy_generator

Pair = tuple[Arm, int]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """What one classifier says; rows in the store's order.

    Attributes:
        validation: (N,) predicted class of each validation row.
        test: (N,) predicted class of each test row.
        validation_probabilities: (N, K) of each validation row; (N, 0) where they are not known.
        test_probabilities: (N, K) of each test row; (N, 0) where they are not known.
        corrupted: (C, M) predicted class of some test rows under each corruption; (0, 0) without.
    """

    validation: Labels
    test: Labels
    validation_probabilities: Probabilities
    test_probabilities: Probabilities
    corrupted: Labels


def classifier_steps(wanted: int | None, training_images: int) -> int:
    """Return the optimiser steps of every arm: those wanted, or 1.25 a real image, 400 to 2,500."""
    return wanted or min(max(round(1.25 * training_images), 400), 2500)


def network_of(bench: Bench, params: EvaluateParams) -> NetworkSpec:
    """Return the network that all arms train."""
    return NetworkSpec(
        kind=params.classifier,
        model=params.timm_model,
        pretrained=params.pretrained,
        channels=bench.images.shape[3],
        classes=bench.classes,
        image_size_px=bench.images.shape[1],
        base_channels=params.base_channels,
    )


def train_pair(
    bench: Bench,
    params: EvaluateParams,
    pair: Pair,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    views: Views | None = None,
) -> Predictions:
    """Train one classifier and return its predictions; the caller sets the number of threads."""
    return predict_all(fit_pair(bench, params, pair, device, on_step, views), bench)


def predict_all(model: Classifier, bench: Bench) -> Predictions:
    """Return what a classifier says of the held-out rows."""
    validation, test = predict(model, bench.validation), predict(model, bench.test)
    corrupted = [predict(model, rows).argmax(axis=1) for rows in _corrupted(bench)]
    return Predictions(
        validation.argmax(axis=1).astype(np.int64),
        test.argmax(axis=1).astype(np.int64),
        _softmax(validation),
        _softmax(test),
        np.stack(corrupted).astype(np.int64) if corrupted else np.zeros((0, 0), dtype=np.int64),
    )


def fit_pair(
    bench: Bench,
    params: EvaluateParams,
    pair: Pair,
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    views: Views | None = None,
) -> Classifier:
    """Train one classifier and return it; the caller sets the number of threads.

    Args:
        bench: the data.
        params: settings of all arms.
        pair: arm and index of the repetition.
        device: where it trains.
        on_step: told the number of finished steps after each one.
        views: augmented rows of the repetition, to share with other arms.
    """
    arm, seed = pair
    weights = derive_seed(params.seed, "evaluate", "weights", seed)
    model = build_network(network_of(bench, params), weights)
    model.to(device)
    pools = bench.pools
    if arm.real_fraction < 1.0:
        order = numpy_generator(params.seed, "evaluate", "fraction", seed)
        pools = pools.fraction(arm.real_fraction, order)
    if views is None or views.repetition != seed:
        views = make_views(bench, params, seed, keep=False)
    steps = classifier_steps(params.steps, bench.real_images)

    def next_batch(step: int) -> Batch:
        random = numpy_generator(params.seed, "evaluate", "rows", seed, step)
        draw = draw_rows(arm.at_step(step, steps), pools, params.batch_images, random)
        rows = draw.rows()
        images = to_model(views.at(arm.augmentation, step, rows, draw.use_added))
        weights = None
        if arm.added_weight != 1.0:
            weights = torch.from_numpy(np.where(draw.use_added, arm.added_weight, 1.0)).float()
        targets = None
        if SOFT in arm.adds():
            targets = torch.from_numpy(bench.targets(rows))
        labels = torch.from_numpy(bench.labels[rows])
        batch = Batch(images, labels, weights=weights, targets=targets)
        return batch if arm.mix == "none" else mix_rows(batch, arm.mix, arm.strength, random)

    settings = FitSettings(steps, arm.learning_rate, params.weight_decay, weights)
    counts = [len(rows) for rows in pools.real]
    fit_classifier(model, next_batch, settings, on_step, loss_of(arm, counts))
    return model


def make_views(bench: Bench, params: EvaluateParams, repetition: int, keep: bool = True) -> Views:
    """Return the augmented rows of a repetition."""
    return Views(bench.images, params.seed, repetition, params.horizontal_flip, keep)


def loss_of(arm: Arm, counts: Sequence[int]) -> Loss | None:
    """Return an arm's loss of one row, given the real rows of each class; None is cross entropy."""
    match arm.loss:
        case "class_weighted":
            return class_weighted(counts)
        case "logit_adjusted":
            return logit_adjusted(counts, arm.strength)
        case "focal":
            return focal(arm.strength)
        case "cross_entropy":
            return None


def _corrupted(bench: Bench) -> Sequence[Images]:
    return () if bench.corrupted is None else list(bench.corrupted)


def _softmax(logits: npt.NDArray[np.float32]) -> Probabilities:
    return np.asarray(softmax(logits, axis=1)).astype(np.float16)
