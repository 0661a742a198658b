"""The arms of the comparison: which rows each classifier sees, and how often.

All arms train for the same number of steps on batches of the same size. Within one repetition
they start from the same weights and share their random draws: the class of the i-th image of a
step, and the real row that is drawn for it, are the same in every class-balanced arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.augment import Policy
from pipeline.errors import StageError
from pipeline.params import ArmName

Role = Literal["baseline", "mixed", "synthetic_only"]
Rows = npt.NDArray[np.int64]

_BASELINES: dict[ArmName, tuple[Policy, bool]] = {  # augmentation, balanced
    "real": ("none", False),
    "real_balanced": ("none", True),
    "real_augmented": ("light", True),
    "real_augmented_strong": ("strong", True),
}


@dataclass(frozen=True)
class Arm:
    """One way to train the classifier.

    Attributes:
        name: "real", "mixed_50" and so on; unique.
        role: what it is compared as.
        share: probability that a draw is synthetic, in (0, 1]; None for a baseline.
        augmentation: policy applied to every image it sees.
        balanced: classes are drawn with equal probability, else rows are.
    """

    name: str
    role: Role
    share: float | None
    augmentation: Policy
    balanced: bool


@dataclass(frozen=True)
class Pools:
    """The rows that arms draw from, as indices into the training rows.

    Attributes:
        real: indices of the real rows of each class.
        synthetic: indices of the accepted synthetic rows of each class.
    """

    real: tuple[Rows, ...]
    synthetic: tuple[Rows, ...]


def plan_arms(names: Sequence[ArmName], shares: Sequence[float]) -> tuple[Arm, ...]:
    """Return the arms in order, `mixed` spelt out as one arm a share; repeats are dropped.

    Mixed and synthetic arms are augmented as `real_augmented` is. Where no augmented baseline
    takes part they are not augmented either, so that a gain is never augmentation's own.
    """
    policy: Policy = "none"
    if "real_augmented" in names:
        policy = "light"
    elif "real_augmented_strong" in names:
        policy = "strong"
    arms: dict[str, Arm] = {}
    for name in names:
        if name == "mixed":
            for share in shares:
                mixed = f"mixed_{100 * share:g}"
                arms.setdefault(mixed, Arm(mixed, "mixed", share, policy, True))
        elif name == "synthetic_only":
            arms.setdefault(name, Arm(name, "synthetic_only", 1.0, policy, True))
        else:
            augmentation, balanced = _BASELINES[name]
            arms.setdefault(name, Arm(name, "baseline", None, augmentation, balanced))
    return tuple(arms.values())


def make_pools(
    labels: npt.NDArray[np.int64], synthetic: npt.NDArray[np.bool_], classes: int
) -> Pools:
    """Return the rows of each class, for (N,) labels and an (N,) mask of synthetic rows."""
    return Pools(
        tuple(np.flatnonzero((labels == k) & ~synthetic) for k in range(classes)),
        tuple(np.flatnonzero((labels == k) & synthetic) for k in range(classes)),
    )


def draw_rows(arm: Arm, pools: Pools, batch_images: int, random: np.random.Generator) -> Rows:
    """Return (batch_images,) row indices for one step of `arm`.

    A mixed arm draws a class, then with probability `share` one of its synthetic rows, else a
    real one; a class that has only one kind serves that kind.

    Args:
        arm: the arm.
        pools: rows by class.
        batch_images: number of rows, drawn with replacement.
        random: generator of this repetition and step. Every arm takes the same numbers from it,
            which is what pairs the arms.

    Raises:
        StageError: the arm has no rows to draw from.
    """
    u_class, u_row, u_kind, u_synthetic = random.random((4, batch_images))
    if not arm.balanced:
        rows = np.sort(np.concatenate(pools.real))
        _refuse_empty(len(rows), arm)
        return rows[_scale(u_row, np.asarray(len(rows)))]
    real = np.array([len(rows) for rows in pools.real])
    synthetic = np.array([len(rows) for rows in pools.synthetic])
    served = synthetic if arm.role == "synthetic_only" else real
    if arm.role == "mixed":
        served = real + synthetic
    classes = np.flatnonzero(served)
    _refuse_empty(len(classes), arm)
    drawn = classes[_scale(u_class, np.asarray(len(classes)))]
    use_synthetic = (u_kind < (arm.share or 0.0)) & (synthetic[drawn] > 0)
    if arm.role == "mixed":
        use_synthetic |= real[drawn] == 0
    rows = np.empty(batch_images, dtype=np.int64)
    for pool, sizes, uniform, chosen in (
        (pools.real, real, u_row, ~use_synthetic),
        (pools.synthetic, synthetic, u_synthetic, use_synthetic),
    ):
        starts = np.cumsum(sizes) - sizes
        everything = np.concatenate(pool).astype(np.int64)
        k = drawn[chosen]
        rows[chosen] = everything[starts[k] + _scale(uniform[chosen], sizes[k])]
    return rows


def _scale(uniform: npt.NDArray[np.float64], size: npt.NDArray[np.int64]) -> Rows:
    """Turn uniform numbers in [0, 1) into integers in [0, size)."""
    return np.minimum((uniform * size).astype(np.int64), size - 1)


def _refuse_empty(rows: int, arm: Arm) -> None:
    if not rows:
        raise StageError(f"arm {arm.name}: there are no rows to draw from; check prepare's counts")
