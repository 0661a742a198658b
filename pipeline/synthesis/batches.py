"""How many images one network call takes: measured, within a memory limit, of the same bits.

The rounding of a convolution may depend on the size of its batch. An image must not: hence only
sizes that give the very bits of the reference size are used, and a batch is always filled up to its
size. Which sizes these are is measured on the network itself, at the start.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from pipeline.errors import StageError

REFERENCE_IMAGES = 32  # the size whose bits count
_SIZES = (8, 16, 64, 128, 256, 512, 1024)
_MOST_ON_PROCESSOR = 64  # larger batches leave the caches and were never faster
_SLOW_SECONDS = 2.0  # where one call takes this long, no other size is timed
_REPEATS = 3
_CLEAR_SECONDS = 0.1  # a call of this length is timed once
_ENOUGH_GAIN = 1.03  # a larger size must be faster by this factor
_FREE_SHARE = 0.5  # of the free memory, for all workers together

Call = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Batches:
    """The sizes that may be used.

    Attributes:
        images: the size to begin with.
        smaller: sizes to fall back on when memory runs out, falling.
    """

    images: int
    smaller: tuple[int, ...]


def choose_batches(
    call: Call,
    device: torch.device,
    wanted: int | None = None,
    bytes_per_image: int = 1,
    memory_bytes: int = 1 << 62,
) -> Batches:
    """Return the size to use: the wanted one, or the fastest one that fits.

    Among the sizes with the reference's bits: the nearest to the wanted one from below, or the
    smallest that is within 3 % of the fastest.

    Args:
        call: runs the network on the first n of fixed images, (n, C, H, W).
        device: where it runs.
        wanted: images; None measures.
        bytes_per_image: memory that an image of a batch takes, at most.
        memory_bytes: memory that there is.

    Raises:
        StageError: not even one image fits.
    """
    reference, seconds = _reference(call, device)
    rates = {len(reference): len(reference) / seconds}
    most = memory_bytes // max(bytes_per_image, 1)
    if device.type != "cuda":
        most = min(most, _MOST_ON_PROCESSOR)
    most = min(most, max(wanted or most, len(reference)))
    for size in sorted({*_SIZES, wanted or REFERENCE_IMAGES}):
        small = size < len(reference)  # cheap, and what is left when memory runs out
        if (small or (size <= most and seconds < _SLOW_SECONDS)) and size not in rates:
            found = _try(call, size)
            if found is not None and _same_bits(found, reference):
                rates[size] = size / _time(call, size, device) if wanted is None else 0.0
    fitting = [size for size in rates if size <= most] or [min(rates)]
    if wanted is None:
        best = max(rates[size] for size in fitting)
        chosen = min(size for size in fitting if rates[size] * _ENOUGH_GAIN >= best)
    else:
        chosen = max((size for size in fitting if size <= wanted), default=min(fitting))
    return Batches(chosen, tuple(sorted((s for s in rates if s < chosen), reverse=True)))


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of torch means that memory ran out, on a GPU or on the processor."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def activation_bytes(model: nn.Module, call: Call) -> int:
    """Return what one image of a batch takes at most: the outputs of all layers together.

    No layer's output lives longer than the call; but few do not outlive their neighbour, so that
    this is two to four times what is taken.
    """
    total = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor):
            total += output.numel() * output.element_size()

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if not any(True for _ in module.children())
    ]
    try:
        call(2)
    finally:
        for hook in hooks:
            hook.remove()
    return total // 2


def memory_share(device: torch.device, workers: int, limit_mib: int | None) -> int:
    """Return the bytes that one worker's batches may take.

    Args:
        device: whose memory.
        workers: that share it.
        limit_mib: of one worker, in MiB; None is its part of half of what is free now.
    """
    if limit_mib is not None:
        return limit_mib << 20
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    return int(free * _FREE_SHARE) // max(workers, 1)


def _reference(call: Call, device: torch.device) -> tuple[torch.Tensor, float]:
    size = REFERENCE_IMAGES
    while size:
        found = _try(call, size)
        if found is not None:
            return found, _time(call, size, device)
        size //= 2
    raise StageError(
        "synthesize: the memory does not hold the network's work on a single image; close other "
        "programs, or make the images smaller (prepare.image_size_px) or the network "
        "(train.preset, train.base_channels)"
    )


def _try(call: Call, size: int) -> torch.Tensor | None:
    try:
        return call(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _same_bits(found: torch.Tensor, reference: torch.Tensor) -> bool:
    rows = min(len(found), len(reference))
    return torch.equal(found[:rows], reference[:rows])


def _time(call: Call, size: int, device: torch.device) -> float:
    """Return the seconds of a call, the least of several; of one alone where that says enough."""
    least = float("inf")
    for _ in range(_REPEATS):
        _synchronise(device)
        began = time.perf_counter()
        call(size)
        _synchronise(device)
        least = min(least, time.perf_counter() - began)
        if least > _CLEAR_SECONDS:
            break
    return max(least, 1e-9)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
