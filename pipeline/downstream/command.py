"""A user's own training script as an arm: run it, and read its predictions with distrust.

docs/arms.md has the contract. The script gets a task.json that names three sample stores: training
rows with their labels, validation and test rows without them, in an order that tells nothing.
"""

import os
import queue
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.data.images import ImageMode
from pipeline.data.store import UNLABELLED, Samples
from pipeline.data.store_writer import write_store
from pipeline.downstream.command_output import FILES, CommandPredictions, read_predictions
from pipeline.downstream.weights import sampling_weights
from pipeline.errors import InputError, StageError
from pipeline.folders import write_json

TASK = "task.json"
_FORMAT = "replenish-task-1"
# All that a script inherits; what else it needs stands in its own files or arguments.
PASSED_ON = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)
_SHOWN_LINES, _LINE_CHARACTERS = 20, 500
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 3.0  # between asking to end and ending


@dataclass(frozen=True)
class TaskData:
    """The sample stores of one arm, on disk, the same for all its seeds.

    Attributes:
        training: store of the training rows, with labels and a column `sampling_weight`.
        validation: store without labels.
        test: store without labels.
        validation_ids: in the order in which predictions are returned.
        test_ids: in the order in which predictions are returned.
        classes: class names; a label is an index into them.
        image_size_px: side of the square images.
        image_mode: L (grey) or RGB.
        share: share of synthetic draws that the arm is asked to make; None without synthetic rows.
    """

    training: Path
    validation: Path
    test: Path
    validation_ids: tuple[str, ...]
    test_ids: tuple[str, ...]
    classes: tuple[str, ...]
    image_size_px: int
    image_mode: ImageMode
    share: float | None


def write_task_data(
    folder: Path,
    training: Samples,
    validation: Samples,
    test: Samples,
    classes: Sequence[str],
    image_size_px: int,
    image_mode: ImageMode,
    share: float | None,
) -> TaskData:
    """Write what the scripts of one arm read, as three sample stores in `folder`.

    Held-out rows lose their labels, groups and further columns, which could tell the class, and
    are sorted by the digest of their pixels. Without a share, synthetic rows are left out.

    Raises:
        StageError: an image occurs twice in validation or in test, or there are no training rows.
    """
    synthetic = np.asarray([origin == "synthetic" for origin in training.origins], dtype=bool)
    if share is None:
        training, synthetic = training.take(~synthetic), synthetic[~synthetic]
    if not len(training):
        raise StageError("command: there are no training rows; check prepare's counts")
    weights = sampling_weights(training.labels, synthetic, share or 0.0)
    training = replace(training, extra={"sampling_weight": weights.tolist()})
    for name, rows in (
        ("training", training),
        ("validation", _unlabelled(validation, "validation")),
        ("test", _unlabelled(test, "test")),
    ):
        write_store(folder / name, rows, classes, image_size_px, image_mode)
    return TaskData(
        training=folder / "training",
        validation=folder / "validation",
        test=folder / "test",
        validation_ids=validation.ids,
        test_ids=test.ids,
        classes=tuple(classes),
        image_size_px=image_size_px,
        image_mode=image_mode,
        share=share,
    )


def run_command(
    command: Sequence[str],
    data: TaskData,
    arm: str,
    seed: int,
    steps: int,
    work: Path,
    timeout_seconds: float,
    on_line: Callable[[str], None] | None = None,
) -> CommandPredictions:
    """Run a user's script once and return what it predicts.

    The command runs without a shell, in `work`, with no more of the environment than `PASSED_ON`.
    In its arguments, {task}, {seed}, {work} and {project} (the folder that Replenish was started
    in) are filled in. Whatever it started ends with it, on success, timeout and Ctrl-C alike.

    Args:
        command: program and arguments.
        data: the stores, from `write_task_data`.
        arm: name of the arm.
        seed: index of the repetition.
        steps: optimiser steps of Replenish's own arms, for the script to compare itself with.
        work: folder to run in, made where there is none; left as the script leaves it.
        timeout_seconds: from start to end.
        on_line: told each line of its output, standard error included, at most 500 characters.

    Raises:
        InputError: the script cannot be started, fails, takes too long, or its predictions are
            missing or wrong; names the arm, the seed, what is wrong and what to do.
    """
    shown = f"arm {arm}, seed {seed}: command {_shown(command)}"
    work, project = work.resolve(), Path.cwd()
    work.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (work / name).unlink(missing_ok=True)  # an earlier run's must not pass for this one's
    task = _write_task(data, arm, seed, steps, work)
    places = {"task": task, "seed": seed, "work": work, "project": project}
    lines: deque[str] = deque(maxlen=_SHOWN_LINES)

    def keep(line: str) -> None:
        lines.append(line)
        if on_line is not None:
            on_line(line)

    status = _run(
        [filled(argument, places) for argument in command],
        work,
        _environment(places),
        timeout_seconds,
        keep,
        shown,
    )
    last = f"; its last lines:\n{chr(10).join(lines)}" if lines else "; it wrote nothing"
    if status is None:
        raise InputError(
            f"{shown} was ended after {timeout_seconds:g} seconds; raise its timeout_seconds or "
            f"make it faster{last}"
        )
    if status != 0:
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        raise InputError(f"{shown} failed with {ended}; {_remedy(command, project)}{last}")
    try:
        return read_predictions(work, data.validation_ids, data.test_ids, data.classes)
    except InputError as error:
        raise InputError(f"{shown}: {error}{last}") from None


def _unlabelled(rows: Samples, split: str) -> Samples:
    if len(set(rows.ids)) != len(rows):
        raise StageError(f"command: an image occurs twice in {split}; leave repeats out first")
    rows = rows.take(np.argsort(np.asarray(rows.ids)))
    return replace(
        rows,
        labels=np.full(len(rows), UNLABELLED, dtype=np.int64),
        splits=(split,) * len(rows),
        groups=rows.ids,
        extra={},
    )


def _write_task(data: TaskData, arm: str, seed: int, steps: int, work: Path) -> Path:
    path = work / TASK
    write_json(
        path,
        {
            "format": _FORMAT,
            "arm": arm,
            "seed": seed,
            "steps": steps,
            "share": data.share,
            "classes": list(data.classes),
            "image_size_px": data.image_size_px,
            "image_mode": data.image_mode,
            "training": str(data.training.resolve()),
            "validation": str(data.validation.resolve()),
            "test": str(data.test.resolve()),
            "predictions": str(work / FILES[0]),
        },
    )
    return path


def _environment(places: dict[str, object]) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    own = {f"REPLENISH_{name.upper()}": str(value) for name, value in places.items()}
    # Lines as they come; and sets of texts in the same order every time.
    return {**passed, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", **own}


def filled(argument: str, places: dict[str, object]) -> str:
    """Return an argument of a command with the names in braces, such as {task}, filled in."""
    for name, value in places.items():  # not str.format: other braces are the script's own
        argument = argument.replace(f"{{{name}}}", str(value))
    return argument


def _run(
    arguments: list[str],
    work: Path,
    environment: dict[str, str],
    timeout_seconds: float,
    on_line: Callable[[str], None],
    shown: str,
) -> int | None:
    """Return the exit status, negative for a signal, or None where the time was up."""
    try:
        process = subprocess.Popen(  # noqa: S603 - the user names the program
            arguments,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a process group of its own, to be ended as a whole
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown} cannot be started ({error}); check the program's name, or give its full path"
        ) from None
    # Bounded: a script that writes faster than it is read has to wait.
    written: queue.Queue[str] = queue.Queue(maxsize=1000)
    stopped = threading.Event()
    try:
        if process.stdout is None:
            raise StageError(f"{shown}: its output cannot be read; run the same command again")
        reader = threading.Thread(
            target=_read_lines, args=(process.stdout, written, stopped), daemon=True
        )
        reader.start()
        deadline = time.monotonic() + timeout_seconds
        while process.poll() is None and time.monotonic() < deadline:
            _pass_on(written, on_line, _POLL_SECONDS)
        status = process.poll()
        _end(process)  # also what it left running in the background
        drained = time.monotonic() + _GRACE_SECONDS
        while (reader.is_alive() or not written.empty()) and time.monotonic() < drained:
            _pass_on(written, on_line, _POLL_SECONDS)
        return status
    finally:
        stopped.set()
        _end(process)


def _read_lines(stream: IO[str], written: "queue.Queue[str]", stopped: threading.Event) -> None:
    with stream:
        while line := stream.readline(_LINE_CHARACTERS):
            while not stopped.is_set():
                try:
                    written.put(line.rstrip("\r\n"), timeout=_POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if stopped.is_set():
                return


def _pass_on(
    written: "queue.Queue[str]", on_line: Callable[[str], None], wait_seconds: float
) -> None:
    """Hand on what waits, at most a queue of it, so that a flood does not outlast the deadline."""
    try:
        on_line(written.get(timeout=wait_seconds))
        for _ in range(written.qsize()):
            on_line(written.get_nowait())
    except queue.Empty:
        pass


def _end(process: "subprocess.Popen[str]") -> None:
    """End the process and all of its group: asked first, where it still runs, then forced."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # nothing is left of it
        pass


def _shown(command: Sequence[str]) -> str:
    text = shlex.join(command)
    return f"`{text if len(text) <= 200 else text[:200] + '...'}`"


def _remedy(command: Sequence[str], project: Path) -> str:
    for argument in command:
        if not Path(argument).is_absolute() and (project / argument).is_file():
            return f"it runs in a folder of its own, so write {{project}}/{argument}"
    return "run it by hand with REPLENISH_TASK set to the task.json in its folder"
