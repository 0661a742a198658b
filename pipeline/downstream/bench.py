"""The data that every classifier of the comparison works on, in memory."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import Images
from pipeline.data.store import (
    Samples,
    concatenate,
    read_info,
    read_samples,
    without_held_out_repeats,
)
from pipeline.downstream.arms import OF_BASE, OF_POOL, SOFT, Added, Pools, make_pools
from pipeline.downstream.corruptions import CORRUPTIONS, corrupt
from pipeline.errors import StageError
from pipeline.folders import write_bytes
from pipeline.seeds import derive_seed

_MOST_CORRUPTED = 1000  # test rows that are looked at under each corruption
_KINDS: tuple[Added, ...] = ("smote", OF_BASE, *OF_POOL)
Probabilities = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Bench:
    """The rows of all arms.

    Attributes:
        images: (N, H, W, C) uint8 training rows, real ones first.
        labels: (N,) int64 class of each.
        pools: which of them are real, synthetic and so on, by class.
        validation: (N, H, W, C) uint8.
        test: (N, H, W, C) uint8.
        classes: number of classes.
        real_images: number of real training rows.
        corrupted: (C, M, H, W, C) uint8, some test rows under each corruption; None is none.
        soft: (M, K) probabilities of the classes, of the last M training rows; None is none.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    pools: Pools
    validation: Images
    test: Images
    classes: int
    real_images: int
    corrupted: Images | None = None
    soft: Probabilities | None = None

    def targets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return (B, K) probabilities of (B,) training rows, 1 at the label of a hard one.

        Raises:
            StageError: no row has probabilities.
        """
        if self.soft is None:
            raise StageError("evaluate: no row has probabilities; make the rivals' rows first")
        found = np.asarray(self.labels[rows, None] == np.arange(self.classes), dtype=np.float32)
        place = rows - (len(self.labels) - len(self.soft))
        found[place >= 0] = self.soft[place[place >= 0]]
        return found


@dataclass(frozen=True)
class Rivals:
    """Rows that baselines add to the real ones: no real training rows, and no synthetic images.

    Attributes:
        images: (N, H, W, C) uint8.
        labels: (N,) int64 class that each is taken for.
        kinds: (N,) index into `_KINDS`.
        probabilities: (M, K) of the classes, of the last M rows; for the others, a label is all
            that is known.
    """

    images: Images
    labels: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    probabilities: Probabilities

    def mask(self, kind: Added) -> npt.NDArray[np.bool_]:
        """Return which rows are of a kind."""
        return np.asarray(self.kinds == _KINDS.index(kind))


def join_rivals(
    parts: dict[Added, tuple[Images, npt.NDArray[np.int64]]], soft: Probabilities | None = None
) -> Rivals:
    """Return the rows of all kinds together, those with probabilities last.

    Args:
        parts: kind -> images and labels of its rows.
        soft: (M, K) probabilities of the rows of kind `pseudo_labels_soft`; None where there are
            none.
    """
    ordered = sorted(parts.items(), key=lambda part: part[0] == SOFT)
    return Rivals(
        np.concatenate([images for _, (images, _) in ordered]),
        np.concatenate([labels for _, (_, labels) in ordered]),
        np.concatenate(
            [np.full(len(labels), _KINDS.index(kind)) for kind, (_, labels) in ordered]
        ).astype(np.int64),
        np.zeros((0, 0), dtype=np.float16) if soft is None else soft,
    )


def read_bench(dataset: Path, accepted: Path, rivals: Path | None = None, seed: int = 0) -> Bench:
    """Read the sample stores `prepare/dataset` and `synthesize/accepted`.

    Args:
        dataset: sample store of the real rows.
        accepted: sample store of the accepted synthetic rows.
        rivals: file of `write_rivals`, if any.
        seed: of the corruptions.
    """
    classes = len(read_info(dataset).classes)
    rows = without_held_out_repeats(read_samples(dataset, ("train", "validation", "test")))
    split = np.asarray(rows.splits, dtype=object)
    training: Samples = concatenate(
        [rows.take(split == "train"), read_samples(accepted, ("train",))]
    )
    synthetic = np.asarray([origin == "synthetic" for origin in training.origins], dtype=bool)
    images, labels = training.images, training.labels
    others: dict[Added, npt.NDArray[np.bool_]] = {}
    soft: Probabilities | None = None
    if rivals is not None:
        more = read_rivals(rivals)
        none = np.zeros(len(labels), dtype=bool)
        others = {kind: np.concatenate([none, more.mask(kind)]) for kind in _KINDS}
        synthetic = np.concatenate([synthetic, np.zeros(len(more.labels), dtype=bool)])
        images = np.concatenate([images, more.images])
        soft = more.probabilities if len(more.probabilities) else None
        labels = np.concatenate([labels, more.labels])
    test = split == "test"
    shown = corrupted_rows(rows.labels[test])
    return Bench(
        images=images,
        labels=labels,
        real_images=sum(origin == "real" for origin in training.origins),
        pools=make_pools(labels, synthetic, classes, others),
        validation=rows.images[split == "validation"],
        test=rows.images[test],
        classes=classes,
        corrupted=np.stack(
            [
                corrupt(rows.images[test][shown], name, derive_seed(seed, "evaluate", name))
                for name in CORRUPTIONS
            ]
        ),
        soft=soft,
    )


def corrupted_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which test rows are looked at under corruptions: the first ones of each class."""
    classes = np.unique(labels)
    each = max(1, _MOST_CORRUPTED // max(1, len(classes)))
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:each] for k in classes]))


def write_rivals(path: Path, rivals: Rivals) -> None:
    """Write the rows that baselines add, for the workers to read."""
    buffer = io.BytesIO()
    np.savez(buffer, **vars(rivals))
    write_bytes(path, buffer.getvalue())


def read_rivals(path: Path) -> Rivals:
    """Read what `write_rivals` wrote.

    Raises:
        StageError: the file is damaged.
    """
    try:
        # Through memory: np.load leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return Rivals(**{name: file[name] for name in Rivals.__dataclass_fields__})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise StageError(
            f"{path}: not readable; run `replenish evaluate --force`, which makes it anew"
        ) from None
