"""What a worker is told, and how it draws shards.

Apart from the shards themselves, so that whoever writes, reads or hands them out loads no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.data.images import Images
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.synthesis.engine import Candidate, Engine
from pipeline.synthesis.parents import Editing
from pipeline.synthesis.shards import Shard


@dataclass(frozen=True)
class ShardJob:
    """What decides the images, and how they are drawn, as plain data for workers of any process.

    Attributes:
        generator: folder of the generator.
        settings: of the sampler.
        seed: root seed.
        device: name of the torch device to sample on.
        editing: training images to start from; None starts from noise.
        compiled: use torch.compile.
        batch_images: images of one network call; None measures.
        workers: that share the memory.
        memory_mib: of one worker's batches; None is a share of what is free.
        shard_images: candidates of a shard.
    """

    generator: Path
    settings: SamplerSettings
    seed: int
    device: str
    editing: Editing | None = None
    compiled: bool = False
    batch_images: int | None = None
    workers: int = 1
    memory_mib: int | None = None
    shard_images: int = 32

    def start(self) -> "EngineWorker":
        """Load the generator and return what samples shards with it.

        Raises:
            InputError: the generator is missing or damaged.
        """
        device = torch.device(self.device)
        engine = Engine(
            load_generator(self.generator, device),
            self.settings,
            self.seed,
            device,
            self.editing,
            compiled=self.compiled,
            batch_images=self.batch_images,
            workers=self.workers,
            memory_mib=self.memory_mib,
        )
        return EngineWorker(engine, self.shard_images)


class EngineWorker:
    """A warm engine that draws shards, as many at once as fill its batch."""

    def __init__(self, engine: Engine, shard_images: int) -> None:
        """Take the engine; its batch is measured before the first shard."""
        self._engine, self._shard_images = engine, shard_images

    @property
    def at_once(self) -> int:
        """Return how many shards fill one batch."""
        return max(1, self._engine.batch_images // self._shard_images)

    def sample(self, shards: Sequence[Shard]) -> list[Images]:
        """Return each shard's candidates, (size, H, W, C) uint8."""
        images = self._engine.draw(
            [Candidate(shard.label, index) for shard in shards for index in shard.indices]
        )
        return np.split(images, np.cumsum([shard.size for shard in shards])[:-1])
