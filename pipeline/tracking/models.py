"""The models of a finished run: two classifiers and the generator, ready for a model registry.

They are the folders that the stages wrote (safetensors and JSON), with what a caller must know
beside them. `pipeline.serving` opens them again. The registry's gate is in `registry`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.hashing import digest_json
from pipeline.tracking.lineage import result_tags
from pipeline.tracking.reading import finished, number, pair, read_object
from pipeline.tracking.tracker import Column, TrackedModel

LOADER = "pipeline.serving"
CLASSIFIER = "replenish-classifier"
GENERATOR = "replenish-generator"
_EXAMPLE_ROWS = 2
_CHANNELS = {"L": 1, "RGB": 3}


def run_models(artifacts: Path) -> list[TrackedModel]:
    """Return the models of a run whose verdict is there; damaged or missing ones are left out.

    Both classifiers are kept; the one that the verdict is about, with synthetic images, goes into
    the registry. A run without it (a user's own command won, or there were no synthetic images)
    enters no classifier, for the gate would have nothing to judge.
    """
    if not finished(artifacts / "evaluate", "evaluate"):
        return []
    verdict = read_object(artifacts / "evaluate" / "verdict.json")
    if not verdict:
        return []
    tags = {**_verdict_tags(verdict), **result_tags(artifacts)}
    found = [
        _classifier(artifacts / "evaluate" / "classifiers" / side, side, tags)
        for side in ("baseline", "synthetic")
    ]
    if finished(artifacts / "train", "train"):
        found.append(_generator(artifacts, tags))
    return [model for model in found if model is not None]


def _verdict_tags(verdict: Mapping[str, Any]) -> dict[str, str]:
    low, high = pair(verdict.get("interval_points"))
    numbers = {
        "gain_points": number(verdict.get("gain_points")),
        "gain_low_points": low,
        "gain_high_points": high,
    }
    told = {name: repr(value) for name, value in numbers.items() if value is not None}
    return {"decision": str(verdict.get("decision", "")), **told}


def _classifier(folder: Path, side: str, tags: Mapping[str, str]) -> TrackedModel | None:
    facts = read_object(folder / "network.json")
    if isinstance(spec := facts.get("spec"), dict):
        facts = {**spec, **facts}
    shape = _image_shape(facts)
    classes = facts.get("classes")
    if shape is None or not isinstance(classes, list):
        return None
    if not (folder / "network.safetensors").is_file():
        return None
    return TrackedModel(
        name=f"classifier-{side}",
        folder=folder,
        loader=LOADER,
        inputs=(Column("", "uint8", (-1, *shape)),),
        outputs=(Column("", "float32", (-1, len(classes))),),
        example=_ramps(shape),
        facts={**_named(classes), **_image_facts(facts), "arm": str(facts.get("arm", ""))},
        registry=CLASSIFIER if side == "synthetic" else "",
        tags={**tags, "arm": str(facts.get("arm", ""))},
    )


def _generator(artifacts: Path, tags: Mapping[str, str]) -> TrackedModel | None:
    folder = artifacts / "train" / "generator"
    facts = read_object(folder / "generator.json")
    shape = _image_shape(facts)
    classes = facts.get("classes")
    if shape is None or not isinstance(classes, list) or not classes:
        return None
    return TrackedModel(
        name="generator",
        folder=folder,
        loader=LOADER,
        inputs=(Column("class", "text"), Column("seed", "integer")),
        outputs=(Column("", "uint8", (-1, *shape)),),
        example=[{"class": str(name), "seed": 0} for name in classes[:_EXAMPLE_ROWS]],
        facts={**_named(classes), **_image_facts(facts)},
        config=_sampler(artifacts / "synthesize"),
        registry=GENERATOR,
        tags=tags,
    )


def _sampler(folder: Path) -> dict[str, Any]:
    """Return how the run's images were drawn, for `pipeline.serving`; its defaults for the rest."""
    if not finished(folder, "synthesize"):
        return {}
    summary = read_object(folder / "summary.json")
    if summary.get("generator") != "teacher":
        return {}  # a student's sampler is no help to its teacher
    names = {
        "sampler": "sampler",
        "sampler_steps": "steps",
        "guidance_weight": "guidance",
        "guidance_low": "guidance_low",
        "guidance_high": "guidance_high",
    }
    told = {there: summary[here] for here, there in names.items() if summary.get(here) is not None}
    if str(summary.get("guidance")).startswith("autoguidance"):
        told["guide"] = "weaker"
    params = read_object(folder / "manifest.json").get("params")
    asked = params if isinstance(params, dict) else {}
    if asked.get("sampler_spacing") not in (None, "auto"):
        told["spacing"] = asked["sampler_spacing"]
    if asked.get("sampler_eta"):
        told["eta"] = asked["sampler_eta"]
    return told


def _named(classes: list[Any]) -> dict[str, Any]:
    return {"classes": [str(name) for name in classes], "classes_digest": digest_json(classes)}


def _image_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("image_size_px", "image_mode")}


def _image_shape(facts: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return (H, W, C) of the images, or None where the file does not say."""
    side, channels = facts.get("image_size_px"), _CHANNELS.get(str(facts.get("image_mode")))
    if not isinstance(side, int) or isinstance(side, bool) or side < 1 or channels is None:
        return None
    return side, side, channels


def _ramps(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Return two images, brightness rising to the right and downwards: nobody's data."""
    side = shape[0]
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    across = np.broadcast_to(ramp[None, :, None], shape)
    return np.stack([across, across.transpose(1, 0, 2)])
