"""Seed-addressed units of work: fixed ranges of candidate indices of one class.

Candidate i of a class is a function of (generator digest, sampler settings, class, i), and a recipe
is short for the first two: no number of workers, no batch, no restart and no larger plan changes an
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.images import Images
from pipeline.folders import write_bytes
from pipeline.hashing import digest_bytes
from pipeline.storage.shards import DATA, SIDE, pack_images, unpack_images


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
    data = pack_images(images)
    write_bytes(folder / f"{shard.name}{DATA}", data, make_folder=False)
    side = digest_bytes(data).encode()
    write_bytes(folder / f"{shard.name}{SIDE}", side, make_folder=False)


def read_shard(folder: Path, shard: Shard) -> Images | None:
    """Return the candidates, or None where the shard is absent, unfinished or damaged."""
    try:
        data = (folder / f"{shard.name}{DATA}").read_bytes()
        stated = (folder / f"{shard.name}{SIDE}").read_bytes()
    except FileNotFoundError:
        return None
    return unpack_images(data, stated)
