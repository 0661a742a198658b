"""Programs of `make ui` as child processes, each in a group of its own, and how they are stopped.

Prefect's worker kills the run it supervises as soon as it is stopped itself, and the server then
shows that run as running for ever. So runs are asked to end first, while worker and server listen.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.errors import StageError

START_SECONDS = 180.0
STOP_SECONDS = 15.0  # of each signal, for servers and worker
RUN_SECONDS = 30.0  # for a run at work, to save where it stands
TELL_SECONDS = 2.0  # for the worker, to tell the server of a run that had to be killed
MARK = "REPLENISH_UI_MARK"  # in the environment of the worker and of all that descends from it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """What is started, and how to see that it is up.

    Attributes:
        name: what people call it.
        where: its address, or what it works for.
        command: how it is started.
        ready: says whether it is up; None for what ends by itself when it is done.
        environment: variables it needs besides this process's; None takes one away.
        port: where it listens on 127.0.0.1; None = nowhere.
        option: the option that moves it to another port.
        mark: value of MARK that tells the runs which it supervises; "" for what has none.
    """

    name: str
    where: str
    command: tuple[str, ...]
    ready: Callable[[], bool] | None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    port: int | None = None
    option: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Child:
    """A program that was started, and the file that holds what it writes."""

    program: Program
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def stopped_at_the_end(say: Say) -> Iterator[list[Child]]:
    """Give a list for children; whatever happens, all in it have ended when the block is left."""
    children: list[Child] = []
    with _polite_kill_interrupts():
        try:
            yield children
        finally:
            _stop(children, say)


def start(program: Program, children: list[Child], logs: Path) -> Child:
    """Start a program, add it to the children, and return it; it writes to a file in `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"ui-{program.name.lower()}.log"
    changed = {**os.environ, **program.environment}
    if program.mark:
        changed[MARK] = program.mark
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - its own programs
            program.command,
            env={name: value for name, value in changed.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches this process alone, which then stops the groups
            # in order.
            start_new_session=True,
        )
    children.append(Child(program, process, log))
    return children[-1]


def wait_until_up(waiting: Iterable[Child], children: list[Child]) -> None:
    """Wait for programs to be up, or to be done where they end by themselves.

    Raises:
        StageError: one was not up in time or failed, or another child has ended.
    """
    deadline = time.monotonic() + START_SECONDS
    left = list(waiting)
    while left:
        need_alive(children)
        left = [child for child in left if not _is_up(child)]
        if left and time.monotonic() > deadline:
            raise StageError(
                f"{left[0].program.name} was not up within {START_SECONDS:.0f} s; see {left[0].log}"
            )
        if left:
            time.sleep(0.2)


def need_alive(children: list[Child]) -> None:
    """Make sure that nothing has ended which should not.

    Raises:
        StageError: names what has ended, the last line that it wrote, and its log.
    """
    for child in children:
        status = child.process.poll()
        if status is not None and (status or child.program.ready is not None):
            raise StageError(
                f"{child.program.name} ended by itself (exit status {status}), so the others are "
                f"stopped too; its last line: {_last_line(child.log)}; see {child.log}"
            )


def _is_up(child: Child) -> bool:
    if child.program.ready is None:
        return child.process.poll() == 0
    return child.program.ready()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    written = [line.strip() for line in lines if line.strip()]
    return written[-1][:300] if written else "(none)"


@contextmanager
def _polite_kill_interrupts() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # What is ignored stays so: `nohup make ui` outlives its terminal.
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(children: list[Child], say: Say) -> None:
    # A polite kill may come twice, from make and from what stops make; Ctrl-C twice is meant.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        supervisors = [child for child in children if child.program.mark]
        for child in supervisors:
            _stop_runs(child, say)
        _stop_groups(supervisors)
        _stop_groups([child for child in children if not child.program.mark])
    except KeyboardInterrupt:
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        say("killing what is left")
        for child in children:
            _kill_runs(_runs(child))
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
        signal.signal(signal.SIGINT, interrupt)


def _stop_runs(worker: Child, say: Say) -> None:
    asked: set[int] = set()
    deadline = time.monotonic() + RUN_SECONDS
    # Asked again and again: the worker may have begun another run in the meantime.
    while runs := _runs(worker):
        heads = [run for run in runs.values() if _parent(run) not in runs]
        new = [run for run in heads if run.pid not in asked]
        if new and not asked:
            say(
                f"{len(new)} run at work: it has {RUN_SECONDS:.0f} s to save where it stands "
                "(Ctrl-C again: kill it now)"
            )
        for run in new:
            asked.add(run.pid)
            _signal(run.pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            say("the run did not end in time; it is killed")
            _kill_runs(runs)
            time.sleep(TELL_SECONDS)
            return
        time.sleep(0.2)


def _runs(worker: Child) -> dict[int, psutil.Process]:
    """Return the processes that descend from the worker, by pid; also those it left behind."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter() if worker.program.mark else ():
        try:
            ours = process.environ().get(MARK) == worker.program.mark
            if ours and os.getpgid(process.pid) != worker.process.pid:
                found[process.pid] = process
        except (psutil.Error, OSError):  # another user's, or gone
            continue
    return found


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _kill_runs(runs: dict[int, psutil.Process]) -> None:
    for pid in runs:
        _signal(pid, signal.SIGKILL)
    psutil.wait_procs(runs.values(), timeout=TELL_SECONDS)


def _stop_groups(children: list[Child]) -> None:
    # SIGINT is what all of them take as the wish to end in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for child in children:
            _signal_group(child.process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(_group_lives(c) for c in children):
            time.sleep(0.1)
        if not any(_group_lives(child) for child in children):
            return


def _group_lives(child: Child) -> bool:
    child.process.poll()  # reaps it, so that a zombie does not count
    return _signal_group(child.process.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
