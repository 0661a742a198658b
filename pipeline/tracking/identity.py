"""The run id: one name for a run in logs, MLflow, Prefect, side files and every shard.

It is REPLENISH_RUN_ID if that is set, else the id of the Prefect flow run, else a new one. While a
run works, its id and the folder of its logs stand in the environment, which worker processes
inherit.
"""

import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.errors import InputError

RUN_ID = "REPLENISH_RUN_ID"
RUN_LOGS = "REPLENISH_RUN_LOGS"
LOGS = Path("runs")  # of the project folder
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def choose_run_id(prefect_run_id: str = "") -> str:
    """Return the id of a run that begins.

    Raises:
        InputError: REPLENISH_RUN_ID is no name.
    """
    wanted = os.environ.get(RUN_ID, "")
    if wanted and not _FORM.fullmatch(wanted):
        raise InputError(
            f"{RUN_ID} = {wanted[:80]!r}: not a run id; give 1 to 64 letters, digits, `-` and `_`, "
            "beginning with a letter or digit, or unset it"
        )
    return wanted or prefect_run_id or str(uuid.uuid4())


def inherited_run() -> tuple[str, Path] | None:
    """Return id and log folder of the run that this process works for; None outside of a run."""
    run_id, logs = os.environ.get(RUN_ID, ""), os.environ.get(RUN_LOGS, "")
    return (run_id, Path(logs)) if logs and _FORM.fullmatch(run_id) else None


@contextmanager
def run_environment(run_id: str, logs: Path) -> Iterator[None]:
    """Work for a run: processes that are started within it belong to it, too.

    A worker on another host does so with the run id that it is given.
    """
    before = {name: os.environ.get(name) for name in (RUN_ID, RUN_LOGS)}
    os.environ[RUN_ID] = run_id
    os.environ[RUN_LOGS] = str(logs.absolute())
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Worker:
    """A process, told apart from a later one of the same number.

    Attributes:
        host: name of its machine.
        pid: its number there.
        process_started: when it began, in seconds since 1970.
    """

    host: str
    pid: int
    process_started: float

    def alive(self) -> bool | None:
        """Say whether it is there; None where it is on another machine."""
        if self.host != socket.gethostname():
            return None
        try:
            found = psutil.Process(self.pid)
            return found.create_time() == self.process_started and (
                found.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


def this_process() -> Worker:
    """Return this process."""
    own = psutil.Process()
    return Worker(socket.gethostname(), own.pid, own.create_time())
