"""What this machine is faster with: measured once, kept in the user's cache folder.

The file is `precision.json` in `~/.cache/replenish` (the cache folder of the system); delete it to
have the machine measured again.
"""

import json
import platform
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from platformdirs import user_cache_path
from torch.nn import functional

from pipeline.folders import write_json
from pipeline.hashing import digest_json

Precision = Literal["float32", "bfloat16"]

_FILE = "precision.json"
_REPEATS = 5
_ENOUGH_SECONDS = 2.0  # no further repeat then: emulated bfloat16 can take seconds a time
_LEAST_GAIN = 1.2  # a smaller one is not worth the digits, and could be noise of the timing


def cache_file() -> Path:
    """Return where the measurements are kept."""
    return user_cache_path("replenish", appauthor=False) / _FILE


def faster_precision(device: torch.device) -> Precision:
    """Return bfloat16 where it trains at least 1.2 times as fast as float32 here, else float32."""
    return _faster_precision(device.type, device.index)


@cache
def _faster_precision(kind: str, index: int | None) -> Precision:
    device = torch.device(kind) if index is None else torch.device(kind, index)
    path, key = cache_file(), digest_json(_describe(device))
    known = _read(path)
    found = known.get(key)
    if not isinstance(found, dict) or found.get("precision") not in ("float32", "bfloat16"):
        found = measure(device)
        try:
            write_json(path, {**_read(path), key: found})
        except OSError:
            # What cannot be kept could come out otherwise next time: go by the flags instead.
            return "bfloat16" if has_bfloat16_instructions(device) else "float32"
    return "bfloat16" if found["precision"] == "bfloat16" else "float32"


def measure(device: torch.device) -> dict[str, str | float]:
    """Time a convolution forward and backward in both precisions; takes about a second.

    Where bfloat16 is emulated, it takes several: two passes at the least.

    Returns:
        `precision`, the one to use, and the seconds of each, the least of several.
    """
    # The first to ask may be about to predict, where nothing is differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        seconds = _time_passes(device)
    faster = seconds["float32"] >= _LEAST_GAIN * seconds["bfloat16"]
    return {
        "precision": "bfloat16" if faster else "float32",
        "float32_seconds": seconds["float32"],
        "bfloat16_seconds": seconds["bfloat16"],
        **_describe(device),
    }


def _time_passes(device: torch.device) -> dict[Precision, float]:
    """Return the seconds of a pass forward and backward in each precision, the least of several."""
    seconds: dict[Precision, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    weight = torch.ones((64, 64, 3, 3), device=device).div_(64).requires_grad_()
    images = torch.ones((32, 64, 28, 28), device=device)
    started = time.perf_counter()
    for repeat in range(_REPEATS + 1):  # the first is to warm up
        if repeat > 1 and time.perf_counter() - started > _ENOUGH_SECONDS:
            break
        for name in seconds:
            _synchronise(device)
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
                out = functional.conv2d(images, weight, padding=1)
            torch.autograd.backward(out.float().mean())
            _synchronise(device)
            if repeat:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def has_bfloat16_instructions(device: torch.device) -> bool:
    """Say whether the hardware multiplies bfloat16 matrices natively, by its flags."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _describe(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_instructions": str(has_bfloat16_instructions(device)),
        "torch": str(torch.__version__),
    }


def _read(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
