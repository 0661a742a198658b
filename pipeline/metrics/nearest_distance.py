"""Distances to the closest training row, judged without a threshold.

Two questions that tabular synthesis asks (Platzer and Reutterer 2021, "Holdout-based empirical
assessment of mixed-type synthetic data"; Zhao et al. 2021, "CTAB-GAN"): how alone
does the nearest row stand, and are fake rows nearer to the rows that the network was trained on
than to rows that it has never seen?
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from pipeline.errors import StageError
from pipeline.metrics.estimate import Estimate, Rows, jackknife, require_comparable
from pipeline.metrics.neighbours import nearest
from pipeline.metrics.threads import one_blas_thread

MINIMUM_RATIOS = 6  # below, no two rows enclose the median with 95 %
MINIMUM_TRIPLES = 20
_GROUPS = 20  # of the jackknife


def nearest_ratio(real: npt.NDArray[np.floating], fake: npt.NDArray[np.floating]) -> Estimate:
    """Return the median over fake rows of nearest over second-nearest distance, in [0, 1].

    L2; 1 where both are 0. High is best, up to what held-out real rows reach: low means that fake
    rows cling to single training rows. In many dimensions all distances are alike, and the median
    of rows that copy nothing is near 1.

    The interval is bounded by two order statistics (distribution-free, at least 95 %; David and
    Nagaraja 2003, section 7.1). It covers the draw of the fake rows, the real ones as given.

    Args:
        real: (N, D) training rows, N >= 6; all of them.
        fake: (M, D), M >= 6.

    Raises:
        TooFewRows: fewer than 6 rows on a side.
        StageError: see `require_comparable`.
    """
    require_comparable("nearest_ratio", real, fake, MINIMUM_RATIOS)
    first, second = nearest(fake, real, 2).distances.T
    ratios = np.sort(np.divide(first, second, out=np.ones_like(first), where=second > 0))
    # The rank-th smallest and the rank-th largest enclose the median with at least 95 %.
    rank = int(binom.ppf(0.025, len(ratios), 0.5))
    return Estimate(
        float(np.median(ratios)),
        float(ratios[rank - 1]),
        float(ratios[-rank]),
        len(real),
        len(ratios),
    )


def closer_to_training(
    training: npt.NDArray[np.floating],
    heldout: npt.NDArray[np.floating],
    fake: npt.NDArray[np.floating],
) -> Estimate:
    """Return the share of fake rows that lie nearer to training than to held-out rows, in [0, 1].

    The distance-to-closest-record test: `<` counts 1, a tie half. 0.5 is best, whatever the
    features and the quality of the images, as long as training and held-out rows are draws of one
    source; above it the network repeats what it was trained on.

    Both real sets have the same number of rows: the larger one would be nearer by itself. The
    interval is the delete-a-group jackknife's over draws of the fake rows and of both real sets,
    which are left out in pairs of groups; most of its width comes from few real rows. Features of
    an encoder that was itself trained on the training rows can move the share by themselves.

    Args:
        training: (N, D), N >= 20.
        heldout: (N, D).
        fake: (M, D), M >= 20.

    Returns:
        The share; `n_real` is N.

    Raises:
        TooFewRows: fewer than 20 rows in a set.
        StageError: N differs between the real sets, or see `require_comparable`.
    """
    require_comparable("closer_to_training", training, fake, MINIMUM_TRIPLES)
    require_comparable("closer_to_training", heldout, fake, MINIMUM_TRIPLES)
    if len(training) != len(heldout):
        raise StageError(
            f"closer_to_training: {len(training)} training and {len(heldout)} held-out rows; take "
            "equally many, or the larger set is nearer by itself"
        )
    # (groups, M, 2): with the nearest row of each group known, leaving one out is a minimum.
    with one_blas_thread():  # looked for once, not in each of the searches
        distances = np.stack(
            [
                [nearest(fake, rows[group::_GROUPS], 1).distances[:, 0] for group in range(_GROUPS)]
                for rows in (training, heldout)
            ],
            axis=2,
        )

    def share(groups: Rows, rows: Rows) -> float:
        ours, theirs = groups.min(axis=0)[rows.astype(np.int64)].T
        return float((ours < theirs).mean() + (ours == theirs).mean() / 2)

    found = jackknife(share, distances, np.arange(len(fake), dtype=np.float64), 0.0, 1.0)
    return replace(found, n_real=len(training))
