"""Workers that draw nothing; here, since spawned processes import them by name."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import InputError, StageError


class TwoPartError(Exception):
    """Like some libraries' errors: what goes into a pipe does not come out again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class FakeWorker:
    """Images whose pixels are their index; leaves a file for each start and for each shard.

    Attributes:
        traces: folder of these files, named by process.
        trouble: what happens at the shard `at`; None: nothing.
        at: number of a shard; -1 is the start.
        seconds: that each shard takes.
        together: shards that it takes at once.
    """

    traces: Path
    trouble: Literal["input", "stage", "value", "foreign", "kill", "exit"] | None = None
    at: int = 0
    seconds: float = 0.0
    together: int = 1

    def start(self):
        self._leave("start")
        if self.at == -1:
            self._fail()
        return self

    @property
    def at_once(self):
        return self.together

    def sample(self, shards):
        return [self._draw(shard) for shard in shards]

    def _draw(self, shard):
        self._leave(shard.name)
        time.sleep(self.seconds)
        if shard.number == self.at:
            self._fail()
        pixels = np.arange(shard.indices.start, shard.indices.stop, dtype=np.uint8)
        return np.broadcast_to(pixels[:, None, None, None], (shard.size, 2, 2, 1)).copy()

    def starts(self):
        return sorted(int(path.suffix[1:]) for path in self.traces.glob("start.*"))

    def sampled(self):
        return sorted(path.stem for path in self.traces.glob("class-*"))

    def _leave(self, name):
        self.traces.mkdir(parents=True, exist_ok=True)
        # No process starts twice.
        (self.traces / f"{name}.{os.getpid()}").touch(exist_ok=name != "start")

    def _fail(self):
        if self.trouble == "input":
            raise InputError("weights.safetensors: damaged")
        if self.trouble == "stage":
            raise StageError("class a: no image")
        if self.trouble == "value":
            raise ValueError("a plain one", 3)
        if self.trouble == "foreign":
            raise TwoPartError("one", "two")
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "exit":
            os._exit(3)
