"""What every metric returns: a value, the interval around it, and how many rows it is from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from pipeline.errors import StageError

Rows = npt.NDArray[np.floating]

LEVEL = 0.95  # of every interval
GROUPS = 20  # that the jackknife leaves out in turn


class TooFewRows(StageError):
    """A set has fewer rows than a metric can say anything about; names both numbers."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its interval.

    Attributes:
        value: the metric, on all rows.
        low: lower end of the 95 % interval.
        high: upper end.
        n_real: rows of real.
        n_fake: rows of fake.
    """

    value: float
    low: float
    high: float
    n_real: int
    n_fake: int


def require_comparable(metric: str, real: Rows, fake: Rows, minimum: int) -> None:
    """Refuse two sets of features that a metric cannot compare.

    Raises:
        TooFewRows: fewer than `minimum` rows on a side; the message names both numbers.
        StageError: not (N, D) each with one D >= 1, or a value that is not finite; the message
            starts with `metric`.
    """
    for name, rows in (("real", real), ("fake", fake)):
        require_features(metric, name, rows, minimum)
    if real.shape[1] != fake.shape[1]:
        raise StageError(
            f"{metric}: real rows have {real.shape[1]} features and fake rows {fake.shape[1]}; "
            "take both from the same encoder"
        )


def require_features(metric: str, name: str, rows: Rows, minimum: int) -> None:
    """Refuse one set of features; see `require_comparable`."""
    if rows.ndim != 2 or not rows.shape[1]:
        raise StageError(f"{metric}: {name} has the shape {rows.shape}, not (N, D)")
    if len(rows) < minimum:
        raise TooFewRows(f"{metric}: {len(rows)} {name} rows; it needs at least {minimum}")
    # Block by block: the mask of a million rows at once would be another gigabyte.
    block = max(1, (1 << 24) // rows.shape[1])
    for start in range(0, len(rows), block):
        if not np.isfinite(rows[start : start + block]).all():
            raise StageError(
                f"{metric}: {name} features hold values that are not finite; look for broken "
                "images or an encoder that overflows"
            )


def normal_interval(
    value: float, error: float, n_real: int, n_fake: int, lowest: float, highest: float
) -> Estimate:
    """Return value +- 1.96 standard errors, within the metric's range."""
    return _interval(value, 1.959964 * error, n_real, n_fake, lowest, highest)


def jackknife(
    statistic: Callable[[Rows, Rows], float],
    real: Rows,
    fake: Rows,
    lowest: float = -math.inf,
    highest: float = math.inf,
    groups: int = GROUPS,
) -> Estimate:
    """Estimate a metric of two sets, and its interval by the delete-a-group jackknife.

    Both sets are cut into `groups` interleaved groups, and the metric is taken without each one in
    turn (Kott 2001, "The delete-a-group jackknife"; for two samples the variances add). The
    interval is value +- Student's t times that error, cut off at the metric's range. It covers the
    draw of both sets, and not a bias of the metric at this n: read the ceiling for that.

    Args:
        statistic: (real, fake) -> value.
        real: (N, D).
        fake: (M, D).
        lowest: least value of the metric.
        highest: largest value of the metric.
        groups: at most, on each side; a side with fewer rows leaves one row out at a time.
    """
    return left_out_interval(
        statistic(real, fake),
        _left_out(lambda rows: statistic(rows, fake), real, groups),
        _left_out(lambda rows: statistic(real, rows), fake, groups),
        len(real),
        len(fake),
        lowest,
        highest,
    )


def left_out_interval(
    value: float,
    without_real: npt.NDArray[np.float64],
    without_fake: npt.NDArray[np.float64],
    n_real: int,
    n_fake: int,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> Estimate:
    """Return the interval of `jackknife` from values that were worked out without each group.

    Args:
        value: on all rows.
        without_real: (G,) value without each group of real; fewer than 2 say nothing of that side.
        without_fake: (H,) the same of fake.
        n_real: rows of real.
        n_fake: rows of fake.
        lowest: least value of the metric.
        highest: largest value of the metric.
    """
    sides = [values for values in (without_real, without_fake) if len(values) > 1]
    variance = sum((len(v) - 1) / len(v) * float(((v - v.mean()) ** 2).sum()) for v in sides)
    freedom = min((len(values) - 1 for values in sides), default=1)
    reach = float(student_t.ppf(0.5 + LEVEL / 2, freedom)) * math.sqrt(variance)
    return _interval(value, reach, n_real, n_fake, lowest, highest)


def jackknife_groups(rows: int, groups: int = GROUPS) -> npt.NDArray[np.int64]:
    """Return the group of each row, (N,): interleaved, so that sorted classes are in all."""
    return np.arange(rows) % max(1, min(groups, rows))


def _left_out(
    statistic: Callable[[Rows], float], rows: Rows, groups: int
) -> npt.NDArray[np.float64]:
    """Return the values without each group of one set; none where there is but one row."""
    if min(groups, len(rows)) < 2:
        return np.zeros(0)
    group = jackknife_groups(len(rows), groups)
    return np.asarray([statistic(rows[group != one]) for one in range(group.max() + 1)])


def _interval(
    value: float, reach: float, n_real: int, n_fake: int, lowest: float, highest: float
) -> Estimate:
    low, high = max(lowest, value - reach), min(highest, value + reach)
    return Estimate(value, min(low, value), max(high, value), n_real, n_fake)
