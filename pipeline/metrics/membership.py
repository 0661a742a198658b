"""Membership inference: do a network's losses give away which images it was trained on?

An attacker who sees the loss of an image calls it a training image where the loss is low (Yeom et
al. 2018, "Privacy risk in machine learning"; of diffusion models, Matsumoto et al. 2023,
"Membership inference attacks against diffusion models"). Members are training rows, non-members
held-out rows. `pipeline.diffusion.reconstruction` measures the losses.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import rankdata

from pipeline.errors import StageError
from pipeline.metrics.estimate import Estimate, TooFewRows, jackknife

_Losses = npt.NDArray[np.floating]

MINIMUM_ROWS = 5  # a side, for the area
# Non-members below the threshold that a rate at a low false-positive rate must rest on.
_FALSE_POSITIVES = 10
_QUANTILE = 1.959964  # of the normal distribution, for 95 %
_EDGE = 1e-9


def membership_auc(members: _Losses, nonmembers: _Losses) -> Estimate:
    """Return the area under the curve of the attack by loss, in [0, 1].

    The probability that a member has the lower loss of a random pair, ties counted half
    (Mann-Whitney). 0.5 is best: the losses say nothing. Near 1 the network knows its training rows
    by heart. Below 0.5 by more than chance, the two sets were not alike from the start.

    The interval holds the areas t that are within 1.96 standard errors of the value, with the
    standard error that Hanley and McNeil 1982 give for t itself (exponential form;
    Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic, part 2", method 5): it has a width also where the sets are apart and the value is 1.
    It covers the draw of both sets, and neither the training nor the noise of the losses.

    Args:
        members: (N,) losses of training rows, N >= 5.
        nonmembers: (M,) losses of held-out rows, M >= 5, under the same noise.

    Returns:
        The area; `n_real` counts the non-members, `n_fake` the members.

    Raises:
        TooFewRows: fewer than 5 on a side.
        StageError: not (N,) and (M,), or a loss that is not finite.
    """
    _require_losses("membership_auc", members, nonmembers, MINIMUM_ROWS)
    n, m = len(members), len(nonmembers)
    ranks = rankdata(np.concatenate([members, nonmembers]))
    # Pairs in which the non-member has the higher loss, from the non-members' rank sum.
    higher = float(ranks[n:].sum()) - m * (m + 1) / 2
    value = min(max(higher / (n * m), 0.0), 1.0)
    low, high = _area_interval(value, n, m)
    return Estimate(value, low, high, n_real=m, n_fake=n)


def tpr_at_fpr(members: _Losses, nonmembers: _Losses, fpr: float = 0.01) -> Estimate:
    """Return the share of members that the attack finds while it is seldom wrong, in [0, 1].

    The threshold is the loss below which (`<`) at most a share `fpr` of the non-members lies; the
    value is the share of members below it (Carlini et al. 2022, "Membership inference attacks from
    first principles"). `fpr` is best: no better than guessing. An area near 0.5 can
    hide a few rows that are known by heart; this does not.

    The interval is the delete-a-group jackknife's, over draws of both sets.

    Args:
        members: (N,) losses of training rows, N >= 20.
        nonmembers: (M,) losses of held-out rows, M >= 10 / fpr: 1,000 at 0.01. With fewer, the
            threshold would hang on a handful of rows.
        fpr: false-positive rate, in (0, 1).

    Raises:
        TooFewRows: too few on a side.
        StageError: see `membership_auc`; or `fpr` is not in (0, 1).
    """
    if not 0 < fpr < 1:
        raise StageError(f"tpr_at_fpr: fpr is {fpr:g}; it lies between 0 and 1")
    minimum = math.ceil(round(_FALSE_POSITIVES / fpr, 6))
    _require_losses("tpr_at_fpr", members, nonmembers, 20, minimum)

    def found(others: _Losses, own: _Losses) -> float:
        threshold = np.sort(others)[int(fpr * len(others))]
        return float((own < threshold).mean())

    return jackknife(found, nonmembers, members, 0.0, 1.0)


def _require_losses(
    metric: str, members: _Losses, nonmembers: _Losses, minimum: int, nonmember_minimum: int = 0
) -> None:
    for name, losses, least in (
        ("member", members, minimum),
        ("non-member", nonmembers, max(minimum, nonmember_minimum)),
    ):
        if losses.ndim != 1:
            raise StageError(f"{metric}: {name} losses have the shape {losses.shape}, not (N,)")
        if len(losses) < least:
            raise TooFewRows(f"{metric}: {len(losses)} {name} losses; it needs at least {least:,}")
        if not np.isfinite(losses).all():
            raise StageError(f"{metric}: {name} losses hold values that are not finite")


def _area_interval(value: float, n: int, m: int) -> tuple[float, float]:
    def error(area: float) -> float:
        half = (n + m) / 2 - 1
        spread = 1 + half * ((1 - area) / (2 - area) + area / (1 + area))
        return math.sqrt(area * (1 - area) * spread / (n * m))

    def excess(area: float) -> float:
        return abs(area - value) - _QUANTILE * error(area)

    # At the ends of the range the error is 0 and a root: a value there is searched from inside.
    inside = min(max(value, _EDGE), 1 - _EDGE)
    low = brentq(excess, 0.0, inside) if value > 0 else 0.0
    high = brentq(excess, inside, 1.0) if value < 1 else 1.0
    return float(low), float(high)
