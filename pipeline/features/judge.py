"""The judge: classifiers trained on the real training rows, and the encoders made from them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import nn

from pipeline.data.augment import build_augmentation
from pipeline.data.images import Images, to_model
from pipeline.data.store import Samples
from pipeline.device import autocast, pick_precision
from pipeline.errors import StageError
from pipeline.features.classifier import (
    FitSettings,
    SmallCNN,
    build_classifier,
    fit_classifier,
)
from pipeline.seeds import derive_seed, numpy_generator

Floats = npt.NDArray[np.float64]

_BASE_CHANNELS = 32
_BATCH_IMAGES = 64
_LEARNING_RATE = 3.0e-3
_WEIGHT_DECAY = 0.01
_LOOK_IMAGES = 32  # of one pass; always as many, so that a score does not depend on its company


@dataclass(frozen=True)
class Looked:
    """What the ensemble says of N images.

    Attributes:
        members: (K, N, C) float64 each judge's class probabilities.
        features: (N, K * D) float32, each judge's last map averaged over its cells, side by side.
    """

    members: Floats
    features: npt.NDArray[np.float32]

    @property
    def probabilities(self) -> Floats:
        """Return the (N, C) mean of the judges' probabilities."""
        mean: Floats = self.members.mean(axis=0)
        return mean


@dataclass(frozen=True)
class Ensemble:
    """Judges that were each trained without one fold of the training rows.

    Attributes:
        judges: K of them.
        folds: (M,) which judge has not seen each training row.
        out_of_fold: (M, C) that judge's class probabilities of each training row.
    """

    judges: tuple[SmallCNN, ...]
    folds: npt.NDArray[np.int64]
    out_of_fold: Floats

    def look(self, images: Images) -> Looked:
        """Return probabilities and features of (N, H, W, C) uint8 images, in one pass a judge."""
        seen = [_look(judge, images) for judge in self.judges]
        members = np.stack([softmax(logits.astype(np.float64), axis=1) for logits, _ in seen])
        return Looked(members, np.concatenate([features for _, features in seen], axis=1))

    def predict(self, images: Images) -> Floats:
        """Return the (N, C) mean probabilities of (N, H, W, C) uint8 images."""
        return self.look(images).probabilities

    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """Return (N, K * D) float32 features of (N, H, W, C) uint8 images."""
        return self.look(images).features


def fit_judge(
    training: Samples,
    classes: int,
    steps: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[int], None],
) -> SmallCNN:
    """Return a classifier of the training rows, all classes drawn alike, lightly augmented."""
    _, side, _, channels = training.images.shape
    model = build_classifier(
        channels, classes, _BASE_CHANNELS, side, derive_seed(seed, "judge", "weights")
    ).to(device)
    counts = np.bincount(training.labels, minlength=classes)
    chances = 1.0 / counts[training.labels]
    chances /= chances.sum()
    augment = build_augmentation("light", horizontal_flip=False)

    def next_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = numpy_generator(seed, "judge", step)
        rows = random.choice(len(chances), size=_BATCH_IMAGES, p=chances)
        images = augment(training.images[rows], derive_seed(seed, "judge", "augment", step))
        return to_model(images), torch.from_numpy(training.labels[rows])

    settings = FitSettings(steps, _LEARNING_RATE, _WEIGHT_DECAY, seed)
    fit_classifier(model, next_batch, settings, on_step)
    return model


def fit_ensemble(
    training: Samples,
    classes: int,
    steps: int,
    folds: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[int], None],
) -> Ensemble:
    """Return `folds` judges, each trained without one fold of the training rows.

    Cross-fitting gives each training row the probabilities of a judge that has not seen it
    (as in Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels"),
    and the mean of judges that saw different rows is surer where they agree, less sure where they
    do not (Lakshminarayanan et al. 2017, "Simple and scalable predictive uncertainty estimation
    using deep ensembles").

    Args:
        training: rows; those of one group are all seen or all unseen by a judge.
        classes: number of classes.
        steps: optimiser steps of each judge.
        folds: judges, at least 2. A class with fewer groups than folds is missing from some judges
            by as many groups as it has, and a class of a single group from none: its
            out-of-fold probabilities are then of a judge that saw it.
        seed: root seed.
        device: where they are trained, and where they stay.
        on_step: told the number of finished steps of all judges together.

    Raises:
        StageError: fewer than 2 folds or no training rows.
    """
    if folds < 2 or not len(training):
        raise StageError(
            f"judge: {folds} folds of {len(training)} training rows; at least 2 folds of 1 row "
            "are needed"
        )
    fold_of = draw_folds(training, folds, seed)
    single = _single_group(training)
    judges: list[SmallCNN] = []
    out_of_fold = np.zeros((len(training), classes))
    for fold in range(folds):
        held_out = fold_of == fold
        judge = fit_judge(
            training.take(~held_out | single),
            classes,
            steps,
            derive_seed(seed, "judge", "fold", fold),
            device,
            lambda step, done=fold * steps: on_step(done + step),  # type: ignore[misc]
        )
        judges.append(judge)
        if held_out.any():
            logits = _look(judge, training.images[held_out])[0]
            out_of_fold[held_out] = softmax(logits.astype(np.float64), axis=1)
    return Ensemble(tuple(judges), fold_of, out_of_fold)


def draw_folds(training: Samples, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return each row's fold, in [0, folds): stratified by class, whole groups, shuffled.

    Classes begin at different folds, so that classes of few groups do not all fall into the first.
    """
    fold_of = np.zeros(len(training), dtype=np.int64)
    rows_of: dict[int, dict[str, list[int]]] = {}
    for row, (label, group) in enumerate(
        zip(training.labels.tolist(), training.groups, strict=True)
    ):
        rows_of.setdefault(label, {}).setdefault(group, []).append(row)
    start = 0
    for label, groups in sorted(rows_of.items()):
        names = sorted(groups)
        numpy_generator(seed, "judge folds", label).shuffle(names)
        for i, name in enumerate(names):
            fold_of[groups[name]] = (start + i) % folds
        start += len(names)
    return fold_of


def _single_group(training: Samples) -> npt.NDArray[np.bool_]:
    """Return which rows are of a class that has one group alone."""
    groups: dict[int, set[str]] = {}
    for label, group in zip(training.labels.tolist(), training.groups, strict=True):
        groups.setdefault(label, set()).add(group)
    return np.asarray([len(groups[label]) == 1 for label in training.labels.tolist()], dtype=bool)


def _channels(judge: SmallCNN) -> int:
    """Return the channels of the last map."""
    return [one for one in judge.modules() if isinstance(one, nn.Conv2d)][-1].out_channels


def _look(
    judge: SmallCNN, images: Images
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return (N, C) logits and (N, D) features, the last map averaged over its cells."""
    device = judge.head.weight.device
    width = judge.head.in_features
    channels = _channels(judge)
    logits = np.zeros((len(images), judge.head.out_features), dtype=np.float32)
    features = np.zeros((len(images), channels), dtype=np.float32)
    judge.eval()
    with torch.inference_mode(), autocast(device, pick_precision("auto", device)):
        for start in range(0, len(images), _LOOK_IMAGES):
            part = to_model(images[start : start + _LOOK_IMAGES])
            size = len(part)
            # Filled up to one size: kernels chosen by the batch's size round differently.
            part = torch.cat([part, part.new_zeros((_LOOK_IMAGES - size, *part.shape[1:]))])
            maps = judge.features(part.to(device))
            rows = judge.head(maps).float().cpu().numpy()
            logits[start : start + size] = rows[:size]
            cells = maps.reshape(_LOOK_IMAGES, channels, width // channels).mean(dim=2)
            features[start : start + size] = cells.float().cpu().numpy()[:size]
    return logits, features
