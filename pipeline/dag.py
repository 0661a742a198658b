"""dvc.yaml, written from the stage registry and from what each stage's module imports."""

from typing import Any

import yaml

from pipeline.params import GENERATOR_KEYS, ROOT_KEYS, SECTION_TYPES, SECTIONS, StageName
from pipeline.sources import import_closure
from pipeline.stages import STAGES, stage_module

_HEADER = """\
# The reproducible DAG: `dvc repro` runs what is stale. Written by `make dvc.yaml` from
# pipeline/stages/__init__.py and the imports of each stage; a test holds them equal.
"""
_PLOTS: dict[str, dict[str, Any]] = {
    "curve.csv": {"x": "step", "y": "loss", "title": "Training loss"},
    "checks.csv": {
        "x": "step",
        "y": ["training_loss", "heldout_loss", "copy_share"],
        "title": "Loss on fixed noise of training and held-out images, and share of copies",
    },
    "arms.csv": {
        "template": "bar_horizontal",
        "x": "test_balanced_accuracy",
        "y": "arm",
        "title": "Balanced accuracy by arm, real test images",
    },
    "per_class.csv": {
        "template": "bar_horizontal",
        "x": "gain_points",
        "y": "class",
        "title": "Gain in recall by class, points",
    },
}
# Folders of pictures, one a check of the training: `dvc plots show` lays those of several revisions
# side by side, and passes over a folder that a run has not made.
_PICTURES: dict[StageName, str] = {"pretrain": "samples", "train": "samples"}
# What other projects take from here by name, with `dvc artifacts get` or `dvc get`.
_ARTIFACTS: dict[str, dict[str, Any]] = {
    "dataset": {
        "path": "artifacts/assemble/dataset",
        "type": "dataset",
        "desc": "The dataset to take away: real rows, and synthetic ones if the verdict allows.",
    },
    "prepared": {
        "path": "artifacts/prepare/dataset",
        "type": "dataset",
        "desc": "The real images, checked and split.",
    },
    "accepted": {
        "path": "artifacts/synthesize/accepted",
        "type": "dataset",
        "desc": "The accepted synthetic images, before the verdict on them.",
    },
    "generator": {
        "path": "artifacts/train/generator",
        "type": "model",
        "desc": "The class-conditional diffusion model; safetensors and its config.",
    },
    "classifier": {
        "path": "artifacts/evaluate/classifiers/synthetic",
        "type": "model",
        "desc": "The classifier of the best arm with synthetic images.",
    },
    "classifier-baseline": {
        "path": "artifacts/evaluate/classifiers/baseline",
        "type": "model",
        "desc": "The classifier of the best arm without synthetic images.",
    },
}


def dvc_file() -> str:
    """Return the text of dvc.yaml: stages, metrics, plots, pictures and named artifacts."""
    document = {
        "stages": {name: _stage(name) for name in SECTIONS},
        "metrics": [f"artifacts/{n}/{f}" for n in SECTIONS for f in STAGES[n].metrics],
        "plots": [
            {f"artifacts/{name}/{file}": _PLOTS[file]}
            for name in SECTIONS
            for file in STAGES[name].plots
        ]
        + [f"artifacts/{name}/{folder}" for name, folder in _PICTURES.items()],
        "artifacts": _ARTIFACTS,
    }
    return _HEADER + yaml.safe_dump(document, sort_keys=False, width=100)


def _stage(name: StageName) -> dict[str, Any]:
    raw = {
        "prepare": ["${prepare.path}", "${prepare.pool_path}"],
        "pretrain": ["${pretrain.path}"],
        "synthesize": ["${synthesize.mask_path}", "${synthesize.encoder_path}"],
    }.get(name, [])
    root = [key for key in ROOT_KEYS if key in SECTION_TYPES[name].model_fields]
    copied = [f"train.{key}" for key in GENERATOR_KEYS] if name == "pretrain" else []
    return {
        "cmd": f"python -m pipeline {name}",
        "deps": [
            *import_closure(stage_module(name)),
            *(
                f"artifacts/{path}"
                for needed in STAGES[name].inputs
                for path in _read_paths(name, needed)
            ),
            *raw,
        ],
        "params": [*root, name, *copied],
        "outs": [f"artifacts/{name}"],
    }


def _read_paths(name: StageName, needed: StageName) -> list[str]:
    files = STAGES[name].only.get(needed)
    return [needed] if files is None else [f"{needed}/{file}" for file in files]
