"""What a stranger's model folder may hold: a network's config and its weights, read with distrust.

Only JSON and safetensors are read. Sizes are limited, names stay inside the folder, and a config
counts as read once diffusers has built it without memory, on the meta device.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import InputError
from pipeline.folders import safe_join

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ARCHITECTURE = "UNet2DModel"
JSON_BYTES = 1 << 20
WEIGHTS_BYTES = 8 << 30

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]

_INDEX = f"{WEIGHTS}.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "convert them on a machine that trusts the file: "
    "`UNet2DModel.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER, safe_serialization=True)`, and give NEW_FOLDER"
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Built by Python loops: no size of a tensor stops a config that asks for a million layers.
_MOST_LEVELS, _MOST_LAYERS = 10, 32
# Attention layers were named so before diffusers 0.15, as in google/ddpm-cifar10-32.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file of at most 1 MiB.

    Raises:
        InputError: the file is too large, no JSON, or holds something other than an object.
    """
    data = read_limited(path, JSON_BYTES)
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: holds a {type(value).__name__} where an object belongs; fetch the file again"
        )
    return value


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """Return the bytes of a small file.

    Raises:
        InputError: the file is larger than the limit, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    if len(data) > limit_bytes:
        raise InputError(
            f"{path}: more than {limit_bytes >> 20} MiB, which no such file needs; check the file"
        )
    return data


def read_config(folder: Path) -> Config:
    """Return the config of the `UNet2DModel` in a folder, its known keys alone.

    Raises:
        InputError: there is none, it is another architecture, or diffusers cannot build it.
    """
    path = safe_join(folder, CONFIG)
    if not path.is_file():
        raise InputError(
            f"{folder}: no {CONFIG}; give the folder that diffusers' save_pretrained wrote, or a "
            "pipeline's folder with a `unet` inside"
        )
    found = read_json(path)
    if found.get("_class_name") != ARCHITECTURE:
        raise InputError(
            f"{path}: another architecture ({_short(found.get('_class_name'))}); only a "
            f"{ARCHITECTURE} can be a base"
        )
    known = inspect.signature(UNet2DModel.__init__).parameters
    config = {key: value for key, value in found.items() if key in known and key != "self"}
    _check_config(path, config)
    return {"_class_name": ARCHITECTURE, **config}


def build_network(config: Config) -> UNet2DModel:
    """Return the network of a config, on the device and with the generator that are in force."""
    return UNet2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})


def read_weights(folder: Path) -> Tensors:
    """Return the weights in a folder as float32, by their names of today.

    One file, or the shards that an index lists.

    Raises:
        InputError: there are none, they are pickles, too large, corrupt or not finite.
    """
    tensors: Tensors = {}
    for path in _weight_files(folder):
        for name, value in _read_tensors(path).items():
            new = _OLD_ATTENTION.sub(lambda m: f"{m[1]}{_ATTENTION[m[2]]}.", name)
            if new in tensors:
                raise InputError(f"{path}: corrupt: {_short(name)} occurs twice; fetch it again")
            tensors[new] = value
    return tensors


def _check_config(path: Path, config: Config) -> None:
    """Build the network without memory, and refuse what could not be trained here."""
    widths, layers = config.get("block_out_channels", ()), config.get("layers_per_block", 2)
    if (
        not isinstance(widths, list | tuple)
        or len(widths) > _MOST_LEVELS
        or not isinstance(layers, int)
        or layers > _MOST_LAYERS
    ):
        raise InputError(
            f"{path}: diffusers cannot build it: block_out_channels must be a list of at most "
            f"{_MOST_LEVELS} widths and layers_per_block an integer of at most {_MOST_LAYERS}; "
            "check the file"
        )
    kind = config.get("time_embedding_type", "positional")
    if kind != "positional":
        # Fourier networks divide by the time and take its logarithm: step 0 is infinite.
        raise InputError(
            f"{path}: time_embedding_type {_short(kind)}: made for other noise levels than steps "
            "0 to 999; use a base whose time embedding is positional"
        )
    try:
        with torch.device("meta"):
            network = build_network(config)
        parameters = sum(weight.numel() for weight in network.parameters())
    except Exception as error:  # whatever a wrong type meets first, deep inside diffusers
        raise InputError(
            f"{path}: diffusers cannot build it ({type(error).__name__}: {_short(error)}); "
            "check the file"
        ) from None
    if 4 * parameters > WEIGHTS_BYTES:
        raise InputError(
            f"{path}: a network of {parameters / 1e9:,.1f} billion parameters, more than "
            f"{WEIGHTS_BYTES >> 30} GiB; use a smaller base"
        )


def _weight_files(folder: Path) -> list[Path]:
    present = sorted(path.name for path in folder.iterdir())
    safetensors = [name for name in present if name.endswith(".safetensors")]
    if WEIGHTS in present:
        names = [WEIGHTS]
    elif _INDEX in present:
        names = _shards(safe_join(folder, _INDEX))
    elif len(safetensors) == 1:
        names = safetensors
    elif safetensors:
        raise InputError(
            f"{folder}: {len(safetensors)} files of weights and none is {WEIGHTS}; rename the one "
            "to use"
        )
    else:
        pickles = [name for name in present if name.endswith(_PICKLES)]
        found = f"weights only as pickles ({_short(pickles[0])}), never opened" if pickles else ""
        raise InputError(f"{folder}: {found or 'no *.safetensors weights'}; {_CONVERT}")
    paths = [safe_join(folder, name) for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: missing; fetch the folder again")
    size = sum(path.stat().st_size for path in paths)
    if size > WEIGHTS_BYTES:
        raise InputError(
            f"{folder}: {size / 2**30:.1f} GiB of weights, more than {WEIGHTS_BYTES >> 30} GiB; "
            "use a smaller base"
        )
    return paths


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise InputError(f"{index}: no weight_map of tensor to file; fetch the file again")
    names = sorted(set(places.values()))
    if not names or not all(name.endswith(".safetensors") for name in names):
        raise InputError(f"{index}: must list *.safetensors files alone; {_CONVERT}")
    return names


def _read_tensors(path: Path) -> Tensors:
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: corrupt, or no safetensors file ({_short(error)}); fetch it again"
        ) from None
    tensors: Tensors = {}
    for name, value in found.items():
        if value.dtype not in _FLOATS:
            raise InputError(
                f"{path}: {_short(name)} is {value.dtype}, not a float of 16 to 64 bits; use "
                "weights that are not quantised"
            )
        # A copy: what was read may be the mapped file itself, which others may change or remove.
        tensors[name] = value.to(torch.float32, copy=True).contiguous()
        if not bool(tensors[name].isfinite().all()):
            raise InputError(
                f"{path}: {_short(name)} holds non-finite values; use weights of a training that "
                "did not diverge"
            )
    return tensors


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
