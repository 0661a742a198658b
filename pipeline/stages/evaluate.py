"""The stage `evaluate`: train classifiers with and without synthetic images, compare, decide.

Writes verdict.json, metrics.json, arms.csv, per_class.csv, runs.csv (a row an arm and seed),
search.csv (a row a setting that was tried), predictions.parquet (a row an arm, seed and image), and
the classifiers of the best arms of both sides in classifiers/.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.store import (
    INFO,
    Samples,
    StoreInfo,
    read_ids,
    read_info,
    read_samples,
    rows_digest,
    without_held_out_repeats,
)
from pipeline.downstream.arms import OF_BASE, OF_POOL, plan_arms
from pipeline.downstream.comparison import Comparison, HeldOut, compare
from pipeline.downstream.fitting import classifier_steps
from pipeline.downstream.grounds import Decision
from pipeline.downstream.pool_arms import make_rivals
from pipeline.downstream.scores import require_every_class
from pipeline.downstream.tables import arm_numbers, headline, write_predictions, write_tables
from pipeline.downstream.tail import tail_classes
from pipeline.downstream.training import Sources, Trainers
from pipeline.downstream.user_arms import UserArms, scripts_digest
from pipeline.downstream.verdict import make_verdict, score_arms
from pipeline.errors import StageError
from pipeline.features.networks import add_facts
from pipeline.params import EvaluateParams
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

_RUNS = "runs"
_RIVALS = "rivals.npz"


class EvaluateSummary(Summary):
    """What came of the comparison; the details are in verdict.json.

    Attributes:
        decision: use, use_with_care or do_not_use.
        sentence: the verdict in plain words.
        best_baseline: name of the best arm without synthetic images.
        best_synthetic: name of the best arm with them.
        winning_share: share of synthetic ones among `best_synthetic`'s draws of real and synthetic
            rows.
        gain_points: gain of `best_synthetic` in balanced accuracy, in percentage points.
        interval_points: low and high end of its interval.
    """

    decision: Decision
    sentence: str
    best_baseline: str
    best_synthetic: str
    winning_share: float
    gain_points: float
    interval_points: tuple[float, float]


@stage("evaluate", EvaluateSummary, extra_key=scripts_digest)
def run(params: EvaluateParams, inputs: Inputs, out: Path, tracker: Tracker) -> EvaluateSummary:
    """Compare the arms and write the verdict.

    Raises:
        InputError: a split lacks a class, or a user's script failed.
        StageError: a test or validation row is synthetic or is trained on, the two stores are of
            different kinds, or a worker died.
    """
    dataset, accepted = inputs["prepare"] / "dataset", inputs["synthesize"] / "accepted"
    of_base = None
    if OF_BASE in params.arms:
        of_base = base_images(inputs["pretrain"], inputs["train"], dataset)
    verdict = evaluate(params, dataset, accepted, out, tracker, of_base)
    _tell(tracker, verdict)
    return EvaluateSummary(
        **{name: verdict[name] for name in EvaluateSummary.model_fields if name in verdict}
    )


def evaluate(
    params: EvaluateParams,
    dataset: Path,
    accepted: Path,
    out: Path,
    tracker: Tracker,
    of_base: Samples | None = None,
) -> dict[str, Any]:
    """Compare the arms on two sample stores, write all files into `out`, return the verdict.

    Args:
        params: the stage's section.
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows.
        out: folder to fill.
        tracker: told what happens.
        of_base: labelled rows that the generator's base was trained on, if they are at hand and
            their arm takes part.

    Raises:
        InputError: see `run`.
        StageError: see `run`.
    """
    info = _same_kind(dataset, accepted)
    classes = info.classes
    rows = without_held_out_repeats(read_samples(dataset))
    synthetic = read_samples(accepted)
    check_separation(rows, synthetic)
    splits = np.asarray(rows.splits, dtype=object)
    train, validation, test, pool = (
        rows.take(splits == name) for name in ("train", "validation", "test", "pool")
    )
    require_every_class(test.labels, classes, "test")
    for name, part, context in (("train", train, "training"), ("test", test, "evaluation")):
        tracker.dataset(name, rows_digest(part), len(part), context)
    if len(synthetic):
        tracker.dataset("synthetic", rows_digest(synthetic), len(synthetic), "training")
    if of_base is not None:
        tracker.dataset(OF_BASE, rows_digest(of_base), len(of_base), "training")
    counts = {
        name: np.bincount(part.labels, minlength=len(classes)).tolist()
        for name, part in (
            ("training", train),
            ("validation", validation),
            ("test", test),
            ("synthetic", synthetic),
            (OF_BASE, train.take([]) if of_base is None else of_base),
        )
    }
    tail = tail_classes(counts["training"])
    held_out = HeldOut(validation.labels, test, len(classes), tail, tuple(counts["training"]))
    families = [
        family
        for family in plan_arms(params.arms, params.mixed_shares, params.learning_rates)
        if (len(synthetic) or family.arm.role != "synthetic_only")
        and (len(pool) or not {*OF_POOL} & {*family.arm.adds()})
        and (of_base is not None or OF_BASE not in family.arm.adds())
    ]
    runs = out / _RUNS
    wanted = [kind for family in families for kind in family.arm.adds()]
    rivals = make_rivals(params, dataset, accepted, wanted, out / _RIVALS, tracker, of_base)
    sources = Sources(dataset, accepted, runs, rivals)
    steps = classifier_steps(params.steps, len(train))
    parts = {"train": train, "validation": validation, "test": test, "synthetic": synthetic}
    with Trainers(params, sources) as trainers:
        user = UserArms(params, info, parts, trainers.bench, steps, runs, tracker)
        comparison = compare(
            families,
            params,
            trainers,
            held_out,
            lambda task, done, total: tracker.progress(task, done, total, "runs"),
            tracker.note,
            user.results,
        )
    scored = score_arms(comparison, held_out)
    verdict = make_verdict(
        comparison,
        scored,
        held_out,
        classes,
        counts,
        steps,
        params.head_margin_points,
        params.confidence,
        params.bootstrap_resamples,
    )
    write_tables(out, verdict, comparison, scored, tail)
    write_predictions(out / "predictions.parquet", comparison, validation, test)
    _keep_classifiers(out / "classifiers", comparison, sources, info)
    shutil.rmtree(runs, ignore_errors=True)
    (out / _RIVALS).unlink(missing_ok=True)
    return verdict


def base_images(pretrain: Path, train: Path, dataset: Path) -> Samples | None:
    """Return the labelled rows that the base was trained on, by our labels; None without any.

    Rows of classes that we do not have are left out, and so are those of a class from which several
    of ours start: which one they are is not known. So are those whose pixels are a training,
    validation or test image's.

    Args:
        pretrain: folder of the stage.
        train: folder of the stage.
        dataset: sample store of the real rows.

    Raises:
        StageError: the folders do not fit together.
    """
    store, path = pretrain / "base_images", train / "class_sources.json"
    if not (store / INFO).is_file() or not path.is_file():
        raise StageError(
            f"{pretrain} or {train} was made by an older Replenish (no {store.name} or no "
            f"{path.name}); run `replenish pretrain` and `replenish train` again"
        )
    info, rows = read_info(store), read_samples(store, ("train",))
    if not len(rows):
        return None
    own = read_info(dataset)
    if (info.image_size_px, info.image_mode) != (own.image_size_px, own.image_mode):
        raise StageError(f"{store}: images of another size or mode; run `replenish pretrain` again")
    theirs, ours = info.classes, own.classes
    sources: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    if unknown := set(sources) - set(ours):
        raise StageError(f"{path}: {sorted(unknown)[0]!r} is no class of {dataset}; train again")
    once = {their for their, count in Counter(sources.values()).items() if count == 1}
    ours_of = {
        theirs.index(their): ours.index(our)
        for our, their in sources.items()
        if their in once and their in theirs
    }
    known = set(read_ids(dataset, ("train", "validation", "test")))
    kept = [
        label in ours_of and identity not in known
        for label, identity in zip(rows.labels.tolist(), rows.ids, strict=True)
    ]
    rows = rows.take(np.asarray(kept, dtype=bool))
    labels = np.asarray([ours_of[label] for label in rows.labels.tolist()], dtype=np.int64)
    return replace(rows, labels=labels) if len(rows) else None


def check_separation(rows: Samples, synthetic: Samples) -> None:
    """Refuse data in which a validation or test row is synthetic or is also trained on.

    Raises:
        StageError: names the row.
    """
    trained = {
        identity: "real training"
        for identity, split in zip(rows.ids, rows.splits, strict=True)
        if split == "train"
    }
    trained |= dict.fromkeys(synthetic.ids, "synthetic")
    for identity, split, origin in zip(rows.ids, rows.splits, rows.origins, strict=True):
        if origin != "real":
            raise StageError(
                f"prepare/dataset: row {identity[:12]} of the {split} split is {origin}; the "
                "prepared data must be real. Run prepare again on real images"
            )
        if split != "train" and identity in trained:
            raise StageError(
                f"row {identity[:12]} of the {split} split is also a {trained[identity]} row: the "
                "comparison would be worthless. Run prepare again with the duplicates removed"
            )
    for identity, split, origin in zip(
        synthetic.ids, synthetic.splits, synthetic.origins, strict=True
    ):
        if split != "train" or origin != "synthetic":
            raise StageError(
                f"synthesize/accepted: row {identity[:12]} is {origin} in the {split} split; only "
                "synthetic train rows may stand there. Run synthesize again"
            )


def _same_kind(dataset: Path, accepted: Path) -> StoreInfo:
    info, other = read_info(dataset), read_info(accepted)
    for key in ("classes", "image_size_px", "image_mode"):
        if getattr(info, key) != getattr(other, key):
            raise StageError(
                f"{accepted}: `{key}` differs from that of {dataset}; run all stages anew"
            )
    return info


def _keep_classifiers(out: Path, comparison: Comparison, sources: Sources, info: StoreInfo) -> None:
    """Keep a classifier of the best arm of both sides; a user's script leaves none."""
    look = comparison.last()
    for name, arm in (("baseline", look.baseline), ("synthetic", look.synthetic)):
        folder = sources.kept_model(arm)
        if folder.is_dir():
            shutil.copytree(folder, out / name, dirs_exist_ok=True)
            facts = {"classes": list(info.classes), "image_mode": info.image_mode}
            add_facts(out / name, facts)


def _tell(tracker: Tracker, verdict: Mapping[str, Any]) -> None:
    for arm in verdict["arms"]:
        described = {
            "role": arm["role"],
            "share": arm["share"],
            "steps": verdict["steps"],
            **arm["settings"],
        }
        tracker.arm(arm["name"], described, arm_numbers(arm))
    tracker.metrics({f"evaluate/{name}": value for name, value in headline(verdict).items()})
    tracker.tags({"decision": verdict["decision"]})
    tracker.note(verdict["sentence"])
