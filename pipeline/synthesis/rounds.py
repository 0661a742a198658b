"""Generate, score, accept; then again for the classes that fall short."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.curation.scores import Scorer
from pipeline.curation.selection import Reason, Thresholds, find_reasons
from pipeline.data.images import Images
from pipeline.data.store import Samples, concatenate, make_samples
from pipeline.synthesis.shards import Shard

_FIRST_RATE = 0.8  # acceptance that the first round counts on
_LEAST_RATE = 0.1  # a round never asks for more than ten times what is missing


@dataclass
class ClassProgress:
    """Where one class stands.

    Attributes:
        name: class name.
        wanted: accepted images that the plan asks for.
        shards: shards that were sampled.
        candidates: images of these shards.
        accepted: images kept so far.
        reasons: how many candidates got which reason.
    """

    name: str
    wanted: int
    shards: int = 0
    candidates: int = 0
    accepted: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)

    @property
    def shortfall(self) -> int:
        """Return how many wanted images are missing."""
        return self.wanted - self.accepted


@dataclass(frozen=True)
class Result:
    """All candidates with their scores and reasons, and each class's account."""

    candidates: Samples | None
    classes: tuple[ClassProgress, ...]
    rounds: int


def fill_plan(
    classes: Sequence[str],
    wanted: Sequence[int],
    shard_images: int,
    max_rounds: int,
    sample_shards: Callable[[Sequence[Shard]], list[Images]],
    scorer: Scorer,
    thresholds: Thresholds,
    real_ids: Sequence[str],
    lineage: dict[str, str | int | float],
) -> Result:
    """Run rounds until every class has what it wants, or `max_rounds` are over.

    Candidates are judged in the order of their indices, so that the accepted ones of a class
    depend on the generator and the settings alone.

    Args:
        classes: class names by label.
        wanted: accepted images that each class is to get.
        shard_images: candidates of one shard.
        max_rounds: hard limit.
        sample_shards: returns the images of each shard, (size, H, W, C) uint8.
        scorer: of candidates.
        thresholds: of acceptance.
        real_ids: ids of real rows; a candidate with the same pixels is a repeat.
        lineage: columns that are the same for all candidates.
    """
    progress = [ClassProgress(n, w) for n, w in zip(classes, wanted, strict=True)]
    seen = set(real_ids)
    parts: list[Samples] = []
    rounds = 0
    while rounds < max_rounds and any(one.shortfall > 0 for one in progress):
        rounds += 1
        shards = [
            Shard(label, one.shards + i, shard_images)
            for label, one in enumerate(progress)
            for i in range(_shards_needed(one, shard_images))
        ]
        for shard, images in zip(shards, sample_shards(shards), strict=True):
            one = progress[shard.label]
            part = _judge(shard, images, one, scorer, thresholds, seen)
            for name, value in {**lineage, "round": rounds}.items():
                part.extra[name] = [value] * shard.size
            parts.append(part)
    return Result(concatenate(parts) if parts else None, tuple(progress), rounds)


def _shards_needed(one: ClassProgress, shard_images: int) -> int:
    if one.shortfall <= 0:
        return 0
    if one.candidates:
        # The rule of succession keeps the guess off 0 and 1.
        rate = max(_LEAST_RATE, (one.accepted + 1) / (one.candidates + 2))
    else:
        rate = _FIRST_RATE
    return math.ceil(one.shortfall / rate / shard_images)


def _judge(
    shard: Shard,
    images: Images,
    one: ClassProgress,
    scorer: Scorer,
    thresholds: Thresholds,
    seen: set[str],
) -> Samples:
    labels = np.full(shard.size, shard.label, dtype=np.int64)
    scores = scorer.score(images, labels)
    samples = make_samples(
        images,
        labels,
        split="train",
        origin="synthetic",
        extra={"index": list(shard.indices), **scores.columns()},
    )
    reasons = find_reasons(samples.ids, labels, scores, thresholds, seen)
    for i, reason in enumerate(reasons):
        if reason == "accepted":
            if one.accepted == one.wanted:
                reasons[i] = "surplus"
            else:
                one.accepted += 1
    samples.extra["reason"] = list(reasons)
    one.reasons.update(reasons)
    one.shards += 1
    one.candidates += shard.size
    return samples
