"""Generate, score, accept; then again for the classes that fall short."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.curation.scores import Scorer
from pipeline.curation.selection import Reason, Thresholds, find_reasons
from pipeline.data.images import Images
from pipeline.data.store import Samples, make_samples
from pipeline.synthesis.parents import Lineage
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
    """Each class's account, and how many rounds it took."""

    classes: tuple[ClassProgress, ...]
    rounds: int


def fill_plan(
    classes: Sequence[str],
    wanted: Sequence[int],
    shard_images: int,
    max_rounds: int,
    sample_shards: Callable[[Sequence[Shard]], Iterator[tuple[Shard, Images]]],
    scorer: Scorer,
    thresholds: Thresholds,
    real_ids: Iterable[str],
    lineage: Mapping[str, str | int | float],
    sink: Callable[[Samples], None],
    parents: Callable[[Shard], Lineage | None] = lambda _: None,
) -> Result:
    """Run rounds until every class has what it wants, or `max_rounds` are over.

    Candidates are judged in the order of their indices, so that the accepted ones of a class
    depend on the generator and the settings alone. No image is kept here: of each candidate, 16
    bytes of its id are.

    Args:
        classes: class names by label.
        wanted: accepted images that each class is to get.
        shard_images: candidates of one shard.
        max_rounds: hard limit.
        sample_shards: yields each shard with its images, (size, H, W, C) uint8, in the order that
            it was given; whoever samples the later ones may do so while the first are judged.
        scorer: of candidates.
        thresholds: of acceptance.
        real_ids: ids of real rows; a candidate with the same pixels is a repeat.
        lineage: columns that are the same for all candidates.
        sink: is handed the candidates of one shard after the other, with scores and reasons.
        parents: says which training rows a shard's candidates were made from; None: from noise.
    """
    progress = [ClassProgress(n, w) for n, w in zip(classes, wanted, strict=True)]
    seen = set(map(_short, real_ids))
    rounds = 0
    while rounds < max_rounds and any(one.shortfall > 0 for one in progress):
        rounds += 1
        shards = [
            Shard(label, one.shards + i, shard_images)
            for label, one in enumerate(progress)
            for i in range(_shards_needed(one, shard_images))
        ]
        for shard, (found, images) in zip(shards, sample_shards(shards), strict=True):
            if found != shard:
                raise ValueError(f"{found.name} came where {shard.name} was asked for")
            one, made_from = progress[shard.label], parents(shard)
            part = _judge(shard, images, one, scorer, thresholds, seen, made_from)
            for name, value in {**lineage, "round": rounds}.items():
                part.extra[name] = [value] * shard.size
            sink(part)
    return Result(tuple(progress), rounds)


def _short(identity: str) -> bytes:
    # Half of a sha256 still tells any number of images apart, in half the memory of its text.
    return bytes.fromhex(identity[:32])


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
    seen: set[bytes],
    made_from: Lineage | None,
) -> Samples:
    labels = np.full(shard.size, shard.label, dtype=np.int64)
    scores = scorer.score(images, labels, None if made_from is None else made_from.rows)
    samples = make_samples(
        images,
        labels,
        split="train",
        origin="synthetic",
        extra={
            "index": list(shard.indices),
            **scores.columns(),
            **({} if made_from is None else made_from.columns),
        },
    )
    ids = [_short(identity) for identity in samples.ids]
    reasons = find_reasons(ids, labels, scores, thresholds, seen)
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
