"""The form that Prefect's page shows for a run: what people change most, grouped and bounded.

Every field stands for one key of the params file, with the same bounds: `KEYS` says which. An empty
field leaves the file's value. What is not here can be given as `more`.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.params import SourceName


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Group):
    """Which images, and how they are read."""

    source: SourceName | None = Field(
        None, description="digits (embedded), or the format of `path`; auto = as recognised"
    )
    path: str | None = Field(
        None,
        min_length=1,
        description="folder or file of the labelled images, or hub:owner/name for huggingface",
    )
    pool_path: str | None = Field(
        None, min_length=1, description="folder of unlabelled images, for the base `pool`"
    )
    image_size_px: int | None = Field(
        None, ge=8, le=128, multiple_of=4, description="side in px, a multiple of 4"
    )


class Generator(_Group):
    """The diffusion model: what it starts from, and how long it is trained."""

    base: Literal["auto", "none", "pool", "folder", "hub", "run"] | None = Field(
        None,
        description="what it starts from: none, pool (unlabelled images), auto (one of these, by "
        "the recipe), folder (diffusers), hub (Hugging Face) or run (an earlier one)",
    )
    base_path: str | None = Field(
        None, min_length=1, description="folder of the base of `folder` and `run`"
    )
    base_hub_id: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*"
        r"(@[A-Za-z0-9_][A-Za-z0-9_./-]*)?$",
        description="owner/name or owner/name@revision of the base of `hub`",
    )
    preset: Literal["auto", "small", "medium", "large"] | None = Field(
        None, description="size of the network; auto = by image size and number of images"
    )
    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="most optimiser steps of the diffusion model"
    )
    distill: Literal["none", "progressive", "consistency"] | None = Field(
        None, description="teach a student to sample in few steps, and how"
    )


class Synthesis(_Group):
    """How many synthetic images, and how they are drawn and chosen."""

    images_per_class: (
        Literal["auto", "fill", "planned"] | Annotated[int, Field(ge=0, le=1_000_000)] | None
    ) = Field(
        None,
        description="accepted images of each class: a number; fill = up to the largest class; "
        "auto = 300, or fewer of more than ten classes; planned = what its learning curve on "
        "validation rows speaks for",
    )
    mode: Literal["generate", "edit", "cross_class", "inpaint"] | None = Field(
        None,
        description="from noise; from a training image of the class; from one of another class; a "
        "training image with a part drawn anew",
    )
    sampler: Literal["ddpm", "ddim", "dpmsolver++", "dpmsolver++sde", "unipc", "heun"] | None = (
        Field(None, description="solver that draws the images")
    )
    sampler_steps: int | None = Field(
        None, ge=1, le=1000, description="network evaluations an image; guidance adds to them"
    )
    guidance: Literal["auto"] | Annotated[float, Field(ge=0.0, le=20.0)] | None = Field(
        None, description="weight; 1 = none; auto = the best of a few on validation rows"
    )
    select: Literal["first", "diverse", "k_centre"] | None = Field(
        None, description="which of the good candidates are kept"
    )


class Comparison(_Group):
    """The classifiers with and without synthetic images that the verdict is about."""

    classifier: Literal["small_cnn", "resnet", "linear", "timm"] | None = Field(
        None, description="network of all arms"
    )
    seeds: int | None = Field(None, ge=2, le=1000, description="paired repetitions of each arm")
    max_seeds: int | None = Field(
        None, ge=2, le=1000, description="add seeds up to these until the answer is clear"
    )
    steps: int | None = Field(None, ge=1, description="optimiser steps of each classifier")
    horizontal_flip: bool | None = Field(
        None, description="may augmentation mirror an image? (a mirrored digit is no digit)"
    )


class Where(_Group):
    """Where the work runs; the result does not depend on it."""

    device: Literal["auto", "cpu", "cuda"] | None = Field(
        None, description="auto takes a CUDA device where there is one"
    )
    backend: Literal["inline", "processes", "prefect", "ray"] | None = Field(
        None,
        description="who samples: threads of this process, processes that stay warm (one a GPU), "
        "Prefect workers of `work_pool`, or a Ray cluster",
    )
    work_pool: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Prefect work pool whose workers sample, for the backend `prefect`",
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="parallel workers of sampling and comparison; 0 = one a core",
    )


class Changes(_Group):
    """What to change against the params file; an empty field leaves it as it is there."""

    seed: int | None = Field(None, ge=0, lt=2**31, description="root seed of all randomness")
    data: Data = Field(Data(), description="which images, and how they are read")
    generator: Generator = Field(
        Generator(), description="the diffusion model: what it starts from, how long it is trained"
    )
    synthesis: Synthesis = Field(
        Synthesis(), description="how many synthetic images, how they are drawn and chosen"
    )
    comparison: Comparison = Field(
        Comparison(), description="the classifiers that the verdict is about"
    )
    where: Where = Field(Where(), description="where the work runs; no result depends on it")

    def overrides(self) -> tuple[str, ...]:
        """Return the changes as `section.key=value`."""
        given = self.model_dump(mode="json", exclude_none=True)
        return tuple(f"{KEYS[name]}={json.dumps(value)}" for name, value in _flat(given).items())


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            flat[name] = value
    return flat


# Field of the form -> key of the params file.
KEYS = {
    "seed": "seed",
    "data.source": "prepare.source",
    "data.path": "prepare.path",
    "data.pool_path": "prepare.pool_path",
    "data.image_size_px": "prepare.image_size_px",
    "generator.base": "pretrain.base",
    "generator.base_path": "pretrain.path",
    "generator.base_hub_id": "pretrain.hub_id",
    "generator.preset": "train.preset",
    "generator.steps": "train.steps",
    "generator.distill": "train.distill",
    "synthesis.images_per_class": "synthesize.images_per_class",
    "synthesis.mode": "synthesize.mode",
    "synthesis.sampler": "synthesize.sampler",
    "synthesis.sampler_steps": "synthesize.sampler_steps",
    "synthesis.guidance": "synthesize.guidance",
    "synthesis.select": "synthesize.select",
    "comparison.classifier": "evaluate.classifier",
    "comparison.seeds": "evaluate.seeds",
    "comparison.max_seeds": "evaluate.max_seeds",
    "comparison.steps": "evaluate.steps",
    "comparison.horizontal_flip": "evaluate.horizontal_flip",
    "where.device": "execution.device",
    "where.backend": "execution.backend",
    "where.work_pool": "execution.work_pool",
    "where.workers": "execution.workers",
}
