"""A shard job as files, for workers of other processes and machines: JSON and safetensors.

    job.json                what `ShardJob` holds, without arrays
    recipe-0.safetensors    the training rows that a recipe edits, and their masks

Nothing in it is unpickled; a job that was changed on its way is refused by its digest.
"""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.diffusion.sampling import SamplerSettings
from pipeline.errors import InputError
from pipeline.folders import write_bytes, write_json
from pipeline.hashing import digest_bytes, digest_json
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.parents import Editing
from pipeline.synthesis.recipes import Recipe

JOB = "job.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")

_Arrays = dict[str, npt.NDArray[Any]]
_SETTINGS = TypeAdapter(SamplerSettings)
_EDITING_TEXT = ("mode", "ids", "classes", "strengths", "mask", "mask_share", "resample_times")


def write_job(folder: Path, job: ShardJob) -> str:
    """Write a job and return its digest; `job.json` comes last."""
    recipes: list[dict[str, Any]] = []
    for number, recipe in enumerate(job.recipes):
        said: dict[str, Any] = {
            "name": recipe.name,
            "generator": str(recipe.generator.absolute()),
            "digest": recipe.digest,
            "settings": _plain(recipe.settings),
            "editing": None,
        }
        if recipe.editing is not None:
            data = save(_arrays(recipe.editing))
            write_bytes(folder / _arrays_file(number), data)
            text = {name: getattr(recipe.editing, name) for name in _EDITING_TEXT}
            text["masks"] = [name for name, _ in recipe.editing.masks]
            said["editing"] = {**text, "arrays": digest_bytes(data)}
        recipes.append(said)
    plain = {
        "recipes": recipes,
        "seed": job.seed,
        "device": job.device,
        "compiled": job.compiled,
        "batch_images": job.batch_images,
        "workers": job.workers,
        "memory_mib": job.memory_mib,
        "shard_images": job.shard_images,
    }
    digest = digest_json(plain)
    write_json(folder / JOB, {"digest": digest, "job": plain})
    return digest


def read_job(folder: Path) -> ShardJob:
    """Return the job that `write_job` wrote.

    Raises:
        InputError: it is missing, damaged or was changed.
    """
    path = folder / JOB
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        plain = whole["job"]
        if digest_json(plain) != whole["digest"]:
            raise InputError(f"{path}: was changed after it was written; run the flow again")
        recipes = tuple(_recipe(folder, i, said) for i, said in enumerate(plain["recipes"]))
        return ShardJob(**{**plain, "recipes": recipes})
    except OSError as error:
        raise InputError(
            f"{path}: no job that can be read ({error.strerror}); workers need the same shared "
            "folder under the same path as the flow that sends them work"
        ) from None
    except (ValueError, TypeError, KeyError, ValidationError, SafetensorError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}); run the flow again") from None


def _recipe(folder: Path, number: int, said: dict[str, Any]) -> Recipe:
    if not _DIGEST.fullmatch(said["digest"]):  # it becomes the name of a folder
        raise ValueError("no digest of a generator")
    editing = said["editing"]
    if editing is not None:
        data = (folder / _arrays_file(number)).read_bytes()
        if digest_bytes(data) != editing["arrays"]:
            raise InputError(
                f"{folder / _arrays_file(number)}: was changed after it was written; run the flow "
                "again"
            )
        editing = _editing(editing, load(data))
    guidance = said["settings"]["guidance"]
    high = math.inf if guidance["high"] is None else guidance["high"]
    plain = {**said["settings"], "guidance": {**guidance, "high": high}}
    settings = _SETTINGS.validate_python(plain)
    return Recipe(said["name"], Path(said["generator"]), said["digest"], settings, editing)


def _plain(settings: SamplerSettings) -> dict[str, Any]:
    """Return settings as JSON has them: guidance may act up to an infinite sigma."""
    plain = asdict(settings)
    if math.isinf(settings.guidance.high):
        plain["guidance"]["high"] = None
    return plain


def _arrays_file(number: int) -> str:
    return f"recipe-{number}.safetensors"


def _arrays(editing: Editing) -> _Arrays:
    arrays: _Arrays = {
        "images": np.ascontiguousarray(editing.images),
        "labels": np.ascontiguousarray(editing.labels),
    }
    if editing.masks:
        arrays["masks"] = np.stack([mask for _, mask in editing.masks])
    if editing.own:
        arrays["own_rows"] = np.asarray(list(editing.own), dtype=np.int64)
        arrays["own_masks"] = np.stack(list(editing.own.values()))
    return arrays


def _editing(said: dict[str, Any], arrays: _Arrays) -> Editing:
    own = zip(arrays.get("own_rows", ()), arrays.get("own_masks", ()), strict=True)
    return Editing(
        mode=said["mode"],
        images=arrays["images"],
        labels=arrays["labels"],
        ids=tuple(said["ids"]),
        classes=tuple(said["classes"]),
        strengths=tuple(said["strengths"]),
        mask=said["mask"],
        mask_share=said["mask_share"],
        masks=tuple(zip(said["masks"], arrays.get("masks", ()), strict=True)),
        resample_times=said["resample_times"],
        own={int(row): mask for row, mask in own},
    )
