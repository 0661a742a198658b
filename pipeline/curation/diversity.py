"""The choice among good candidates: in their order, or for variety.

Both ways to variety are greedy, so that the first k of a choice of n are the choice of k.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

Select = Literal["first", "diverse", "k_centre"]
Rows = npt.NDArray[np.int64]
_Array = npt.NDArray[np.float64]

# Candidates that are weighed against each other at once: the determinant needs a matrix of
# (candidates, choice) numbers, 4,096 x 2,048 of them are 64 MiB.
_GROUP = 4096
_BANDWIDTH_ROWS = 1000
_JITTER = 1e-10  # of the kernel's diagonal: below it a candidate adds nothing


def choose(features: npt.NDArray[np.floating], count: int, how: Select) -> Rows:
    """Return the positions of `count` candidates of one class, best first.

    `first` takes them as they come. `diverse` maximises the determinant of their Gaussian kernel
    greedily (Chen et al. 2018, "Fast greedy MAP inference for determinantal point process to
    improve recommendation diversity"), with the median distance as bandwidth. `k_centre` takes the
    candidate that is farthest from all taken ones (Gonzalez 1985, "Clustering to minimize the
    maximum intercluster distance"), beginning with the one nearest to the mean.
    More than 4,096 candidates are dealt into groups, and each gives its share.

    Args:
        features: (N, D) of the good candidates, in the order of their indices.
        count: how many are wanted; all, where there are no more.
        how: the rule.

    Returns:
        (min(N, count),) positions.
    """
    total = len(features)
    count = min(count, total)
    if how == "first" or count == 0:
        return np.arange(count, dtype=np.int64)
    groups = -(-total // _GROUP)
    orders: list[Rows] = []
    for one in range(groups):
        rows = np.arange(one, total, groups)
        share = -(-count // groups)
        order = (_determinant if how == "diverse" else _k_centre)(
            features[rows].astype(np.float64), min(share, len(rows))
        )
        orders.append(rows[order])
    # In turn from each group, so that any first part is spread over all of them.
    width = max(len(order) for order in orders)
    padded = np.full((width, groups), -1, dtype=np.int64)
    for column, order in enumerate(orders):
        padded[: len(order), column] = order
    mixed = padded.ravel()
    return mixed[mixed >= 0][:count]


def _determinant(features: _Array, count: int) -> Rows:
    """Choose rows whose kernel matrix has a large determinant, greedily."""
    gamma = 1 / (2 * _bandwidth(features) ** 2)
    gain = np.ones(len(features))  # what each row would multiply the determinant by
    basis = np.zeros((len(features), count))  # rows of the Cholesky factor
    order: list[int] = []
    for step in range(count):
        row = int(np.argmax(gain))
        order.append(row)
        if gain[row] <= _JITTER:  # the rest repeat what is chosen: by their order
            left = [i for i in range(len(features)) if i not in set(order)]
            return np.asarray([*order, *left][:count], dtype=np.int64)
        similar = np.exp(-gamma * ((features - features[row]) ** 2).sum(axis=1))
        column = (similar - basis[:, :step] @ basis[row, :step]) / np.sqrt(gain[row])
        basis[:, step] = column
        gain = gain - column**2
        gain[order] = -np.inf
    return np.asarray(order, dtype=np.int64)


def _k_centre(features: _Array, count: int) -> Rows:
    """Choose rows that leave no row far from a chosen one, greedily."""
    order = [int(np.argmin(((features - features.mean(axis=0)) ** 2).sum(axis=1)))]
    nearest = cdist(features, features[order])[:, 0]
    while len(order) < count:
        nearest[order] = -np.inf
        order.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, cdist(features, features[order[-1:]])[:, 0])
    return np.asarray(order, dtype=np.int64)


def _bandwidth(features: _Array) -> float:
    """Return the median distance between rows, over evenly spaced ones; 1 where it is 0."""
    rows = features
    if len(rows) > _BANDWIDTH_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _BANDWIDTH_ROWS).astype(np.int64)]
    if len(rows) < 2:
        return 1.0
    return float(np.median(pdist(rows))) or 1.0
