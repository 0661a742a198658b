"""One verdict over several runs: other splits, other generators, other synthetic images.

One run has one split and one generator, and its interval covers neither. Runs with other root seeds
have their own; together their predictions say how much the gain depends on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.store import read_groups, read_info
from pipeline.downstream.arms import plan_arms
from pipeline.downstream.compare import ArmGain, SplitOutcomes, count_units, paired_gains
from pipeline.downstream.grounds import Grounds, better_rival, few_tests, in_points, regressed
from pipeline.downstream.tail import tail_classes
from pipeline.downstream.verdict import spread
from pipeline.errors import InputError
from pipeline.folders import read_manifest
from pipeline.hashing import digest_file
from pipeline.params import ARMS, BY_USER, ON_TOP_OF
from pipeline.seeds import numpy_generator

_COLUMNS = ("arm", "seed", "split", "id", "label", "predicted")
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class RunPredictions:
    """What the classifiers of one run predict.

    Attributes:
        name: of the run, for messages.
        roles: arm name -> its role.
        classes: class names.
        training_images: real training rows of each class.
        validation: arm name -> (S, N) is it right about each validation row?
        validation_labels: (N,).
        test: the test rows, and which of them each arm is right about.
        synthetic: number of synthetic rows.
        generator: digest of what `train` left, which its synthetic images are from.
        digest: of the table that all this is from.
    """

    name: str
    roles: Mapping[str, str]
    classes: tuple[str, ...]
    training_images: tuple[int, ...]
    validation: Mapping[str, npt.NDArray[np.bool_]]
    validation_labels: npt.NDArray[np.int64]
    test: SplitOutcomes
    synthetic: int
    generator: str
    digest: str


def read_run(artifacts: Path, verdict: Mapping[str, Any]) -> RunPredictions:
    """Read what a finished run predicts.

    Args:
        artifacts: its folder.
        verdict: its verdict.json.

    Raises:
        InputError: predictions.parquet is missing, is no such table, or has test rows that
            prepare/dataset lacks.
    """
    path = artifacts / "evaluate" / "predictions.parquet"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than {_MOST_BYTES:,} bytes; this is no such table")
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable ({error}); run `replenish evaluate` in that folder first"
        ) from None
    roles = {arm["name"]: arm["role"] for arm in verdict["arms"]}
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in _COLUMNS}
    right = columns["predicted"] == columns["label"]
    parts: dict[str, dict[str, npt.NDArray[np.bool_]]] = {"validation": {}, "test": {}}
    ids: dict[str, Any] = {}
    labels: dict[str, npt.NDArray[np.int64]] = {}
    for split in parts:
        of_split = columns["split"] == split
        for arm in roles:
            mask = of_split & (columns["arm"] == arm)
            seeds = np.unique(columns["seed"][mask])
            rows = [mask & (columns["seed"] == seed) for seed in seeds]
            if not rows or len({tuple(columns["id"][one]) for one in rows}) != 1:
                raise InputError(f"{path}: the rows of arm {arm} do not pair; run evaluate again")
            parts[split][arm] = np.stack([right[one] for one in rows])
            ids[split], labels[split] = columns["id"][rows[0]], columns["label"][rows[0]]
    dataset = artifacts / "prepare" / "dataset"
    group_of = read_groups(dataset, ("test",))
    if lacking := [one for one in ids["test"] if one not in group_of]:
        raise InputError(
            f"{path}: test row {lacking[0][:12]} is not in {dataset}; run `replenish evaluate` in "
            "that folder again"
        )
    made = read_manifest(artifacts / "synthesize")
    return RunPredictions(
        str(artifacts),
        roles,
        read_info(dataset).classes,
        tuple(one["training_images"] for one in verdict["per_class"]),
        parts["validation"],
        labels["validation"],
        SplitOutcomes(
            labels["test"],
            np.asarray(ids["test"], dtype=str),
            parts["test"],
            [group_of[one] for one in ids["test"]],
        ),
        verdict["n"]["synthetic"],
        "" if made is None else made.inputs.get("train", ""),
        digest_file(path),
    )


def pooled_verdict(
    runs: Sequence[RunPredictions],
    resamples: int,
    confidence: float,
    margin_points: float,
    seed: int,
) -> dict[str, Any]:
    """Return the verdict over all runs, as plain data.

    The best arm of both sides is the one with the best validation balanced accuracy, mean over
    runs; arms that not every run has are left out. The tail is that of the mean over runs.

    Args:
        runs: two at least, of the same classes, no two the same.
        resamples: of the bootstrap over runs, seeds and test images.
        confidence: level of the intervals, in (0, 1).
        margin_points: loss of a class's recall beyond which it is told.
        seed: of the bootstrap.

    Raises:
        InputError: there are fewer than two runs, or they do not belong together.
    """
    _refuse_unlike(runs)
    classes = runs[0].classes
    names = [name for name in runs[0].roles if all(name in one.roles for one in runs)]
    chosen = {role: _best(runs, names, role) for role in ("baseline", "synthetic")}
    baseline, synthetic = chosen["baseline"], chosen["synthetic"]
    images = np.mean([one.training_images for one in runs], axis=0)
    tail = tail_classes(images.tolist())
    others = [name for name in names if name != baseline]
    gains = _gains(runs, baseline, others, tail, resamples, confidence, seed)
    gain = gains[synthetic]
    tests = [np.bincount(one.test.labels, minlength=len(classes)).tolist() for one in runs]
    twins = list(dict.fromkeys(_twin(synthetic, one) for one in runs))
    own = None
    if len(twins) == 1 and twins[0] in names:
        own = _gains(runs, twins[0], [synthetic], tail, resamples, confidence, seed)[synthetic]
    losers = regressed(gain, margin_points)
    units = np.min([count_units(one.test, len(classes)) for one in runs], axis=0)
    grounds = Grounds(
        baseline=baseline,
        synthetic=synthetic,
        gain=gain.balanced_accuracy,
        level=confidence,
        twin=" or ".join(twins),
        own=None if own is None else own.balanced_accuracy,
        others=ON_TOP_OF.get(synthetic),
        rival=better_rival(
            gains, [name for name in others if runs[0].roles[name] == "baseline"], synthetic
        ),
        available=any(one.synthetic for one in runs),
        few_tests=few_tests(classes, units.tolist()),
        losers=tuple(classes[k] for k in losers),
        margin_points=margin_points,
        seeds=None,
        splits=len(runs),
    )
    overall, of_tail = in_points(gain.balanced_accuracy), in_points(gain.tail)
    of_twin = None if own is None else in_points(own.balanced_accuracy)
    return {
        "decision": grounds.decision(),
        "sentence": grounds.sentence(),
        "reasons": [*grounds.reasons(), *_without_images(runs)],
        "best_baseline": baseline,
        "best_synthetic": synthetic,
        "gain_points": overall.value,
        "interval_points": [overall.low, overall.high],
        "tail_gain_points": of_tail.value,
        "tail_interval_points": [of_tail.low, of_tail.high],
        "twin": None if own is None else twins[0],
        "own_gain_points": None if of_twin is None else of_twin.value,
        "own_interval_points": None if of_twin is None else [of_twin.low, of_twin.high],
        "confidence": confidence,
        "margin_points": margin_points,
        "per_class": [
            {
                "name": name,
                "gain_points": one.value,
                "simultaneous_low_points": one.low,
                "simultaneous_high_points": one.high,
                "regressed": k in losers,
            }
            for k, (name, one) in enumerate(
                zip(classes, map(in_points, gain.classes_simultaneous), strict=True)
            )
        ],
        "runs": [
            {"name": one.name, "gain_points": _own_gain(one, baseline, synthetic)} for one in runs
        ],
        "arms": [
            {
                "name": name,
                "role": runs[0].roles[name],
                "test_balanced_accuracy": spread(
                    [_accuracy(one.test.correct[name], one.test.labels) for one in runs]
                ),
                "gain_points": in_points(gains[name].simultaneous).value if name in gains else None,
                "low_points": in_points(gains[name].simultaneous).low if name in gains else None,
                "high_points": in_points(gains[name].simultaneous).high if name in gains else None,
            }
            for name in names
        ],
        "n": {
            "splits": len(runs),
            "seeds": [len(one.test.correct[synthetic]) for one in runs],
            "test": [sum(one) for one in tests],
        },
    }


def _without_images(runs: Sequence[RunPredictions]) -> list[str]:
    """Say which of the runs had no synthetic image; they count, as runs that gained nothing."""
    none = [one.name for one in runs if not one.synthetic]
    if not none or len(none) == len(runs):
        return []
    return [f"No synthetic image was accepted in {', '.join(none)}: nothing was added to its arms."]


def _refuse_unlike(runs: Sequence[RunPredictions]) -> None:
    if len(runs) < 2:
        raise InputError("pool: give the artifacts folders of two runs at least")
    known: dict[str, str] = {}
    generators: dict[str, str] = {}
    for one in runs:
        if one.classes != runs[0].classes:
            raise InputError(f"{one.name}: has other classes than {runs[0].name}; pool like runs")
        if one.digest in known:
            raise InputError(
                f"{one.name}: predicts the same as {known[one.digest]}, to the last row; give each "
                "run once, with a seed of its own"
            )
        if one.synthetic and one.generator and one.generator in generators:
            raise InputError(
                f"{one.name}: its synthetic images are from the generator of "
                f"{generators[one.generator]}, so it is no second split; raise evaluate.seeds of "
                "one of them, or give runs whose `seed` differs"
            )
        known[one.digest] = generators[one.generator] = one.name


def _twin(synthetic: str, run: RunPredictions) -> str:
    """Return the name of the same training without synthetic rows, as that run had it.

    How an arm is augmented, and so its twin, follows from the arms that it was run with.
    """
    if synthetic.endswith(BY_USER):
        return synthetic.removesuffix(BY_USER)
    ours = [name for name in ARMS if name in run.roles]
    for family in plan_arms(ours, (0.5,), (1e-3,)):
        if family.arm.name == synthetic:
            return family.arm.twin() or ""
    raise InputError(
        f"{run.name}: arm {synthetic} is not known to this version; pool with the one that ran it"
    )


def _gains(
    runs: Sequence[RunPredictions],
    baseline: str,
    others: Sequence[str],
    tail: Sequence[int],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, ArmGain]:
    return paired_gains(
        [one.test for one in runs],
        baseline,
        others,
        len(runs[0].classes),
        tail,
        resamples,
        confidence,
        numpy_generator(seed, "pool", "bootstrap"),
    )


def _best(
    runs: Sequence[RunPredictions], names: Sequence[str], role: Literal["baseline", "synthetic"]
) -> str:
    able = [name for name in names if runs[0].roles[name] == role]
    if not able:
        raise InputError(f"pool: the runs have no {role} arm in common; give them the same arms")
    return max(
        able,
        key=lambda name: round(
            float(
                np.mean([_accuracy(one.validation[name], one.validation_labels) for one in runs])
            ),
            12,
        ),
    )


def _accuracy(right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> float:
    """Return the balanced accuracy over seeds, in [0, 1]."""
    return float(np.mean([right[:, labels == k].mean() for k in np.unique(labels)]))


def _own_gain(one: RunPredictions, baseline: str, synthetic: str) -> float:
    with_synthetic = _accuracy(one.test.correct[synthetic], one.test.labels)
    return 100 * (with_synthetic - _accuracy(one.test.correct[baseline], one.test.labels))
