"""Look at the machine: can Replenish run here, and how fast?"""

import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import torch

from pipeline.data.augment import refuse_successor
from pipeline.device import pick_device, pick_precision, usable_cores
from pipeline.errors import InputError
from pipeline.machine import cache_file

_PACKAGES = ("torch", "diffusers", "prefect", "dvc", "mlflow", "albumentations", "scikit-learn")
_LEAST_DISK_GIB = 2.0
_LEAST_MEMORY_GIB = 3.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the examination: `bad` stops work, `warn` may."""

    topic: str
    state: Literal["ok", "warn", "bad"]
    text: str


def examine(folder: Path, ports: dict[str, int]) -> list[Finding]:
    """Return findings on Python, packages, device, memory, disk below `folder`, and ports."""
    return [
        _python(),
        *(_package(name) for name in _PACKAGES),
        _successor(),
        *_device(),
        _memory(),
        _disk(folder),
        *(_program(name) for name in ("git", "dvc")),
        *(_port(name, port) for name, port in ports.items()),
    ]


def port_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Return why a server could not listen on the port; None where it could."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding(
        "python", "ok" if good else "warn", text if good else f"{text}; use 3.11 or 3.12"
    )


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "bad", "not installed; run `make .venv` or `pip install -e .`")


def _successor() -> Finding:
    try:
        refuse_successor()
    except InputError as error:
        return Finding("albumentationsx", "bad", str(error))
    return Finding("albumentationsx", "ok", "absent, as it should be")


def _device() -> list[Finding]:
    device = pick_device("auto")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory / _GIB
        text = f"{name}, {memory:.0f} GiB"
    else:
        text = f"cpu, {usable_cores()} cores (torch sees no CUDA device)"
    precision = pick_precision("auto", device)
    return [
        Finding("device", "ok", text),
        Finding(
            "precision", "ok", f"auto means {precision}, measured here; kept in {cache_file()}"
        ),
    ]


def _memory() -> Finding:
    free = psutil.virtual_memory().available / _GIB
    state: Literal["ok", "warn"] = "ok" if free >= _LEAST_MEMORY_GIB else "warn"
    return Finding("memory", state, f"{free:.1f} GiB available; {_LEAST_MEMORY_GIB:.0f} are needed")


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / _GIB
    state: Literal["ok", "warn"] = "ok" if free >= _LEAST_DISK_GIB else "warn"
    return Finding("disk", state, f"{free:.1f} GiB free; keep {_LEAST_DISK_GIB:.0f} at least")


def _program(name: str) -> Finding:
    beside_python = Path(sys.executable).with_name(name)
    path = shutil.which(name) or (str(beside_python) if beside_python.is_file() else None)
    if path is None:
        return Finding(f"{name} command", "warn", f"not found; `make repro` needs {name}")
    return Finding(f"{name} command", "ok", path)


def _port(name: str, port: int) -> Finding:
    problem = port_problem(port)
    if problem is None:
        return Finding(f"port {port}", "ok", f"free for {name}")
    return Finding(
        f"port {port}", "warn", f"{problem}; `make ui` needs it for {name}, or another one"
    )
