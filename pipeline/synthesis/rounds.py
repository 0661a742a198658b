"""Draw, judge; then again for the classes that fall short, by another recipe where one is better.

A class most of whose candidates are rejected tries the other recipes on a shard each before it gets
more candidates, and goes on by the best of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.curation.curator import Judged
from pipeline.data.images import Images
from pipeline.hashing import digest_pixels
from pipeline.synthesis.ledger import ClassLedger, Ledger
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard

_FIRST_RATE = 0.8  # acceptance that the first round counts on
_LEAST_RATE = 0.1  # a round never asks for more than ten times what is missing
_TRIAL_IMAGES = 32  # candidates of a recipe before its acceptance says anything


class Judge(Protocol):
    """Judges candidates one shard after the other."""

    def judge(
        self,
        images: Images,
        labels: npt.NDArray[np.int64],
        ids: Sequence[bytes],
        parents: npt.NDArray[np.int64] | None = None,
    ) -> Judged:
        """Return scores and reasons of (N, H, W, C) uint8 images; `accepted` is good."""
        ...


def fill_plan(
    classes: Sequence[str],
    wanted: Sequence[int],
    targets: Sequence[int],
    shard_images: int,
    max_rounds: int,
    sample_shards: Callable[[Sequence[Shard]], Iterator[tuple[Shard, Images]]],
    judge: Judge,
    recipes: Sequence[Recipe],
    seed: int,
    adapt_below: float,
    keep_features: bool,
) -> Ledger:
    """Run rounds until every class has its good candidates, or `max_rounds` are over.

    Candidates are judged in the order of their indices, so that the good ones of a class depend on
    the generator and the settings alone. No image is kept here.

    Args:
        classes: class names by label.
        wanted: images that each class is to get.
        targets: good candidates that they are to be chosen from.
        shard_images: candidates of one shard.
        max_rounds: hard limit.
        sample_shards: yields each shard with its images, (size, H, W, C) uint8, in the order that
            it was given; whoever samples the later ones may do so while the first are judged.
        judge: of candidates.
        recipes: ways to draw, the one that was asked for first.
        seed: root seed, that edits find their parents by.
        adapt_below: acceptance below which a class tries the other recipes, in [0, 1]; 0 is never.
        keep_features: of the good candidates?
    """
    ledger = Ledger(
        tuple(ClassLedger(n, t, w) for n, w, t in zip(classes, wanted, targets, strict=True))
    )
    while ledger.rounds < max_rounds and any(one.missing for one in ledger.classes):
        ledger.rounds += 1
        shards = [
            shard
            for label, one in enumerate(ledger.classes)
            for shard in _next_shards(label, one, shard_images, len(recipes), adapt_below)
        ]
        for shard, (found, images) in zip(shards, sample_shards(shards), strict=True):
            if found != shard:
                raise ValueError(f"{found.name} came where {shard.name} was asked for")
            ids = [short_id(digest_pixels(image)) for image in images]
            labels = np.full(shard.size, shard.label, dtype=np.int64)
            editing = recipes[shard.recipe].editing
            parents = None
            if editing is not None:
                parents = editing.lineage(seed, shard.label, shard.indices).rows
            ledger.add(shard, judge.judge(images, labels, ids, parents), keep_features)
        for one in ledger.classes:
            one.recipe = best_recipe(one)
    return ledger


def short_id(identity: str) -> bytes:
    """Return half of an image's sha256.

    It still tells any number of images apart, in half the memory of its text.
    """
    return bytes.fromhex(identity[:32])


def best_recipe(one: ClassLedger) -> int:
    """Return the recipe with the highest acceptance that is known well enough.

    Another one than what was asked for has to be better by more than the standard error of the
    difference.
    """
    best, best_gain = 0, 0.0
    base, base_error = _rate(one, 0)
    for recipe in sorted(one.candidates):
        rate, error = _rate(one, recipe)
        gain = rate - base
        if recipe and gain > math.hypot(error, base_error) and gain > best_gain:
            best, best_gain = recipe, gain
    return best


def _next_shards(
    label: int, one: ClassLedger, shard_images: int, recipes: int, adapt_below: float
) -> list[Shard]:
    if not one.missing:
        return []
    if _is_poor(one, adapt_below):
        untried = [recipe for recipe in range(1, recipes) if not one.candidates[recipe]]
        trial = math.ceil(_TRIAL_IMAGES / shard_images)
        shards = [Shard(label, i, shard_images, r) for r in untried for i in range(trial)]
        if shards:
            return shards
    rate = _FIRST_RATE
    if one.candidates[one.recipe]:
        rate = max(_LEAST_RATE, _rate(one, one.recipe)[0])
    count = math.ceil(one.missing / rate / shard_images)
    first = one.shards(one.recipe)
    return [Shard(label, first + i, shard_images, one.recipe) for i in range(count)]


def _is_poor(one: ClassLedger, adapt_below: float) -> bool:
    return one.candidates[0] >= _TRIAL_IMAGES and _rate(one, 0)[0] < adapt_below


def _rate(one: ClassLedger, recipe: int) -> tuple[float, float]:
    """Return the acceptance of a recipe, in (0, 1), and its standard error."""
    # The rule of succession keeps the guess off 0 and 1.
    count = one.candidates[recipe] + 2
    rate = (one.good[recipe] + 1) / count
    return rate, math.sqrt(rate * (1 - rate) / count)
