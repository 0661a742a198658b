"""One flow run at a time in an artifacts folder: the one that is at work keeps it.

The stages have locks of their own, but between two stages a newcomer could take the folder from a
run that has been at work for hours. The lock is the system's, so it ends with its process, however
that ends.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from prefect.runtime import flow_run

from pipeline.errors import InputError
from pipeline.folders import WORK, write_json

LOCK = "flow.lock"
_HOLDER = "flow.json"


@contextmanager
def hold_folder(artifacts: Path) -> Iterator[None]:
    """Keep other flow runs out of an artifacts folder while the body works.

    Raises:
        InputError: another flow run is at work there; the message names it. Or the folder cannot
            be written.
    """
    folder = artifacts.absolute() / WORK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{artifacts}: {_holder(folder)} is at work in this folder; nothing was done. A "
            "schedule that comes too often overlaps itself like this: wait for the other run, make "
            "the schedule rarer, or give this run its own `artifacts` folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{artifacts}: cannot be written ({error.strerror}); choose another `artifacts` "
            "folder or mend its permissions"
        ) from None
    with lock:
        _say_who(folder)
        try:
            yield
        finally:
            (folder / _HOLDER).unlink(missing_ok=True)


def _say_who(folder: Path) -> None:
    told = {
        "flow_run_id": str(flow_run.id or ""),
        "flow_run_name": str(flow_run.name or ""),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        write_json(folder / _HOLDER, told)
    except OSError:  # the lock holds without it; a full disk is for the stages to tell
        pass


def _holder(folder: Path) -> str:
    try:
        told = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        name, since, run_id = told["flow_run_name"], told["since"], told["flow_run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return "another flow run"
    return f"the flow run {name} (id {run_id}, since {since})"
