"""Seed-addressed units of work: fixed ranges of candidate indices of one class.

Candidate i of a class is a function of (generator digest, sampler settings, class, i), and a recipe
is short for the first two: no number of workers, no batch, no restart and no larger plan changes an
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.data.images import Images
from pipeline.folders import write_bytes
from pipeline.hashing import digest_bytes


@dataclass(frozen=True, slots=True)
class Shard:
    """Candidates number * size up to (number + 1) * size of one class, drawn by one recipe."""

    label: int
    number: int
    size: int
    recipe: int = 0

    @property
    def indices(self) -> range:
        """Return the candidate indices of the shard."""
        return range(self.number * self.size, (self.number + 1) * self.size)

    @property
    def name(self) -> str:
        """Return the shard's file name without ending."""
        recipe = f"-recipe-{self.recipe}" if self.recipe else ""
        return f"class-{self.label:04d}{recipe}-shard-{self.number:06d}"


class ShardWorker(Protocol):
    """Samples shards, and stays warm between them."""

    @property
    def at_once(self) -> int:
        """Return how many shards fill one batch."""
        ...

    def sample(self, shards: Sequence[Shard]) -> list[Images]:
        """Return each shard's candidates, (size, H, W, C) uint8."""
        ...


def write_shard(folder: Path, shard: Shard, images: Images) -> None:
    """Write the candidates, then the side-car with their sha256; each appears whole.

    Raises:
        FileNotFoundError: the folder is gone: whoever wanted the shard is through.
    """
    data = save({"images": np.ascontiguousarray(images)})
    write_bytes(folder / f"{shard.name}.safetensors", data, make_folder=False)
    write_bytes(folder / f"{shard.name}.sha256", digest_bytes(data).encode(), make_folder=False)


def read_shard(folder: Path, shard: Shard) -> Images | None:
    """Return the candidates, or None where the shard is absent, unfinished or damaged."""
    try:
        data = (folder / f"{shard.name}.safetensors").read_bytes()
        stated = (folder / f"{shard.name}.sha256").read_text(encoding="ascii")
        if digest_bytes(data) != stated:
            return None
        images: Images = load(data)["images"]
    except (FileNotFoundError, UnicodeDecodeError, SafetensorError, KeyError):
        return None
    return images
