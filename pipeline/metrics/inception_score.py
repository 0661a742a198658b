"""Inception score: are single images sure of their class, and all of them of many classes?

The mutual information of image and class, as an exponential (Salimans et al. 2016, "Improved
techniques for training GANs", section 4). It never looks at real images and never looks within a
class: one perfect image a class has the best score. Read it beside a distance to real rows.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from pipeline.errors import StageError
from pipeline.metrics.estimate import Estimate, normal_interval, require_features

_Array = npt.NDArray[np.float64]

_SUM_ERROR = 1e-3  # of a row's sum: what a softmax in half precision leaves


def inception_score(probabilities: npt.NDArray[np.floating]) -> Estimate:
    """Return exp(mean KL(p(y | x) || p(y))), over all rows at once.

    In [1, K]: 1 where every row has the same probabilities, K where each row is sure of one class
    and all classes are met equally often. High is best, but real images under the same classifier
    reach the value to hope for. The arithmetic is that of torch-fidelity with one split; the mean
    over ten splits that papers print is lower.

    With few rows it is too low: where rows are sure of their class, by about (K - 1) / (2 N) of
    its value (Miller 1955), a tenth at N = 5 K. The interval is value +- 1.96 standard errors by
    the jackknife that leaves out each row in turn (Efron and Stein 1981); it covers the draw of
    the rows, and neither that bias nor the classifier.

    Args:
        probabilities: (N, K) of each class, N >= K >= 2; a classifier's softmax.

    Returns:
        The score; `n_real` is 0, since no real row is looked at.

    Raises:
        TooFewRows: fewer rows than classes: the top of the range is out of reach.
        StageError: rows that are no probabilities, or fewer than 2 classes.
    """
    if probabilities.ndim == 2 and probabilities.shape[1] < 2:
        raise StageError("inception_score: 1 class at most; a score needs at least 2 classes")
    minimum = probabilities.shape[1] if probabilities.ndim == 2 else 0
    require_features("inception_score", "fake", probabilities, minimum)
    p = probabilities.astype(np.float64)
    _require_probabilities(p)
    count, classes = p.shape

    certainty = -entr(p).sum(axis=1)  # (N,) sum of p log p
    total = p.sum(axis=0)  # (K,)
    value = math.exp(certainty.mean() + entr(total / count).sum())
    # Without row i the classes' shares are (total - p_i) / (N - 1): no other row is read again.
    # Rounding can leave a share just below 0, which has no logarithm.
    marginal = entr(np.maximum(total - p, 0) / (count - 1)).sum(axis=1)
    without = np.exp((certainty.sum() - certainty) / (count - 1) + marginal)  # (N,)
    variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
    return normal_interval(value, math.sqrt(variance), 0, count, 1.0, float(classes))


def _require_probabilities(p: _Array) -> None:
    for name, bad in (
        ("is below 0", (p < 0).any(axis=1)),
        ("does not sum to 1", np.abs(p.sum(axis=1) - 1) > _SUM_ERROR),
    ):
        if bad.any():
            raise StageError(
                f"inception_score: row {int(bad.argmax())} of the probabilities {name}; give a "
                "classifier's softmax, not its logits"
            )
