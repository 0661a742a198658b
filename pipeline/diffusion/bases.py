"""Bases: weights to fine-tune from, whatever their source, in one folder layout.

A base folder is a diffusers folder (config.json and one safetensors file) with base.json beside
it, written last: what is known of the weights' classes, noise schedule and training images.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save

from pipeline.diffusion.base_files import (
    ARCHITECTURE,
    CONFIG,
    JSON_BYTES,
    WEIGHTS,
    Config,
    Tensors,
    read_config,
    read_limited,
    read_weights,
)
from pipeline.errors import InputError
from pipeline.folders import safe_join, write_bytes, write_ids, write_json
from pipeline.hashing import digest_file, digest_json, digest_lines

Kind = Literal["pool", "folder", "hub", "run"]

CLASS_ROWS = "class_embedding.weight"

_FACTS = "base.json"
IDS = "training_ids.txt"
IDS_BYTES = 256 << 20


@dataclass(frozen=True)
class Base:
    """Weights from which a class-conditional network can start.

    Attributes:
        kind: pool: pretrained here without labels; folder, hub: diffusers'; run: a generator.
        source: for people: a folder's name or a hub id, never a path of this machine.
        config: of the `UNet2DModel`.
        tensors: float32, by parameter name.
        classes: names of the first rows of the class embedding, where known.
        null_label: row of the class embedding that means no class, where there is one.
        schedule: noise schedule of its training, where known; one of ours has our name.
        prediction: what it predicts, where known; one of ours has our name.
        training_ids: sorted ids of the images it saw, where known.
        digest: of config and weights.
    """

    kind: Kind
    source: str
    config: Config
    tensors: Tensors
    classes: tuple[str, ...] | None
    null_label: int | None
    schedule: str | None
    prediction: str | None
    training_ids: tuple[str, ...] | None
    digest: str


class _Facts(BaseModel):
    """base.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Kind
    source: str = Field(max_length=300)
    classes: tuple[str, ...] | None
    null_label: int | None = Field(ge=0)
    # max_length: shown to people, and a stranger's scheduler is free to say anything.
    schedule: str | None = Field(max_length=100)
    prediction: str | None = Field(max_length=100)
    training_rows_digest: str | None
    digest: str


def pool_base(
    model: UNet2DModel,
    *,
    source: str,
    schedule: str,
    prediction: str,
    training_ids: Sequence[str],
) -> Base:
    """Return the base of a network that was trained without labels; its one row is the null."""
    known = {key: value for key, value in model.config.items() if not key.startswith("_")}
    # Through JSON: lists for tuples, as the config reads back.
    config = json.loads(json.dumps({"_class_name": ARCHITECTURE, **known}))
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
    ids = tuple(sorted(set(training_ids)))
    digest = digest_weights(config, tensors)
    return Base("pool", source, config, tensors, None, 0, schedule, prediction, ids, digest)


def digest_weights(config: Config, tensors: Tensors) -> str:
    """Return the digest that `save_base` gives the two files of a config and its weights."""
    files = _files(config, tensors)
    return digest_json({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def save_base(folder: Path, base: Base) -> None:
    """Write a base folder; equal bases give equal bytes. base.json is written last."""
    (folder / _FACTS).unlink(missing_ok=True)
    for name, data in _files(base.config, base.tensors).items():
        write_bytes(folder / name, data)
    ids_digest = None
    if base.training_ids is None:
        (folder / IDS).unlink(missing_ok=True)
    else:
        ids_digest = digest_lines(base.training_ids)
        write_ids(folder / IDS, base.training_ids)
    facts = _Facts(
        kind=base.kind,
        source=base.source,
        classes=base.classes,
        null_label=base.null_label,
        schedule=base.schedule,
        prediction=base.prediction,
        training_rows_digest=ids_digest,
        digest=_digest_files(folder),
    )
    write_json(folder / _FACTS, facts.model_dump(mode="json"))


def read_base(folder: Path) -> Base | None:
    """Return the base in a folder that `save_base` wrote, or None where there is no base.json.

    Raises:
        InputError: the folder is damaged, or was changed since it was written.
    """
    if not (folder / _FACTS).is_file():
        return None
    path = safe_join(folder, _FACTS)
    try:
        facts = _Facts.model_validate_json(read_limited(path, JSON_BYTES))
    except ValidationError as error:
        raise InputError(f"{path}: damaged ({first_problem(error)}); make the base again") from None
    config, tensors = read_config(folder), read_weights(folder)
    if not (folder / WEIGHTS).is_file() or facts.digest != _digest_files(folder):
        raise InputError(
            f"{folder}: {CONFIG} or {WEIGHTS} changed since {_FACTS} was written; make the base "
            "again"
        )
    rows = len(tensors.get(CLASS_ROWS, ()))
    named = facts.classes or ()
    needed = 0 if facts.null_label is None else facts.null_label + 1
    if len(set(named)) != len(named) or max(len(named), needed) > rows:
        raise InputError(
            f"{path}: damaged: its classes do not fit the {rows} rows of {CLASS_ROWS}; make the "
            "base again"
        )
    ids = None
    if facts.training_rows_digest is not None:
        ids = read_ids(folder, facts.training_rows_digest)
        if ids is None:
            raise InputError(f"{folder}: no {IDS}, which {path.name} counts on; make it again")
    return Base(
        kind=facts.kind,
        source=facts.source,
        config=config,
        tensors=tensors,
        classes=facts.classes,
        null_label=facts.null_label,
        schedule=facts.schedule,
        prediction=facts.prediction,
        training_ids=ids,
        digest=facts.digest,
    )


def read_ids(folder: Path, expected: str) -> tuple[str, ...] | None:
    """Return the sorted ids of training_ids.txt in a folder, or None where there is none.

    Raises:
        InputError: the file is not the one whose `digest_lines` is `expected`.
    """
    if not (folder / IDS).is_file():
        return None
    path = safe_join(folder, IDS)
    try:
        ids = read_limited(path, IDS_BYTES).decode().split()
    except UnicodeDecodeError:
        ids = []
    # Ids are how a leak of test images is found: the wrong list would hide one.
    if digest_lines(ids) != expected:
        raise InputError(f"{path}: not the images that these weights saw; restore the file")
    return tuple(sorted(ids))


def first_problem(error: ValidationError) -> str:
    """Return where pydantic met the first fault, and what it is."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole file"
    return f"{place}: {first['msg']}"


def _files(config: Config, tensors: Tensors) -> dict[str, bytes]:
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
    # The metadata is what diffusers writes, and demands when it reads.
    weights = save(tensors, metadata={"format": "pt"})
    return {CONFIG: f"{text}\n".encode(), WEIGHTS: weights}


def _digest_files(folder: Path) -> str:
    return digest_json({name: digest_file(folder / name) for name in (CONFIG, WEIGHTS)})
