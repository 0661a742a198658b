"""Named seeds, all derived from the one root seed.

No code in Replenish draws from a global generator: whoever needs randomness asks for a seed by
name, so that adding a consumer never shifts the numbers that another one sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.hashing import digest_json


def derive_seed(root: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on the root seed and on the names alone."""
    return int(digest_json([root, *names])[:16], 16) >> 1


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the named purpose."""
    return np.random.default_rng(derive_seed(root, *names))


def torch_generator(root: int, *names: str | int) -> torch.Generator:
    """Return a CPU torch generator for the named purpose.

    Noise is always drawn on the CPU and moved, so that a seed means the same image on any device.
    """
    return torch.Generator().manual_seed(derive_seed(root, *names))


@contextmanager
def seeded_globals(root: int, device: torch.device, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators for the body, and restore them afterwards.

    For third-party code alone, whose dropout and weight initialisers accept no generator.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        seed = derive_seed(root, *names)
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def seeded_initialisers(root: int, *names: str | int) -> Iterator[None]:
    """Seed the global CPU generator, which weight initialisers draw from, for the body."""
    with seeded_globals(root, torch.device("cpu"), *names):
        yield
