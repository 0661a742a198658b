"""Workers elsewhere: how whoever orchestrates lends its executor to the stage.

Domain code knows no orchestrator. A flow that can send shards to other machines enters
`lend_executor` around the stage; without one, the same shards are drawn on this machine.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pipeline.params import Execution
from pipeline.synthesis.executors import Executor
from pipeline.synthesis.jobs import ShardJob
from pipeline.tracking.tracker import Tracker

# Makes an executor of: the job, the folder of the shards, the params, who is told.
MakeExecutor = Callable[[ShardJob, Path, Execution, Tracker], Executor]

_LENT: ContextVar[MakeExecutor | None] = ContextVar("lent_executor", default=None)


@contextmanager
def lend_executor(make: MakeExecutor) -> Iterator[None]:
    """Have the stages in the body send their shards through `make` where the params ask for it."""
    token = _LENT.set(make)
    try:
        yield
    finally:
        _LENT.reset(token)


def lent_executor() -> MakeExecutor | None:
    """Return what was lent, if anything was."""
    return _LENT.get()
