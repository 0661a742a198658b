"""The comparison: the search for settings, the repetitions, the gains, the learning curve.

All choices are made by validation rows: the settings of each arm, the best baseline, the best arm
with synthetic rows. Test rows are scored, and decide whether seeds are added, by a rule that pays
for looking more than once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import numpy.typing as npt

from pipeline.data.store import Samples
from pipeline.downstream.arms import Arm, Family, Role, rows_kept
from pipeline.downstream.compare import (
    ArmGain,
    SplitOutcomes,
    count_units,
    paired_gains,
    resampled_accuracies,
)
from pipeline.downstream.fitting import Pair, Predictions
from pipeline.downstream.power import Power, discordance, minimum_detectable
from pipeline.downstream.scores import score
from pipeline.downstream.sequential import decided, level_at, looks
from pipeline.downstream.training import Trainers
from pipeline.downstream.worth import Worth, worth_in_images
from pipeline.params import EvaluateParams
from pipeline.seeds import numpy_generator

Labels = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # what is done, done, total
Note = Callable[[str], None]
Results = dict[Pair, Predictions]
ByUser = Callable[[Sequence[int]], Results]

SEARCH_SEED = 1_000_000  # repetitions of the search begin here: none of them is scored
_PILOT_SEEDS = 2
_POWER = 0.8


@dataclass(frozen=True)
class HeldOut:
    """The rows that arms are scored on.

    Attributes:
        validation: labels of the validation rows, (N,).
        test: the test rows.
        classes: number of classes.
        tail: labels of the classes with the fewest training rows.
        training: real training rows of each class.
    """

    validation: Labels
    test: Samples
    classes: int
    tail: tuple[int, ...]
    training: tuple[int, ...]

    def outcomes(self, correct: Mapping[str, npt.NDArray[np.bool_]]) -> SplitOutcomes:
        """Return the test rows with what is right about them: arm -> (S, N)."""
        test = self.test
        return SplitOutcomes(test.labels, np.asarray(test.ids), correct, test.groups)

    def test_units(self) -> tuple[int, ...]:
        """Return the test images of each class, those of one group counted once."""
        return count_units(self.outcomes({}), self.classes)


@dataclass(frozen=True)
class Tried:
    """One setting of an arm in the search.

    Attributes:
        arm: with the setting.
        validation_balanced_accuracy: mean over the search's seeds, in [0, 1].
        chosen: is this how the arm was then compared?
    """

    arm: Arm
    validation_balanced_accuracy: float
    chosen: bool


@dataclass(frozen=True)
class Look:
    """The state of the comparison after some seeds.

    Attributes:
        seeds: repetitions so far.
        level: confidence level of the intervals of this look.
        baseline: the best arm without synthetic rows.
        synthetic: the best arm with them.
        gains: arm name -> its gain over `baseline` on the test rows.
        own: gain of `synthetic` over its twin, the same training without synthetic rows; None where
            the twin takes no part.
        decided: is the answer clear: both gains shown, or one of them surely a loss?
    """

    seeds: int
    level: float
    baseline: Arm
    synthetic: Arm
    gains: Mapping[str, ArmGain]
    own: ArmGain | None
    decided: bool

    def gain(self) -> ArmGain:
        """Return the gain of the best arm with synthetic rows."""
        return self.gains[self.synthetic.name]


@dataclass(frozen=True)
class Comparison:
    """What came of the comparison.

    Attributes:
        arms: in order, with the settings that were found.
        tried: settings of the search, in order.
        results: predictions of each arm and seed.
        looks: one a look; the last one counts.
        power: the least gain that could have been shown.
        worth: what the synthetic rows are worth in real ones; None where not asked for.
        worth_arm: the best arm that sees these two kinds of rows alone, whose gain it is of.
    """

    arms: tuple[Arm, ...]
    tried: tuple[Tried, ...]
    results: Results
    looks: tuple[Look, ...]
    power: Power
    worth: Worth | None
    worth_arm: Arm | None = None

    def last(self) -> Look:
        """Return the look that counts."""
        return self.looks[-1]


def compare(
    families: Sequence[Family],
    params: EvaluateParams,
    trainers: Trainers,
    held_out: HeldOut,
    progress: Progress,
    note: Note,
    by_user: ByUser | None = None,
) -> Comparison:
    """Find each arm's settings, repeat the arms, and compare them.

    Args:
        families: the arms and what may be tried of them.
        params: the stage's section.
        trainers: who trains.
        held_out: what is scored.
        progress: told how far a piece of work is.
        note: told one line at a time.
        by_user: seeds -> results of the user's own scripts, if any.
    """

    def train(task: str, pairs: Sequence[Pair]) -> Results:
        return trainers.train(pairs, lambda done, of: progress(task, done, of))

    tried = _search(families, params, train, held_out)
    arms = tuple(one.arm for one in tried if one.chosen)
    plan = looks(params.seeds, params.max_seeds or params.seeds)
    pilot = _pilot(tried, families)
    began = monotonic()
    results = train("pilot", [(pilot, seed) for seed in range(_PILOT_SEEDS)])
    seconds = (monotonic() - began) / _PILOT_SEEDS
    power = _power(results, pilot, held_out, plan, params)
    note(_announce(power, plan, len(arms), seconds))
    found: list[Look] = []
    for index, seeds in enumerate(plan):
        if by_user is not None:  # first: a script that fails should fail early
            results |= by_user(range(seeds))
        results |= train("classifiers", [(arm, seed) for seed in range(seeds) for arm in arms])
        results = in_order(results, arms)
        look = _look(results, seeds, level_at(params.confidence, plan, index), held_out, params)
        found.append(look)
        if look.decided:
            break
    everyone = tuple(dict.fromkeys(arm for arm, _ in results))
    worth = _worth(found[-1], results, params, held_out, train)
    return Comparison(everyone, tried, results, tuple(found), power, *worth)


def in_order(results: Results, arms: Sequence[Arm]) -> Results:
    """Return the results by arm and seed, the user's own arms last: the order that breaks ties."""
    place = {arm: index for index, arm in enumerate(arms)}
    return dict(
        sorted(results.items(), key=lambda one: (place.get(one[0][0], len(arms)), one[0][1]))
    )


def balanced_accuracy(results: Results, arm: Arm, labels: Labels, classes: int) -> float:
    """Return an arm's mean validation balanced accuracy over its seeds, by which it is chosen."""
    each = [
        score(labels, found.validation, classes).balanced_accuracy
        for (other, _), found in results.items()
        if other == arm
    ]
    return float(np.mean(each))


def best_arm(results: Results, role: Role, held_out: HeldOut) -> Arm:
    """Return the arm of a role with the best mean validation balanced accuracy.

    Among equals the earlier one wins: arms stand in params.yaml from simple to elaborate.
    """
    return max(
        (arm for arm in dict.fromkeys(arm for arm, _ in results) if arm.role == role),
        # Rounded, so that the order of a sum does not break a tie.
        key=lambda arm: round(
            balanced_accuracy(results, arm, held_out.validation, held_out.classes), 12
        ),
    )


def outcomes(results: Results, seeds: int, held_out: HeldOut) -> SplitOutcomes:
    """Return which test rows each arm is right about, for the first seeds."""
    labels = held_out.test.labels
    return held_out.outcomes(
        {
            arm.name: np.stack([results[arm, s].test == labels for s in range(seeds)])
            for arm in dict.fromkeys(arm for arm, _ in results)
        }
    )


def _search(
    families: Sequence[Family],
    params: EvaluateParams,
    train: Callable[[str, Sequence[Pair]], Results],
    held_out: HeldOut,
) -> tuple[Tried, ...]:
    """Try settings: learning rates first, then what else the arm has, one after the other."""
    seeds = range(SEARCH_SEED, SEARCH_SEED + params.search_seeds)
    if not seeds:
        return tuple(Tried(family.arm, float("nan"), True) for family in families)
    scores: dict[Arm, float] = {}

    def best_of(task: str, rounds: Sequence[tuple[Arm, ...]]) -> list[Arm]:
        new = [arm for arms in rounds for arm in arms if arm not in scores]
        found = train(task, [(arm, seed) for seed in seeds for arm in dict.fromkeys(new)])
        for arm in new:
            scores[arm] = round(
                balanced_accuracy(found, arm, held_out.validation, held_out.classes), 12
            )
        return [max(arms, key=scores.__getitem__) for arms in rounds]

    best = [family.arm for family in families]
    rounds: tuple[Callable[[Family, Arm], tuple[Arm, ...]], ...] = (
        lambda family, _: family.first_round(),
        Family.second_round,
        Family.third_round,
    )
    for number, tries in enumerate(rounds, start=1):
        task = f"search {number} of {len(rounds)}"
        best = best_of(task, [tries(*pair) for pair in zip(families, best, strict=True)])
    if any(arm.beside for arm in best):  # where they differ is in the synthetic rows, not in this
        found = {arm.name: arm for arm in best}
        best = best_of(
            "search of both kinds",
            [(arm.trained_as(found[arm.beside]) if arm.beside else arm,) for arm in best],
        )
    chosen = set(best)
    order = {family.arm.name: place for place, family in enumerate(families)}
    tried = sorted(scores, key=lambda arm: order[arm.name])
    return tuple(Tried(arm, scores[arm], arm in chosen) for arm in tried)


def _pilot(tried: Sequence[Tried], families: Sequence[Family]) -> Arm:
    """Return the baseline that looks best in the search, or the last one without a search."""
    baselines = [one for one in tried if one.chosen and one.arm.role == "baseline"]
    known = [one for one in baselines if not np.isnan(one.validation_balanced_accuracy)]
    if not known:
        return baselines[-1].arm
    return max(known, key=lambda one: one.validation_balanced_accuracy).arm


def _power(
    results: Results, pilot: Arm, held_out: HeldOut, plan: Sequence[int], params: EvaluateParams
) -> Power:
    predicted = np.stack([results[pilot, seed].validation for seed in range(_PILOT_SEEDS)])
    share, seed_sd = discordance(predicted, held_out.validation)
    units = held_out.test_units()
    level = level_at(params.confidence, plan, len(plan) - 1)
    return Power(
        minimum_detectable(units, plan[-1], share, seed_sd, level, _POWER),
        _POWER,
        share,
        plan[-1],
        len(held_out.test),
        sum(units),
    )


def _announce(power: Power, plan: Sequence[int], arms: int, seconds: float) -> str:
    count = arms * plan[-1]
    up_to = "up to " if len(plan) > 1 else ""
    return (
        f"evaluate: {power.sentence()} {arms} arms take {up_to}{count} classifiers, "
        f"{seconds:.1f} s each at most on this machine"
    )


def _look(
    results: Results, seeds: int, level: float, held_out: HeldOut, params: EvaluateParams
) -> Look:
    now = {pair: found for pair, found in results.items() if pair[1] < seeds}
    baseline = best_arm(now, "baseline", held_out)
    synthetic = best_arm(now, "synthetic", held_out)
    names = list(dict.fromkeys(arm.name for arm, _ in now))

    def over(base: str, others: Sequence[str]) -> dict[str, ArmGain]:
        return paired_gains(
            [outcomes(now, seeds, held_out)],
            base,
            others,
            held_out.classes,
            held_out.tail,
            params.bootstrap_resamples,
            level,
            numpy_generator(params.seed, "evaluate", "bootstrap", seeds),
        )

    gains = over(baseline.name, [name for name in names if name != baseline.name])
    twin = synthetic.twin()
    own = None
    if twin in names:
        own = over(twin, [synthetic.name])[synthetic.name]
    both = [one.balanced_accuracy for one in (gains[synthetic.name], own) if one is not None]
    sure = [one.value for one in both if decided(one)]
    closed = len(sure) == len(both) or any(value < 0.0 for value in sure)
    return Look(seeds, level, baseline, synthetic, gains, own, closed)


def _worth(
    look: Look,
    results: Results,
    params: EvaluateParams,
    held_out: HeldOut,
    train: Callable[[str, Sequence[Pair]], Results],
) -> tuple[Worth | None, Arm | None]:
    """Return what the synthetic rows are worth, and the arm that says so.

    Measured by the best baseline that sees real rows alone; one that adds rows made from all real
    ones (SMOTE) would have no curve. None where no arm sees nothing else on either side.
    """
    alone = {
        pair: found
        for pair, found in results.items()
        if pair[0].role == "baseline" and pair[0].added is None and not pair[0].by_user
    }
    of_two = {
        pair: found
        for pair, found in results.items()
        if pair[0].role == "synthetic" and pair[0].beside is None and not pair[0].by_user
    }
    if not (params.curve_fractions and alone and of_two):
        return None, None
    synthetic = best_arm(of_two, "synthetic", held_out)
    baseline = best_arm(alone, "baseline", held_out)
    fractions, sizes = _curve_sizes(params.curve_fractions, held_out.training)
    thinner = [replace(baseline, real_fraction=one) for one in fractions]
    seeds = range(look.seeds)
    found = train("learning curve", [(arm, seed) for seed in seeds for arm in thinner])

    labels, every = held_out.test.labels, results | found
    arms = [*thinner, baseline, synthetic]
    rows = [
        [score(labels, every[arm, s].test, held_out.classes).balanced_accuracy for s in seeds]
        for arm in arms
    ]
    right = np.stack([np.mean([every[arm, s].test == labels for s in seeds], 0) for arm in arms])
    random = numpy_generator(params.seed, "evaluate", "worth")
    worth = worth_in_images(
        np.asarray(sizes, dtype=np.float64),
        np.asarray(rows[:-1]),
        np.asarray(rows[-1]),
        sizes[-1],
        random,
        resampled_accuracies(
            right, held_out.outcomes({}), held_out.classes, params.bootstrap_resamples, random
        ),
    )
    return worth, synthetic


def _curve_sizes(
    fractions: Sequence[float], training: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Return the fractions to train on, and the real images of each and of all.

    Thin classes have few steps between one image and all: fractions that leave as many images as a
    smaller one, or all of them, are dropped.
    """
    sizes: dict[int, float] = {}
    for fraction in sorted(fractions):
        sizes.setdefault(sum(rows_kept(fraction, rows) for rows in training), fraction)
    total = sum(training)
    sizes.pop(total, None)
    return list(sizes.values()), [*sizes, total]
