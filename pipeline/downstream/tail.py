"""The thin classes, which synthetic images are made for."""

from collections.abc import Sequence

import numpy as np

from pipeline.downstream.scores import Scores

_TAIL_CLASSES = 3


def tail_classes(training_images: Sequence[float]) -> tuple[int, ...]:
    """Return the labels of the three classes with the fewest real training images, fewest first.

    Equal counts keep label order; where there are no more than three classes, all but the largest.
    """
    order = sorted(range(len(training_images)), key=lambda k: (training_images[k], k))
    return tuple(order[: max(1, min(_TAIL_CLASSES, len(order) - 1))])


def tail_recall(scores: Scores, tail: Sequence[int]) -> float:
    """Return the mean recall over the tail classes, in [0, 1]."""
    return float(np.mean(scores.recall[list(tail)]))
