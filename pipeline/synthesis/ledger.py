"""The ledger: what was drawn, what the judges said of it, and what is kept of it in the end.

Pixels stay in the shards on disk. Of each candidate its scores and its reason are in memory, some
100 bytes, and 256 more of the good ones where the choice among them asks for features.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.curation.curator import Judged
from pipeline.curation.diversity import Select, choose
from pipeline.curation.scores import Scores
from pipeline.curation.selection import Reason, Rule
from pipeline.data.images import Images
from pipeline.data.store import Samples, make_samples
from pipeline.seeds import numpy_generator
from pipeline.synthesis.recipes import Recipe, lineage_of
from pipeline.synthesis.shards import Shard

Features = npt.NDArray[np.float32]

_FEATURES = 64  # dimensions that are kept of wider features


@dataclass(frozen=True)
class Entry:
    """One shard that was judged.

    Attributes:
        shard: which.
        round: in which round, counted from 1.
        scores: of its candidates.
        reasons: of its candidates; `accepted` is good, whether it is kept or not.
        features: of the good ones, (G, F); None where nobody asked.
    """

    shard: Shard
    round: int
    scores: Scores
    reasons: tuple[Reason, ...]
    features: Features | None

    @property
    def good(self) -> npt.NDArray[np.int64]:
        """Return the offsets of the good candidates within the shard."""
        return np.asarray([i for i, one in enumerate(self.reasons) if one == "accepted"], np.int64)


@dataclass
class ClassLedger:
    """Where one class stands.

    Attributes:
        name: class name.
        target: good candidates that are wanted.
        wanted: images that are to be kept of them.
        entries: shards in the order in which they were judged.
        recipe: number of the recipe that further candidates are drawn by.
        candidates: images drawn, by recipe.
        good: of them, by recipe.
        reasons: how many candidates got which reason.
    """

    name: str
    target: int
    wanted: int
    entries: list[Entry] = field(default_factory=list)
    recipe: int = 0
    candidates: Counter[int] = field(default_factory=Counter)
    good: Counter[int] = field(default_factory=Counter)
    reasons: Counter[Reason] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        """Return how many good candidates are missing."""
        return max(0, self.target - self.good.total())

    def shards(self, recipe: int) -> int:
        """Return how many shards of a recipe were judged."""
        return sum(entry.shard.recipe == recipe for entry in self.entries)

    def good_features(self) -> Features:
        """Return the features of the good candidates, (G, F), in their order."""
        parts = [entry.features for entry in self.entries if entry.features is not None]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


@dataclass
class Ledger:
    """All classes, and how many rounds it took.

    Attributes:
        classes: by label.
        rounds: of drawing and judging.
        failed: how many candidates each rule would reject by itself.
    """

    classes: tuple[ClassLedger, ...]
    rounds: int = 0
    failed: Counter[Rule] = field(default_factory=Counter)

    def add(self, shard: Shard, judged: Judged, keep_features: bool) -> None:
        """Take what the judges said of a shard."""
        one = self.classes[shard.label]
        good = np.asarray([reason == "accepted" for reason in judged.reasons])
        features = narrow(judged.features[good]) if keep_features else None
        entry = Entry(shard, self.rounds, judged.scores, tuple(judged.reasons), features)
        one.entries.append(entry)
        one.candidates[shard.recipe] += shard.size
        one.good[shard.recipe] += int(good.sum())
        one.reasons.update(judged.reasons)
        for rule, count in judged.failed().items():
            self.failed[rule] += count


@dataclass(frozen=True)
class Chosen:
    """Which good candidates are kept.

    Attributes:
        order: label -> the kept ones, as positions among the class's good candidates, best first.
    """

    order: Mapping[int, npt.NDArray[np.int64]]

    def cut(self, wanted: Sequence[int]) -> "Chosen":
        """Return the first so many of each class."""
        return Chosen({label: rows[: wanted[label]] for label, rows in self.order.items()})

    def rows(self, label: int, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[int]]]:
        """Yield each shard of a class with the offsets of its kept candidates."""
        kept = set(self.order[label].tolist()) if label in self.order else set()
        first = 0
        for entry in entries:
            good = entry.good
            yield entry, [int(good[i]) for i in range(len(good)) if first + i in kept]
            first += len(good)


def choose_kept(ledger: Ledger, how: Select) -> Chosen:
    """Choose, in each class, the wanted number of the good candidates."""
    order: dict[int, npt.NDArray[np.int64]] = {}
    for label, one in enumerate(ledger.classes):
        if how == "first":
            order[label] = np.arange(min(one.wanted, one.good.total()), dtype=np.int64)
        else:
            order[label] = choose(one.good_features(), one.wanted, how)
    return Chosen(order)


def write_out(
    ledger: Ledger,
    chosen: Chosen,
    recipes: Sequence[Recipe],
    seed: int,
    read: Callable[[Shard], Images],
    accepted: Callable[[Samples], None],
    rejected: Callable[[Samples], None],
    on_done: Callable[[int], None],
) -> None:
    """Hand every candidate, with its lineage, scores and final reason, to one of two stores.

    Args:
        ledger: what was judged.
        chosen: which good ones are kept; the others are `surplus`.
        recipes: by number.
        seed: root seed.
        read: a shard's images.
        accepted: takes the kept rows, shard by shard.
        rejected: takes the others.
        on_done: told how many candidates are written.
    """
    done = 0
    for label, one in enumerate(ledger.classes):
        for entry, kept in chosen.rows(label, one.entries):
            rows = _samples(entry, read(entry.shard), recipes, seed, kept)
            mask = np.zeros(entry.shard.size, dtype=np.bool_)
            mask[kept] = True
            accepted(rows.take(mask))
            rejected(rows.take(~mask))
            done += entry.shard.size
            on_done(done)


def kept_images(
    ledger: Ledger, chosen: Chosen, read: Callable[[Shard], Images]
) -> tuple[Images, npt.NDArray[np.int64]]:
    """Return the kept images, best first within a class, (N, H, W, C), and their labels (N,)."""
    images: list[Images] = []
    labels: list[int] = []
    for label, one in enumerate(ledger.classes):
        found = [read(entry.shard)[rows] for entry, rows in chosen.rows(label, one.entries) if rows]
        if not found:
            continue
        # From the order of the candidates to the order of preference.
        rank = np.argsort(np.argsort(chosen.order[label]))
        images.append(np.concatenate(found)[rank])
        labels += [label] * len(rank)
    if not images:
        entry = next((e for one in ledger.classes for e in one.entries), None)
        shape = (0, 1, 1, 1) if entry is None else (0, *read(entry.shard).shape[1:])
        return np.zeros(shape, np.uint8), np.zeros(0, np.int64)
    return np.concatenate(images), np.asarray(labels, np.int64)


def narrow(features: npt.NDArray[np.floating]) -> Features:
    """Return (N, F) features of at most 64 dimensions.

    Wider ones are projected at random, which keeps distances to about a tenth (Johnson and
    Lindenstrauss 1984); to tell near from far among candidates, that is enough.
    """
    rows = np.asarray(features, dtype=np.float32)
    width = rows.shape[1]
    if width <= _FEATURES:
        return rows
    lines = numpy_generator(0, "narrow", width).standard_normal((width, _FEATURES))
    # Row by row in float64: a matrix product may round by how many rows there are.
    narrowed = np.einsum("nd,df->nf", rows.astype(np.float64), lines) / np.sqrt(_FEATURES)
    return np.asarray(narrowed, dtype=np.float32)


def _samples(
    entry: Entry, images: Images, recipes: Sequence[Recipe], seed: int, kept: Sequence[int]
) -> Samples:
    shard, stays = entry.shard, set(kept)
    reasons: list[str] = [
        "surplus" if reason == "accepted" and i not in stays else reason
        for i, reason in enumerate(entry.reasons)
    ]
    scores = entry.scores.columns()
    if any(recipe.editing is not None for recipe in recipes):
        scores.setdefault("parent_distance", [float("nan")] * shard.size)
    return make_samples(
        images,
        np.full(shard.size, shard.label, dtype=np.int64),
        split="train",
        origin="synthetic",
        extra={
            "index": list(shard.indices),
            **scores,
            **lineage_of(recipes, seed, shard),
            "round": [entry.round] * shard.size,
            "reason": reasons,
        },
    )
