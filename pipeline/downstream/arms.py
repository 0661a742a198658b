"""The arms of the comparison: which rows each classifier sees, how often, and with which loss.

All arms train for the same number of steps on batches of the same size. Within one repetition
they start from the same weights and share their random draws: the class of the i-th image of a
step, the real row that is drawn for it, and how that row is augmented are the same in every
class-balanced arm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.augment import Policy
from pipeline.errors import StageError
from pipeline.hashing import digest_json
from pipeline.params import BY_USER, ArmName

Role = Literal["baseline", "synthetic", "synthetic_only"]
Added = Literal[
    "synthetic", "smote", "pseudo_labels", "pseudo_labels_soft", "retrieval", "base_images"
]
LossName = Literal["cross_entropy", "class_weighted", "logit_adjusted", "focal"]
Mix = Literal["none", "mixup", "cutmix"]
Rows = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_KEY_CHARACTERS = 8
_MIXUP, _CUTMIX = 0.2, 0.5  # parameter of the Beta distribution, where it is not searched
_TWINS: dict[Policy, str] = {
    "none": "real_balanced",
    "light": "real_augmented",
    "strong": "real_augmented_strong",
}
OF_POOL: tuple[Added, ...] = ("pseudo_labels", "pseudo_labels_soft", "retrieval")
OF_BASE: Added = "base_images"
SOFT: Added = "pseudo_labels_soft"  # whose rows have probabilities in the place of a label


@dataclass(frozen=True)
class Arm:
    """One way to train the classifier.

    Attributes:
        name: "real", "mixed" and so on.
        role: what it is compared as.
        share: probability that a draw is no real row, in (0, 1]; None where nothing is added.
        augmentation: policy applied to every image it sees.
        balanced: classes are drawn with equal probability, else rows are.
        added: what it sees beside the real rows.
        beside: kind of every second added row, where two kinds are added; named as the baseline
            that adds it alone.
        loss: of one row.
        strength: focal's gamma, logit adjustment's tau, the Beta distribution's alpha of mixup and
            cutmix; 0 where there is none.
        mix: how pairs of rows become one.
        added_weight: of the loss of an added row; a real one has 1.
        added_first: the first `share` of the steps sees added rows, the rest real ones.
        learning_rate: peak rate of AdamW.
        real_fraction: of each class's real rows, for the learning curve.
        by_user: is it a script of the user's own, which trains as it likes?
    """

    name: str
    role: Role
    share: float | None = None
    augmentation: Policy = "none"
    balanced: bool = True
    added: Added | None = None
    beside: Added | None = None
    loss: LossName = "cross_entropy"
    strength: float = 0.0
    mix: Mix = "none"
    added_weight: float = 1.0
    added_first: bool = False
    learning_rate: float = 3.0e-3
    real_fraction: float = 1.0
    by_user: bool = False

    def key(self) -> str:
        """Return a file name that tells this arm from others, and from itself otherwise set."""
        return f"{self.name}-{digest_json(asdict(self))[:_KEY_CHARACTERS]}"

    def adds(self) -> tuple[Added, ...]:
        """Return what it sees beside the real rows."""
        return tuple(kind for kind in (self.added, self.beside) if kind is not None)

    def synthetic_share(self) -> float:
        """Return the chance of a synthetic row among draws of real and synthetic ones."""
        if self.role == "baseline" or self.share is None:
            return 0.0
        return self.share if self.beside is None else self.share / (2 - self.share)

    def trained_as(self, other: "Arm") -> "Arm":
        """Return this arm, augmented and mixed as another one is."""
        return replace(
            self, augmentation=other.augmentation, mix=other.mix, strength=other.strength
        )

    def twin(self) -> str | None:
        """Return the name of the baseline that trains as this arm does, without synthetic rows."""
        if self.role != "synthetic":
            return None
        if self.beside is not None:
            return self.beside
        if self.by_user:
            return self.name.removesuffix(BY_USER)
        if self.mix != "none":
            return self.mix
        return _TWINS[self.augmentation]

    def at_step(self, step: int, steps: int) -> "Arm":
        """Return the arm that draws the rows of a step, in [0, steps)."""
        if not self.added_first:
            return self
        early = step < round((self.share or 0.0) * steps)
        if early:
            return replace(self, share=1.0)  # a class without added rows serves its real ones
        return replace(self, role="baseline", share=None)


@dataclass(frozen=True)
class Family:
    """An arm with the settings that the search may give it, all tried by the same rules.

    Attributes:
        arm: as it starts.
        rates: peak learning rates to try.
        field: attribute of `Arm` that is tried next, if any.
        values: of that attribute; the first one is the arm's.
        kinds: ways to augment and mix that are tried last, beside the arm's own.
    """

    arm: Arm
    rates: tuple[float, ...]
    field: Literal["share", "strength", "added_weight"] | None = None
    values: tuple[float, ...] = ()
    kinds: tuple["Kind", ...] = ()

    def first_round(self) -> tuple[Arm, ...]:
        """Return the arm at each learning rate."""
        return tuple(replace(self.arm, learning_rate=rate) for rate in self.rates)

    def second_round(self, best: Arm) -> tuple[Arm, ...]:
        """Return the best arm of the first round and the same with the field's other values."""
        if self.field is None:
            return (best,)
        changed = (_with(best, self.field, value) for value in self.values)
        return tuple(dict.fromkeys((best, *changed)))

    def third_round(self, best: Arm) -> tuple[Arm, ...]:
        """Return the best arm of the second round and the same of each other kind."""
        return (best, *(replace(best, **asdict(kind)) for kind in self.kinds))


@dataclass(frozen=True)
class Kind:
    """How an arm's images are augmented and mixed; see `Arm`."""

    augmentation: Policy
    mix: Mix = "none"
    strength: float = 0.0


@dataclass(frozen=True)
class Pools:
    """The rows that arms draw from, as indices into the training rows.

    Attributes:
        real: indices of the real rows of each class.
        added: kind -> indices of its rows of each class.
    """

    real: tuple[Rows, ...]
    added: Mapping[Added, tuple[Rows, ...]]

    def fraction(self, share: float, random: np.random.Generator) -> "Pools":
        """Return the pools with a share of each class's real rows, one at least.

        The same generator gives nested subsets for different shares.
        """
        orders = [random.permutation(len(rows)) for rows in self.real]
        kept = [
            rows[np.sort(order[: rows_kept(share, len(rows))])]
            for rows, order in zip(self.real, orders, strict=True)
        ]
        return Pools(tuple(kept), self.added)


def rows_kept(share: float, rows: int) -> int:
    """Return how many of a class's rows `Pools.fraction` keeps: whole ones, one at least."""
    return max(1, round(share * rows))


@dataclass(frozen=True)
class Draw:
    """The rows of one batch, as indices into the training rows.

    Attributes:
        real: (B,) real row of each position; that of an added one where the class has none.
        added: (B,) added row of each position; the real one where there is none.
        use_added: (B,) which of the two is seen.
    """

    real: Rows
    added: Rows
    use_added: Bools

    def rows(self) -> Rows:
        """Return the (B,) rows that are seen."""
        return np.where(self.use_added, self.added, self.real)


def plan_arms(
    names: Sequence[ArmName], shares: Sequence[float], rates: Sequence[float]
) -> tuple[Family, ...]:
    """Return the arms in order with what may be tried of each; repeats are dropped.

    All that do more than draw real rows are augmented as `real_augmented` is. Where no augmented
    baseline takes part they are not augmented either, so that a gain is never augmentation's own.
    Arms of the pool and of the base's images may be augmented and mixed as each baseline is:
    synthetic rows have an arm for each of these ways, and real ones deserve no less.

    Args:
        names: arms of params.yaml.
        shares: of synthetic draws; the first one is the start.
        rates: peak learning rates; the first one is the start.
    """
    policy: Policy = "none"
    if "real_augmented" in names:
        policy = "light"
    elif "real_augmented_strong" in names:
        policy = "strong"
    families = [_family(name, policy, tuple(shares), tuple(rates)) for name in dict.fromkeys(names)]
    kinds = tuple(
        kind
        for name, kind in (
            ("real_augmented_strong", Kind("strong")),
            ("mixup", Kind(policy, "mixup", _MIXUP)),
            ("cutmix", Kind(policy, "cutmix", _CUTMIX)),
        )
        if name in names and kind != Kind(policy)
    )
    return tuple(
        replace(family, kinds=kinds) if family.arm.added in (*OF_POOL, OF_BASE) else family
        for family in families
    )


def _family(
    name: ArmName, policy: Policy, shares: tuple[float, ...], rates: tuple[float, ...]
) -> Family:
    half = (0.5, 0.25, 0.75)
    synthetic = Arm(name, "synthetic", shares[0], policy, True, "synthetic")
    match name:
        case "real" | "real_balanced":
            family = Family(Arm(name, "baseline", balanced=name != "real"), rates)
        case "real_augmented":
            family = Family(Arm(name, "baseline", None, "light"), rates)
        case "real_augmented_strong":
            family = Family(Arm(name, "baseline", None, "strong"), rates)
        case "class_weighted":
            weighted = Arm(name, "baseline", None, policy, False, loss="class_weighted")
            family = Family(weighted, rates)
        case "logit_adjusted":
            adjusted = Arm(name, "baseline", None, policy, False, loss="logit_adjusted")
            family = Family(adjusted, rates, "strength", (1.0, 0.5, 1.5))
        case "focal":
            focal = Arm(name, "baseline", None, policy, loss="focal")
            family = Family(focal, rates, "strength", (2.0, 1.0, 3.0))
        case "mixup" | "cutmix":
            alphas = (0.2, 0.5, 1.0) if name == "mixup" else (1.0, 0.5, 0.25)
            family = Family(
                Arm(name, "baseline", None, policy, mix=name), rates, "strength", alphas
            )
        case "smote" | "pseudo_labels" | "pseudo_labels_soft" | "retrieval" | "base_images":
            rival = Arm(name, "baseline", half[0], policy, True, name)
            family = Family(rival, rates, "share", half)
        case "mixed":
            family = Family(synthetic, rates, "share", shares)
        case "mixed_plain":
            family = Family(replace(synthetic, augmentation="none"), rates, "share", shares)
        case "mixed_strong":
            family = Family(replace(synthetic, augmentation="strong"), rates, "share", shares)
        case "mixed_mixup":
            blended = replace(synthetic, mix="mixup", strength=_MIXUP)
            family = Family(blended, rates, "share", shares)
        case "mixed_cutmix":
            pasted = replace(synthetic, mix="cutmix", strength=_CUTMIX)
            family = Family(pasted, rates, "share", shares)
        case "mixed_downweighted":
            family = Family(synthetic, rates, "added_weight", (0.5, 0.25, 0.1))
        case "mixed_pool":
            family = Family(replace(synthetic, beside=SOFT), rates, "share", shares)
        case "mixed_base":
            family = Family(replace(synthetic, beside=OF_BASE), rates, "share", shares)
        case "pretrained":
            family = Family(replace(synthetic, added_first=True), rates, "share", shares)
        case "synthetic_only":
            family = Family(replace(synthetic, role="synthetic_only", share=1.0), rates)
    if family.field is not None:
        family = replace(family, arm=_with(family.arm, family.field, family.values[0]))
    return replace(family, arm=replace(family.arm, learning_rate=rates[0]))


def _with(arm: Arm, field: Literal["share", "strength", "added_weight"], value: float) -> Arm:
    match field:
        case "share":
            return replace(arm, share=value)
        case "strength":
            return replace(arm, strength=value)
        case "added_weight":
            return replace(arm, added_weight=value)


def make_pools(
    labels: npt.NDArray[np.int64],
    synthetic: Bools,
    classes: int,
    others: Mapping[Added, Bools] | None = None,
) -> Pools:
    """Return the rows of each class.

    Args:
        labels: (N,) class of each training row.
        synthetic: (N,) which of them are synthetic.
        classes: number of classes.
        others: kind -> (N,) mask of the rows that are neither real nor synthetic.
    """
    kinds: dict[Added, Bools] = {"synthetic": synthetic, **(others or {})}
    real = ~np.any(list(kinds.values()), axis=0)

    def by_class(mask: Bools) -> tuple[Rows, ...]:
        return tuple(np.flatnonzero((labels == k) & mask) for k in range(classes))

    return Pools(by_class(real), {kind: by_class(mask) for kind, mask in kinds.items()})


def draw_rows(arm: Arm, pools: Pools, batch_images: int, random: np.random.Generator) -> Draw:
    """Return the rows of one step of `arm`.

    An arm with added rows draws a class, then with probability `share` one of its added rows, else
    a real one; of two added kinds, each with the same chance. A class serves the kinds that it has.

    Args:
        arm: the arm.
        pools: rows by class.
        batch_images: number of rows, drawn with replacement.
        random: generator of this repetition and step. Every arm takes the same numbers from it,
            which is what pairs the arms.

    Raises:
        StageError: the arm has no rows to draw from.
    """
    u_class, u_row, u_kind, u_added = random.random((4, batch_images))
    if not arm.balanced:
        every = np.sort(np.concatenate(pools.real))
        _refuse_empty(len(every), arm)
        drawn_rows = every[_scale(u_row, np.asarray(len(every)))]
        return Draw(drawn_rows, drawn_rows, np.zeros(batch_images, dtype=bool))
    of_first, of_second = _rows_of(pools, arm.added), _rows_of(pools, arm.beside)
    real, first, second = (
        np.array([len(rows) for rows in kind]) for kind in (pools.real, of_first, of_second)
    )
    added = first + second
    served = real if arm.share is None else real + added
    if arm.role == "synthetic_only":
        served = added
    classes = np.flatnonzero(served)
    _refuse_empty(len(classes), arm)
    drawn = classes[_scale(u_class, np.asarray(len(classes)))]
    use_added = (u_kind < (arm.share or 0.0)) & (added[drawn] > 0)
    if arm.share is not None:
        use_added |= real[drawn] == 0
    of_real = _row_of(pools.real, real, drawn, u_row)
    # A draw of the second kind is one that the arm of this kind alone would make too.
    half = np.where(real[drawn] > 0, arm.share or 0.0, 1.0) / 2
    use_second = (second[drawn] > 0) & ((u_kind < half) | (first[drawn] == 0))
    of_kind = np.where(
        use_second,
        _row_of(of_second, second, drawn, u_added),
        _row_of(of_first, first, drawn, u_added),
    )
    return Draw(
        np.where(real[drawn] > 0, of_real, of_kind),
        np.where(added[drawn] > 0, of_kind, of_real),
        use_added,
    )


def _rows_of(pools: Pools, kind: Added | None) -> tuple[Rows, ...]:
    """Return the rows of a kind by class; none of them where there are none."""
    none = tuple(rows[:0] for rows in pools.real)
    return none if kind is None else pools.added.get(kind, none)


def _row_of(
    pool: tuple[Rows, ...],
    sizes: npt.NDArray[np.int64],
    drawn: Rows,
    uniform: npt.NDArray[np.float64],
) -> Rows:
    """Return (B,) a row of each drawn class; -1 where the class has none."""
    starts = np.cumsum(sizes) - sizes
    everything = np.concatenate([*pool, np.array([-1])]).astype(np.int64)
    places = starts[drawn] + np.maximum(_scale(uniform, sizes[drawn]), 0)
    return np.where(sizes[drawn] > 0, everything[np.minimum(places, len(everything) - 1)], -1)


def _scale(uniform: npt.NDArray[np.float64], size: npt.NDArray[np.int64]) -> Rows:
    """Turn uniform numbers in [0, 1) into integers in [0, size)."""
    return np.minimum((uniform * size).astype(np.int64), size - 1)


def _refuse_empty(rows: int, arm: Arm) -> None:
    if not rows:
        raise StageError(f"arm {arm.name}: there are no rows to draw from; check prepare's counts")
