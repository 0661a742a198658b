"""Where bases come from: a diffusers folder, the Hugging Face hub, an earlier run."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.diffusion.base_files import (
    CONFIG,
    JSON_BYTES,
    read_config,
    read_json,
    read_limited,
    read_weights,
)
from pipeline.diffusion.bases import (
    CLASS_ROWS,
    IDS,
    IDS_BYTES,
    Base,
    Kind,
    digest_weights,
    first_problem,
    read_base,
    read_ids,
)
from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.hashing import digest_file, digest_folder, digest_json

_SPEC = "generator.json"
_BASE_IDS = "base_ids.txt"  # what the base of a generator saw
_SCHEDULER = "scheduler/scheduler_config.json"
_GENERIC_NAMES = ("generator", "train", "unet")  # say nothing: their parent's name is shown
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# No pattern that also matches other folders of a pipeline, such as `vae`, nor any pickle.
_HUB_FILES = [
    CONFIG,
    "diffusion_pytorch_model*.safetensors*",
    "model*.safetensors*",
    f"unet/{CONFIG}",
    "unet/*.safetensors*",
    _SCHEDULER,
]
_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "sample"}


class _Spec(BaseModel):
    """The part of generator.json that matters here."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    classes: tuple[str, ...] = Field(min_length=1)
    schedule: str
    prediction: str
    training_rows_digest: str
    base_digest: str | None = None


def import_folder(path: Path) -> Base:
    """Read a diffusers folder: of a `UNet2DModel`, or of a pipeline with a `unet` inside.

    A folder that Replenish wrote keeps what is known of it: see `read_base` and `import_run`.

    Raises:
        InputError: it is no such folder, or its files cannot be used; never opens a pickle.
    """
    _require_folder(path)
    if (path / _SPEC).is_file():
        return import_run(path)
    if (known := read_base(path)) is not None:
        return known
    folder = path
    if not (path / CONFIG).is_file() and (path / "unet").is_dir():
        folder = safe_join(path, "unet")
    config, tensors = read_config(folder), read_weights(folder)
    schedule, prediction = _read_scheduler(path)
    digest = digest_weights(config, tensors)
    return Base(
        "folder", _shown(path), config, tensors, None, None, schedule, prediction, None, digest
    )


def import_hub(hub_id: str) -> Base:
    """Download a `UNet2DModel` from the Hugging Face hub and read it.

    Args:
        hub_id: "owner/name" or "owner/name@revision".

    Raises:
        InputError: no such id, no network, or files that cannot be used.
    """
    found = _HUB_ID.fullmatch(hub_id)
    if found is None or ".." in hub_id:
        raise InputError(f"{hub_id!r}: not a hub id; write owner/name or owner/name@revision")
    from huggingface_hub import snapshot_download  # slow, and seldom needed

    with tempfile.TemporaryDirectory(prefix="replenish-hub-") as name:
        # local_dir: real files; the hub's own cache is made of links that lead out of the folder.
        try:
            snapshot_download(
                found[1], revision=found[2], local_dir=name, allow_patterns=_HUB_FILES
            )
        except Exception as error:  # the client's HTTP library, and so its errors, vary by version
            raise InputError(
                f"{hub_id}: cannot be downloaded ({type(error).__name__}: {str(error)[:200]}); "
                "download it on a connected machine (`hf download ID --local-dir FOLDER`) and "
                "give the folder"
            ) from None
        try:
            base = import_folder(Path(name))
        except InputError as error:
            raise InputError(str(error).replace(name, hub_id)) from None
    return replace(base, kind="hub", source=hub_id)


def import_run(path: Path) -> Base:
    """Read the generator of an earlier run.

    Args:
        path: the run's artifacts folder, the `train` in it, or the `generator` in that.

    Raises:
        InputError: there is no generator, or it is damaged.
    """
    folder = find_generator(path)
    spec_file = safe_join(folder, _SPEC)
    try:
        spec = _Spec.model_validate_json(read_limited(spec_file, JSON_BYTES))
    except ValidationError as error:
        raise InputError(
            f"{spec_file}: damaged ({first_problem(error)}); train that run again"
        ) from None
    config, tensors = read_config(folder), read_weights(folder)
    rows = tensors.get(CLASS_ROWS, torch.empty(0))
    if len(set(spec.classes)) != len(spec.classes) or len(rows) != len(spec.classes) + 1:
        raise InputError(
            f"{spec_file}: damaged: {len(spec.classes)} classes for {len(rows)} rows of "
            f"{CLASS_ROWS}, which must be one more; train that run again"
        )
    return Base(
        kind="run",
        source=_shown(folder),
        config=config,
        tensors=tensors,
        classes=spec.classes,
        null_label=len(spec.classes),
        schedule=spec.schedule,
        prediction=spec.prediction,
        training_ids=_seen_ids(folder.parent, spec),
        digest=digest_weights(config, tensors),
    )


def files_digest(kind: Kind, path: Path) -> str:
    """Return the digest of the files that an import would read: all of a folder, or a generator's.

    Raises:
        InputError: as the import.
    """
    if kind != "run":
        _require_folder(path)
        return digest_json(digest_folder(path))
    generator = find_generator(path)
    ids = [generator.parent / name for name in (IDS, _BASE_IDS)]
    return digest_json(
        [digest_folder(generator), {one.name: digest_file(one) for one in ids if one.is_file()}]
    )


def find_generator(path: Path) -> Path:
    """Return the generator's folder of a run; see `import_run`.

    Raises:
        InputError: there is none.
    """
    _require_folder(path)
    for inner in (".", "generator", "train/generator"):
        folder = safe_join(path, inner) if inner != "." else path.resolve()
        if (folder / _SPEC).is_file():
            return folder
    raise InputError(
        f"{path}: no {_SPEC} in it; give the artifacts folder of a finished run, its `train` "
        "or its `train/generator`"
    )


def _seen_ids(folder: Path, spec: _Spec) -> tuple[str, ...] | None:
    """Return the ids of all images that a run and its base saw; None where not all are known."""
    own = read_ids(folder, spec.training_rows_digest)
    if own is None or spec.base_digest is None:
        return own
    path = folder / _BASE_IDS
    if not path.is_file():
        return None
    more = read_limited(safe_join(folder, path.name), IDS_BYTES).decode("ascii", "replace").split()
    return tuple(sorted({*own, *more}))


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; set pretrain.path to that of the base")


def _shown(path: Path) -> str:
    """Return the name that tells a folder apart, without its place on this machine."""
    path = path.resolve()
    while path.name in _GENERIC_NAMES and path.parent.name:
        path = path.parent
    return path.name


def _read_scheduler(folder: Path) -> tuple[str | None, str | None]:
    """Return the schedule and the prediction that a pipeline's scheduler states."""
    if not (folder / _SCHEDULER).is_file():
        return None, None
    path = safe_join(folder, _SCHEDULER)
    config = read_json(path)
    betas = config.get("beta_schedule")
    if betas is None:
        return None, None  # no scheduler of discrete steps
    kind = config.get("prediction_type", "epsilon")
    if not isinstance(betas, str) or not isinstance(kind, str):
        raise InputError(f"{path}: beta_schedule or prediction_type is no text; check the file")
    return _schedule_name(betas, config)[:100], _PREDICTIONS.get(kind, kind)[:100]


def _schedule_name(betas: str, config: dict[str, Any]) -> str:
    if config.get("trained_betas") is not None:
        return "betas of its own"
    steps = config.get("num_train_timesteps", 1000)
    ends = [config.get("beta_start", 1e-4), config.get("beta_end", 0.02)]
    if betas == "linear" and (steps, ends) == (1000, [1e-4, 0.02]):
        return "linear"
    if betas == "squaredcos_cap_v2" and steps == 1000:
        return "cosine"
    # diffusers' "sigmoid" is a sigmoid of the betas: not ours, which is one of alpha-bar.
    return f"{betas} betas, {ends[0]} to {ends[1]}, {steps} steps"
