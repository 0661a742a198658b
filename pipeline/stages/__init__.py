"""The stages, in order: what each reads, and which files are its metrics and plots.

`STAGES` is the registry that both drivers follow; a test holds dvc.yaml equal to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.params import StageName


@dataclass(frozen=True)
class StageSpec:
    """One stage of the pipeline.

    Attributes:
        inputs: stages whose folders it reads.
        only: input -> the files of it that decide the result, where the rest cannot.
        metrics: files in its folder that `dvc metrics show` prints.
        plots: files in its folder that `dvc plots show` draws.
    """

    inputs: tuple[StageName, ...] = ()
    only: Mapping[StageName, tuple[str, ...]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    plots: tuple[str, ...] = ()


STAGES: dict[StageName, StageSpec] = {
    "prepare": StageSpec(),
    # Images are named by the digest of their pixels: their sorted names are all that counts, and
    # whether the recipe wants a base of them.
    "pretrain": StageSpec(
        inputs=("prepare",), only={"prepare": ("unlabelled_ids.txt", "settings.json")}
    ),
    "train": StageSpec(inputs=("prepare", "pretrain"), plots=("curve.csv", "checks.csv")),
    "synthesize": StageSpec(inputs=("prepare", "train"), metrics=("metrics.json",)),
    "evaluate": StageSpec(
        inputs=("prepare", "pretrain", "train", "synthesize"),
        # The images of the base, and which of its classes is which of ours.
        only={"pretrain": ("base_images/dataset.json",), "train": ("class_sources.json",)},
        metrics=("metrics.json",),
        plots=("arms.csv", "per_class.csv"),
    ),
    "assemble": StageSpec(inputs=("prepare", "pretrain", "train", "synthesize", "evaluate")),
    "report": StageSpec(
        inputs=("prepare", "pretrain", "train", "synthesize", "evaluate", "assemble")
    ),
}


def stage_module(name: str) -> str:
    """Return the name of the module that holds the stage's `run`."""
    return f"pipeline.stages.{name}"
