"""What baselines add to the real rows: SMOTE's rows, pseudo-labels, neighbours from the pool.

Whoever has unlabelled images can use them without a generator. Synthetic images whose generator
learned from those images must beat the ways to use them that have none.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from imblearn.over_sampling import SMOTE
from sklearn.neighbors import NearestNeighbors

from pipeline.data.images import Images

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_NEIGHBOURS = 5  # of SMOTE, as in the paper
_PER_LARGEST = 2  # added rows a class, in largest classes


def most_rows(labels: Labels) -> int:
    """Return how many rows a baseline may add to each class."""
    return _PER_LARGEST * int(np.bincount(labels).max())


def smote_rows(images: Images, labels: Labels, seed: int) -> tuple[Images, Labels]:
    """Return rows between training rows of a class and their nearest neighbours in it.

    Chawla et al. 2002, on pixels, by imbalanced-learn. A class of one row has no neighbour and
    gets none.

    Args:
        images: (N, H, W, C) uint8 real training rows.
        labels: (N,) class of each.
        seed: of the draws.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    made: list[Images] = [images[:0]]
    of_class: list[Labels] = [labels[:0]]
    sizes = np.bincount(labels)
    several = np.count_nonzero(sizes) > 1  # imbalanced-learn refuses a single class
    for label in np.flatnonzero(sizes > 1) if several else ():
        sampler = SMOTE(
            sampling_strategy={int(label): int(sizes[label]) + most_rows(labels)},
            k_neighbors=int(min(_NEIGHBOURS, sizes[label] - 1)),
            random_state=(seed + int(label)) % 2**32,
        )
        rows, _ = sampler.fit_resample(flat, labels)
        new = np.rint(rows[len(flat) :]).clip(0, 255).astype(np.uint8)
        made.append(new.reshape(-1, *images.shape[1:]))
        of_class.append(np.full(len(new), label, dtype=np.int64))
    return np.concatenate(made), np.concatenate(of_class)


def pseudo_labelled(
    pool: Images, probabilities: Sequence[Floats], confidence: float, most: int
) -> tuple[Images, Labels]:
    """Return the pool rows whose label an ensemble is sure of, with that label.

    Lee 2013; the mean probability of several classifiers is better calibrated than that of one.

    Args:
        pool: (N, H, W, C) uint8 unlabelled rows.
        probabilities: (N, K) of each classifier.
        confidence: least mean probability of a label that is believed, in [0, 1].
        most: rows of a class at most; the surest are kept.
    """
    mean = np.mean(probabilities, axis=0)
    labels, sure = mean.argmax(axis=1), mean.max(axis=1)
    return _surest(pool, labels.astype(np.int64), -sure, sure >= confidence, most)


def retrieved(
    pool: Images,
    pool_features: Floats,
    features: Floats,
    labels: Labels,
    most: int,
) -> tuple[Images, Labels]:
    """Return the pool rows nearest to training rows, with the label of the nearest one.

    Args:
        pool: (N, H, W, C) uint8 unlabelled rows.
        pool_features: (N, D) of them.
        features: (M, D) of the training rows.
        labels: (M,) class of each training row.
        most: rows of a class at most; the nearest are kept.
    """
    found = NearestNeighbors(n_neighbors=1).fit(_unit(features))
    distances, rows = found.kneighbors(_unit(pool_features))
    nearest = labels[rows[:, 0]]
    return _surest(pool, nearest, distances[:, 0], np.ones(len(pool), dtype=bool), most)


def _surest(
    pool: Images, labels: Labels, order: Floats, allowed: npt.NDArray[np.bool_], most: int
) -> tuple[Images, Labels]:
    kept: list[Labels] = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(labels):
        rows = np.flatnonzero(allowed & (labels == label))
        kept.append(rows[np.argsort(order[rows], kind="stable")][:most])
    chosen = np.sort(np.concatenate(kept))
    return pool[chosen], labels[chosen]


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
