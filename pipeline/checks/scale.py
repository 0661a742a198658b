"""The set's own scale: what is usual in it, and how far usual images stray from that."""

import numpy as np
import numpy.typing as npt

_TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


def deviations(values: npt.NDArray[np.float64], least_scale: float) -> npt.NDArray[np.float64]:
    """Return how many robust standard deviations each value lies above the median.

    The scale is 1.4826 times the median absolute deviation (Leys et al. 2013, "Detecting
    outliers"), and no less than `least_scale`: in a set of like values a speck is no outlier.
    """
    centre = np.median(values)
    scale = _TO_SIGMA * float(np.median(np.abs(values - centre)))
    return np.asarray((values - centre) / max(scale, least_scale), dtype=np.float64)
