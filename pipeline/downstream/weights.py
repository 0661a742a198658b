"""How often each training row is drawn, where rows are drawn by weight."""

import numpy as np
import numpy.typing as npt


def sampling_weights(
    labels: npt.NDArray[np.int64], synthetic: npt.NDArray[np.bool_], share: float
) -> npt.NDArray[np.float64]:
    """Return (N,) weights, mean 1, by which drawing rows does what Replenish's own arms do.

    Every class weighs the same, and within a class its synthetic rows together `share` of it; a
    class that has only one kind is all of that kind.
    """
    weights = np.zeros(len(labels))
    for label in np.unique(labels):
        kinds = [(labels == label) & ~synthetic, (labels == label) & synthetic]
        parts = [1.0 - share, share] if all(kind.any() for kind in kinds) else [1.0, 1.0]
        for kind, part in zip(kinds, parts, strict=True):
            if kind.any():
                weights[kind] = part / kind.sum()
    weights *= len(weights) / weights.sum()
    return weights
