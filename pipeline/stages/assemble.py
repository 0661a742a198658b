"""Stage assemble: the dataset that the user takes away, with weights that repeat the winning arm.

Writes `dataset/`: the real train, validation and test rows and, where the verdict says use, every
accepted synthetic row. `sampling_weight` is a train row's chance of being drawn; it is 0 in
validation and test, which are never drawn from. `dataset/README.md` is its data card.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.data.store import (
    Samples,
    StoreInfo,
    concatenate,
    read_info,
    read_samples,
    rows_digest,
)
from pipeline.data.store_writer import write_store
from pipeline.downstream.weights import sampling_weights
from pipeline.errors import StageError
from pipeline.folders import write_bytes
from pipeline.params import AssembleParams
from pipeline.report.card import CardFacts, data_card
from pipeline.report.findings import (
    Pretraining,
    Training,
    Verdict,
    check_lineage,
    copy_limit,
    need_manifest,
    read_base_images,
    read_record,
)
from pipeline.report.synthesis import Synthesis
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.tracking.tracker import Tracker

DATASET = "dataset"
WEIGHT = "sampling_weight"


class AssembleSummary(Summary):
    """What the user takes away.

    Attributes:
        decision: use, use_with_care or do_not_use, as the verdict says.
        share: chance that a draw is synthetic, in a class that has synthetic rows; None without.
        real_rows: real rows of all splits.
        synthetic_rows: synthetic rows, all of them in train.
        dataset_digest: digest of the sample store's rows.
    """

    decision: Literal["use", "use_with_care", "do_not_use"]
    share: float | None
    real_rows: int
    synthetic_rows: int
    dataset_digest: str


@stage("assemble", AssembleSummary)
def run(params: AssembleParams, inputs: Inputs, out: Path, tracker: Tracker) -> AssembleSummary:
    """Write the dataset and its card.

    Raises:
        StageError: the folders were not made from each other, a store is damaged, or an accepted
            row is real or stands outside train.
    """
    manifests = {str(name): need_manifest(folder) for name, folder in inputs.items()}
    check_lineage(manifests)
    verdict = read_record(inputs["evaluate"] / "verdict.json", Verdict)
    synthesis = read_record(inputs["synthesize"] / "summary.json", Synthesis)
    info, real = _read_whole(inputs["prepare"] / DATASET)
    other, synthetic = _read_whole(inputs["synthesize"] / "accepted")
    if (other.classes, other.image_size_px, other.image_mode) != (
        info.classes,
        info.image_size_px,
        info.image_mode,
    ):
        raise StageError("assemble: accepted images and real ones differ in kind; run all anew")
    if "real" in synthetic.origins:
        raise StageError("assemble: a real row among the accepted images; run `replenish run`")
    use = verdict.decision != "do_not_use" and len(synthetic) > 0
    share = verdict.winning_share if use else None
    splits = np.asarray(real.splits, dtype=object)
    real = real.take(splits != "pool")
    rows = with_lineage(real, synthetic) if use else replace(real, extra={})
    rows.extra[WEIGHT] = row_weights(rows, share or 0.0).tolist()
    shutil.rmtree(out / DATASET, ignore_errors=True)  # what an interrupted run left
    store = write_store(
        out / DATASET,
        rows,
        info.classes,
        info.image_size_px,
        info.image_mode,
        params.rows_per_shard,
    )
    card = data_card(
        CardFacts(
            name=params.name,
            store=store,
            synthetic_counts=_counts(rows, "synthetic", info.classes),
            verdict=verdict,
            synthesis=synthesis,
            pretraining=read_record(inputs["pretrain"] / "summary.json", Pretraining),
            base_images=read_base_images(inputs["pretrain"], inputs["train"]),
            training=read_record(inputs["train"] / "summary.json", Training),
            copy_limit=copy_limit(manifests["train"]),
            settings=manifests["synthesize"].params,
            source=manifests["prepare"].params,
            share=share,
        )
    )
    write_bytes(out / DATASET / "README.md", card.encode())
    added = len(synthetic) if use else 0
    tracker.note(
        f"assemble: {len(real):,} real and {added:,} synthetic rows in {DATASET}/"
        + ("" if use else " (the verdict is not to use the synthetic images)")
    )
    return AssembleSummary(
        decision=verdict.decision,
        share=share,
        real_rows=len(real),
        synthetic_rows=added,
        dataset_digest=store.digest,
    )


def with_lineage(real: Samples, synthetic: Samples) -> Samples:
    """Return the real rows, then the synthetic ones; real rows have None as their lineage."""
    empty: dict[str, list[Any]] = {name: [None] * len(real) for name in synthetic.extra}
    return concatenate([replace(real, extra=empty), synthetic])


def row_weights(rows: Samples, share: float) -> npt.NDArray[np.float64]:
    """Return (N,) chances of being drawn, which add up to 1 over the train rows.

    They repeat what the arm `mixed` does: a class is drawn with equal chance; within it, its
    synthetic rows share `share` equally and its real rows the rest. A class with only one kind of
    rows gives that kind all. Rows outside train have 0.

    Args:
        rows: of any split.
        share: chance that a draw is synthetic, in [0, 1).

    Raises:
        StageError: there is no train row.
    """
    train = np.asarray([split == "train" for split in rows.splits], dtype=bool)
    synthetic = np.asarray([origin == "synthetic" for origin in rows.origins], dtype=bool)
    if not train.any():
        raise StageError("assemble: the dataset has no training row; run `replenish prepare`")
    weights = np.zeros(len(rows), dtype=np.float64)
    weights[train] = sampling_weights(rows.labels[train], synthetic[train], share)
    return np.asarray(weights / weights.sum())


def _read_whole(folder: Path) -> tuple[StoreInfo, Samples]:
    info, samples = read_info(folder), read_samples(folder)
    if rows_digest(samples) != info.digest:
        raise StageError(
            f"{folder}: its rows are not those of its dataset.json; "
            f"run the stage `{folder.parent.name}` again with --force"
        )
    return info, samples


def _counts(rows: Samples, origin: str, classes: tuple[str, ...]) -> dict[str, int]:
    counts = np.zeros(len(classes), dtype=np.int64)
    for label, found in zip(rows.labels, rows.origins, strict=True):
        counts[label] += found == origin
    return dict(zip(classes, counts.tolist(), strict=True))
