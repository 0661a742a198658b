"""The most memory that this process has held so far."""

import resource
import sys


def memory_peaks() -> dict[str, int]:
    """Return bytes by kind.

    `process` is the resident memory of this process, `gpu` what torch has allocated on all CUDA
    devices together, if it has used one.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    # Whoever used a GPU has loaded torch; to load it here for the question takes seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["gpu"] = sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return found
