"""Where tensors live, and how many threads and which precision are used there."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import psutil
import torch

from pipeline.errors import InputError
from pipeline.machine import Precision as Precision
from pipeline.machine import faster_precision

# Numbers of the options in glibc's malloc.h, for what mallopt is told below.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device; `auto` is CUDA where there is one.

    Raises:
        InputError: CUDA was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError(
            "execution.device = cuda: torch sees no CUDA device; use auto or cpu, "
            "or run `replenish doctor` to see why"
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def usable_cores() -> int:
    """Return the number of processor cores that this process may use, at least 1."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # Linux; macOS has none
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if named:
        return tuple(one.strip() for one in named.split(","))[:count]
    return tuple(str(number) for number in range(count))


def pick_precision(
    wanted: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> Precision:
    """Return the precision of the network's arithmetic; `auto` is the faster one of this machine.

    Measured once and kept per machine (`pipeline.machine`): a fresh timing in every run could
    differ from run to run, and with it every digest.
    """
    return faster_precision(device) if wanted == "auto" else wanted


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision; float32 is a context that does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Compute with a fixed number of threads, and with denormal numbers flushed to zero.

    A sum split over another number of threads rounds otherwise, so the number is part of what
    makes a result repeatable. Denormals appear in the gradients of nearly noise-free steps and
    made training ten times slower (docs/log.md). Threads inherit both settings from the one that
    starts them, hence the call around a whole stage, before torch starts its own.
    """
    before = torch.get_num_threads()
    _keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    try:
        # On CUDA, the same kernels every time rather than whichever was fastest just now.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _keep_freed_memory() -> None:
    # glibc hands each large tensor back to the system, and every training step faults it in again:
    # 16,000 pages a step, 4 to 7 % of its time (docs/log.md). Elsewhere there is no mallopt.
    try:
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        allocator.mallopt(_MMAP_THRESHOLD, 2**30)
    except (OSError, AttributeError, TypeError):
        pass
