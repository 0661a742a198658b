"""What a worker is told, and how it draws shards.

Apart from the shards themselves, so that whoever writes, reads or hands them out loads no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from pipeline.data.images import Images
from pipeline.device import pick_device
from pipeline.diffusion.checkpoints import Generator, load_generator
from pipeline.errors import StageError
from pipeline.synthesis.engine import Candidate, Engine
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard


@dataclass(frozen=True)
class ShardJob:
    """What decides the images, and how they are drawn, as plain data for workers of any process.

    Attributes:
        recipes: ways to draw; a shard names one by its number.
        seed: root seed.
        device: name of the torch device to sample on; auto is the worker's own best.
        compiled: use torch.compile.
        batch_images: images of one network call; None measures.
        workers: that share the memory.
        memory_mib: of one worker's batches; None is a share of what is free.
        shard_images: candidates of a shard.
    """

    recipes: tuple[Recipe, ...]
    seed: int
    device: str
    compiled: bool = False
    batch_images: int | None = None
    workers: int = 1
    memory_mib: int | None = None
    shard_images: int = 32

    def start(self) -> "EngineWorker":
        """Load the first recipe's generator and return what samples shards.

        Raises:
            InputError: the generator is missing or damaged.
        """
        worker = EngineWorker(self)
        worker.engine(0)
        return worker


class EngineWorker:
    """Warm engines, one a recipe, that draw shards, as many at once as fill a batch."""

    def __init__(self, job: ShardJob) -> None:
        """Take the job; a generator is loaded, and its batch measured, before its first shard."""
        self._job = job
        self._generators: dict[Path, Generator] = {}
        self._engines: dict[int, Engine] = {}
        self._lock = Lock()

    @property
    def at_once(self) -> int:
        """Return how many shards fill one batch."""
        return max(1, self.engine(0).batch_images // self._job.shard_images)

    def engine(self, recipe: int) -> Engine:
        """Return the engine of a recipe, made when it is first needed."""
        with self._lock:  # the threads of a process share the worker
            if recipe not in self._engines:
                self._engines[recipe] = self._make(self._job.recipes[recipe])
            return self._engines[recipe]

    def sample(self, shards: Sequence[Shard]) -> list[Images]:
        """Return each shard's candidates, (size, H, W, C) uint8."""
        drawn: dict[Shard, Images] = {}
        for recipe in sorted({shard.recipe for shard in shards}):
            own = [shard for shard in shards if shard.recipe == recipe]
            images = self.engine(recipe).draw(
                [Candidate(shard.label, index) for shard in own for index in shard.indices]
            )
            parts = np.split(images, np.cumsum([shard.size for shard in own])[:-1])
            drawn.update(zip(own, parts, strict=True))
        return [drawn[shard] for shard in shards]

    def _make(self, recipe: Recipe) -> Engine:
        job = self._job
        device = pick_device("auto") if job.device == "auto" else torch.device(job.device)
        if recipe.generator not in self._generators:
            found = load_generator(recipe.generator, device)
            if found.digest != recipe.digest:
                raise StageError(
                    f"{recipe.generator}: another generator ({found.digest[:12]}) than the one "
                    f"that shards are asked of ({recipe.digest[:12]}); workers need the run's own "
                    "folder, which no other run may replace meanwhile"
                )
            self._generators[recipe.generator] = found
        return Engine(
            self._generators[recipe.generator],
            recipe.settings,
            job.seed,
            device,
            recipe.editing,
            compiled=job.compiled,
            batch_images=job.batch_images,
            workers=job.workers,
            memory_mib=job.memory_mib,
        )
