"""Train with several processes of this machine: the stage again, under `accelerate launch`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.errors import InputError, StageError
from pipeline.folders import WORK, write_bytes
from pipeline.params import Params, StageName
from pipeline.processes import PARENT
from pipeline.tracking.console import printable
from pipeline.tracking.tracker import Tracker

_STOP_SECONDS = 30.0
_KEPT_LINES = 40


def is_launched() -> bool:
    """Say whether a launcher started this process."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def launch_together(
    name: StageName, params: Params, artifacts: Path, tracker: Tracker, *, force: bool
) -> None:
    """Do a stage with `execution.train_processes` processes, and wait for them.

    They leave the folder that the stage leaves; what they say goes to the tracker. They end when
    this process does, however it ends.

    Raises:
        InputError: what the stage raises.
        StageError: likewise; or a process died.
    """
    count = getattr(params, name).execution.train_processes
    # A file for each run: another one may be about to start in the same folder.
    file = artifacts / WORK / f"{name}-params-{os.getpid()}.yaml"
    # Not `servers`: it has a password, and no stage reads it.
    plain = params.model_dump(mode="json", exclude={"servers"})
    write_bytes(file, yaml.safe_dump(plain).encode())
    tracker.note(f"{name}: {count} processes train together")
    # A port for each run: two on one machine must not meet.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", str(_free_port())),
        *("-m", "pipeline", name, "--params", str(file), "--artifacts", str(artifacts)),
        *("--no-mlflow", *(["--force"] if force else [])),
    ]
    try:
        status, said = _run(command, tracker)
    finally:
        file.unlink(missing_ok=True)
    if status:
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        text = errors[-1] if errors else (said[-1] if said else "no word from it")
        kind = InputError if status == 2 else StageError
        raise kind(text if errors else f"{name}: a process ended with status {status}: {text}")


def _run(command: list[str], tracker: Tracker) -> tuple[int, list[str]]:
    said: list[str] = []
    process = subprocess.Popen(  # noqa: S603 - its own program
        command,
        env={**os.environ, PARENT: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            line = printable(line.rstrip())
            if line:
                tracker.note(line)
                said = [*said[-_KEPT_LINES:], line]
        return _status_of(process.wait(), said), said
    finally:
        # An interruption here: the launcher passes the polite signal on to its processes.
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _status_of(status: int, said: list[str]) -> int:
    # The launcher gives 1 whatever its processes gave, and tells theirs in its words.
    told_input = any("exitcode" in line and ": 2" in line for line in said)
    return 2 if status and told_input else status


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
