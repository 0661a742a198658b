"""Recipes: the ways to draw candidates, the one that was asked for and what else a class may try.

A recipe is part of what a candidate is: candidate i of a class under one recipe is another image
than candidate i under the next. Hence each has shards of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.diffusion.checkpoints import Generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.solvers import default_spacing
from pipeline.synthesis.parents import Editing, Mode
from pipeline.synthesis.shards import Shard

# A class whose images the judges do not recognise needs more of the class in them. Guidance within
# this interval of sigma shows it, and costs the least variety (Kynkaanniemi et al. 2024).
_FIRM_WEIGHT = 3.0
_FIRM_LOW, _FIRM_HIGH = 0.3, 3.0


@dataclass(frozen=True)
class Recipe:
    """One way to draw candidates.

    Attributes:
        name: in words, for people.
        generator: folder of the network.
        digest: of the network.
        settings: of the sampler.
        editing: training images to start from; None starts from noise.
    """

    name: str
    generator: Path
    digest: str
    settings: SamplerSettings
    editing: Editing | None = None

    @property
    def mode(self) -> Mode:
        """Return what the images are drawn from."""
        return "generate" if self.editing is None else self.editing.mode

    def columns(self, seed: int) -> dict[str, str | int | float]:
        """Return what the sample store says of every candidate of this recipe."""
        settings, guidance = self.settings, self.settings.guidance
        return {
            "generator": self.digest,
            "mode": self.mode,
            "seed": seed,
            "sampler": settings.sampler,
            "sampler_steps": settings.steps,
            "sampler_spacing": settings.spacing or default_spacing(settings.sampler),
            "sampler_eta": settings.eta,
            "guidance": guidance.weight,
            "guidance_low": guidance.low,
            "guidance_high": guidance.high,
            "guide": guidance.guide,
            "precision": settings.precision,
        }


def other_recipes(
    asked: Recipe, teacher: Recipe, generator: Generator, editing: Editing | None
) -> tuple[Recipe, ...]:
    """Return what a class may try whose candidates are mostly rejected.

    Firmer guidance within an interval of noise levels, where the null class was trained and the
    asked one is not as firm; and edits of the class's own training images, or images from noise
    where edits were asked for.

    Args:
        asked: what the params say.
        teacher: the generator as the params would sample it, from noise.
        generator: the teacher's network.
        editing: of training images, in the mode `edit`; None has no edits tried.
    """
    others: list[Recipe] = []
    weight = teacher.settings.guidance.weight
    if generator.spec.null_class_trained and weight < _FIRM_WEIGHT:
        firm = replace(
            teacher.settings, guidance=Guidance(_FIRM_WEIGHT, _FIRM_LOW, _FIRM_HIGH, "null_class")
        )
        others.append(replace(teacher, name="firmer guidance", settings=firm))
    if asked.editing is None and editing is not None:
        others.append(replace(teacher, name="edits of training images", editing=editing))
    elif asked.editing is not None:
        others.append(replace(teacher, name="from noise"))
    return tuple(others)


def lineage_of(recipes: Sequence[Recipe], seed: int, shard: Shard) -> dict[str, list[Any]]:
    """Return the columns of a shard's candidates that say what they were made from and how.

    All shards of a run have the same columns: where any recipe edits, candidates from noise have an
    empty parent.
    """
    recipe = recipes[shard.recipe]
    columns: dict[str, list[Any]] = {
        name: [value] * shard.size for name, value in recipe.columns(seed).items()
    }
    if recipe.editing is not None:
        columns |= recipe.editing.lineage(seed, shard.label, shard.indices).columns
    elif any(one.editing is not None for one in recipes):
        columns |= {
            "parent_id": [""] * shard.size,
            "strength": [1.0] * shard.size,
            "mask": [""] * shard.size,
        }
    return columns
