"""Weights that a user hands over for an encoder, read with distrust: safetensors alone."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.hashing import digest_bytes

Tensors = dict[str, Tensor]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tar")
CONVERT = (
    "pickles are never opened; convert it on a machine that trusts it with "
    "`torch.load(FILE, weights_only=True)` and `safetensors.torch.save_file(weights, NEW_FILE)` "
    "(docs/encoders.md) and give NEW_FILE"
)
MISSING_PACKAGES = 'run `pip install "replenish[encoders]"`'
_JSON_BYTES = 1 << 20
_WEIGHTS_BYTES = 8 << 30


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file; floats as float32.

    Raises:
        InputError: no such file, a pickle, too large, corrupt, quantised or not finite.
    """
    if path.name.endswith(PICKLES):
        raise InputError(f"{path}: {CONVERT}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .safetensors file of weights")
    size = path.stat().st_size
    if size > _WEIGHTS_BYTES:
        raise InputError(
            f"{path}: {size / 2**30:.1f} GiB, more than {_WEIGHTS_BYTES >> 30} GiB; "
            "use a smaller network"
        )
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: corrupt, or no safetensors file ({shortened(error)}); {CONVERT}"
        ) from None
    return {name: _checked(path, name, tensor) for name, tensor in found.items()}


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file of at most 1 MiB.

    Raises:
        InputError: no such file, too large, or no JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_JSON_BYTES + 1)
        value = json.loads(data) if len(data) <= _JSON_BYTES else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({shortened(error)}); fetch the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: no JSON object of at most 1 MiB; fetch the file again")
    return value


def load_strictly(network: nn.Module, tensors: Tensors, source: str) -> None:
    """Load weights where every name and shape fits, the counters of batches excepted.

    Raises:
        InputError: a name is missing or unknown, or a shape differs; says which, after `source`.
    """
    wanted = network.state_dict()
    # Counters of training steps, which decide nothing in eval mode, and which old files lack.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in tensors and name not in counters]
    unknown = [name for name in tensors if name not in wanted]
    differing = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({shortened(', '.join(names[:3]))})"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", differing),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source}: weights of another network: {'; '.join(problems)}; use the file that "
            "belongs to the model"
        )
    network.load_state_dict({**{name: wanted[name] for name in counters}, **tensors})


def digest_tensors(tensors: Tensors) -> str:
    """Return the digest of names, types, shapes and values, whatever the order."""
    parts: list[bytes] = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest_bytes(*parts)


def shortened(value: object) -> str:
    """Return text of a stranger's at most 160 characters long."""
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}..."


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    # A copy in both cases: what was read may be the mapped file, which others may change.
    if tensor.dtype in (torch.int32, torch.int64, torch.bool):
        return tensor.clone()
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(
            f"{path}: {shortened(name)} is {tensor.dtype}, not a float of 16 to 64 bits; use "
            "weights that are not quantised"
        )
    values = tensor.to(torch.float32, copy=True).contiguous()
    if not bool(values.isfinite().all()):
        raise InputError(f"{path}: {shortened(name)} holds non-finite values; fetch the file again")
    return values
