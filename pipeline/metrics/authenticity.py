"""Authenticity: how many generated images are more than a shaken training image?

Alaa et al. 2022, "How faithful is your synthetic data? Sample-level metrics for evaluating and
auditing generative models": an image is a copy with noise where it lies nearer to a training image
than the nearest other training image does.
"""

import numpy as np
import numpy.typing as npt

from pipeline.metrics.estimate import Estimate, require_comparable
from pipeline.metrics.memorization import share_estimate
from pipeline.metrics.neighbours import nearest, nearest_others

MINIMUM_ROWS = 2


def authenticity(real: npt.NDArray[np.floating], fake: npt.NDArray[np.floating]) -> Estimate:
    """Return the share of authentic fake rows, in [0, 1]; classes play no part.

    A fake row is authentic where its distance to its nearest real row r is `>` the distance from
    r to the nearest other real row (L2); a tie is a copy, and so is a row that meets a real row
    that is there twice and stands on it. High is best, but 1 is not to be had: fresh draws of one
    normal distribution reach 0.4 in 2 dimensions and 0.8 in 64, so read it beside fresh real rows.
    Each fake row is judged by the real row next to it, as the paper says; some public code looks
    the radius up under the wrong index.

    The interval is Wilson's, over draws of the fake rows with the real rows as given.

    Args:
        real: (N, D) training rows, N >= 2; all of them, since a row left out hides its copies.
        fake: (M, D), M >= 2.

    Raises:
        TooFewRows: fewer than 2 rows on a side.
        StageError: see `require_comparable`.
    """
    require_comparable("authenticity", real, fake, MINIMUM_ROWS)
    met = nearest(fake, real, 1)
    radii = nearest_others(real, 1).distances[:, 0]
    return share_estimate(met.distances[:, 0] > radii[met.rows[:, 0]], len(real))
