"""The processes that train one network together, under `accelerate launch` or `torchrun`.

Each process does its share of every batch; the gradients are averaged. Process 0 leads: it alone
holds the lock, reads checkpoints, looks at samples and writes files. A team of one is normal.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Team:
    """This process's place in the team.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Say whether this process is the one that reads and writes files."""
        return self.rank == 0

    def share_of(self, count: int) -> range:
        """Return which of `count` images of a batch are this process's."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace float tensors by their means over the team, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([one.detach().reshape(-1).float() for one in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for one in tensors:
            one.detach().copy_(flat[start : start + one.numel()].view_as(one))
            start += one.numel()

    def follow(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by the leader's."""
        if self.size > 1:
            for one in tensors:
                dist.broadcast(one.detach(), src=0)

    def agree(self, value: Any) -> Any:
        """Return the leader's plain value on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join_team() -> Team:
    """Join the team that a launcher started this process for; alone, without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Team()
    return _join()


@cache
def _join() -> Team:
    from accelerate import PartialState  # here, since most runs are of one process

    state = PartialState(cpu=not torch.cuda.is_available())
    # Threads of gloo that outlive the interpreter can abort a process whose work is done.
    atexit.register(state.destroy_process_group)
    return Team(state.process_index, state.num_processes)
