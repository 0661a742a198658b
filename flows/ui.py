"""`python -m flows.ui` (`make ui`): the Prefect and MLflow pages, on this machine only.

Both servers are child processes in groups of their own; Ctrl-C stops both, and when one dies the
other is stopped as well.
"""

import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.doctor import port_problem
from pipeline.errors import InputError, StageError

HOST = "127.0.0.1"  # always: neither page asks who is there
START_SECONDS = 180.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Server:
    """One page.

    Attributes:
        name: what people call it.
        port: where it listens on 127.0.0.1.
        option: the option that moves it to another port.
        command: how it is started.
        health: path that answers 200 once it is up.
        environment: variables it needs besides this process's.
    """

    name: str
    port: int
    option: str
    command: tuple[str, ...]
    health: str
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.port}"


def servers(root: Path, prefect_port: int, mlflow_port: int) -> tuple[Server, Server]:
    """Return the two servers, over the databases that runs in `root` write to."""
    from pipeline.tracking.mlflow import default_tracking_uri, local_tracking_uri

    # Where MLFLOW_TRACKING_URI names another server, this page shows the local database.
    store = default_tracking_uri(root)
    if store.startswith(("http:", "https:")):
        store = local_tracking_uri(root)
    return (
        Server(
            "Prefect",
            prefect_port,
            "--prefect-port",
            (
                *(sys.executable, "-m", "prefect", "server", "start"),
                *("--host", HOST, "--port", str(prefect_port), "--analytics-off"),
            ),
            "/api/health",
            # The page in the browser asks the API at this address.
            {"PREFECT_UI_API_URL": f"http://{HOST}:{prefect_port}/api"},
        ),
        Server(
            "MLflow",
            mlflow_port,
            "--mlflow-port",
            (
                *(sys.executable, "-m", "mlflow", "server"),
                *("--host", HOST, "--port", str(mlflow_port), "--workers", "1"),
                *("--backend-store-uri", store),
                *("--default-artifact-root", (root / "mlartifacts").absolute().as_uri()),
            ),
            "/health",
            {},
        ),
    )


def check_ports(wanted: tuple[Server, ...]) -> None:
    """Make sure that the ports are free and differ.

    Raises:
        InputError: names the port and the option that changes it.
    """
    if len({server.port for server in wanted}) < len(wanted):
        options = " and ".join(server.option for server in wanted)
        raise InputError(f"port {wanted[0].port} is given twice; give {options} different ports")
    for server in wanted:
        problem = port_problem(server.port, HOST)
        if problem is not None:
            raise InputError(
                f"port {server.port} on {HOST} cannot be used for the {server.name} page "
                f"({problem}); stop what uses it, or give another: "
                f"{server.option} {server.port + 1}"
            )


@dataclass(frozen=True)
class Child:
    """A server that was started, and the file that holds what it writes."""

    server: Server
    process: subprocess.Popen[bytes]
    log: Path


def serve(wanted: tuple[Server, ...], logs: Path) -> NoReturn:
    """Start the servers, say where they are, and stay until one ends or Ctrl-C.

    Args:
        wanted: the servers; the first one's address is shown as PREFECT_API_URL.
        logs: folder of the servers' output.

    Raises:
        InputError: see `check_ports`.
        StageError: a server did not start, or ended by itself; the other is stopped by then.
        KeyboardInterrupt: Ctrl-C or a polite kill; both are stopped by then.
    """
    check_ports(wanted)
    with _polite_kill_interrupts(), _children(wanted, logs) as children:
        typer.echo(f"starting {' and '.join(server.name for server in wanted)} ...", err=True)
        _wait_until_up(children)
        for server in wanted:
            typer.echo(f"{server.name + ':':<9}{server.url}")
        typer.echo(
            f"To see a run while it runs: export PREFECT_API_URL={wanted[0].url}/api\n"
            "Ctrl-C stops both."
        )
        sys.stdout.flush()
        while True:
            _need_alive(children)
            time.sleep(0.3)


@contextmanager
def _children(wanted: tuple[Server, ...], logs: Path) -> Iterator[list[Child]]:
    children: list[Child] = []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for server in wanted:
            log = logs / f"ui-{server.name.lower()}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(  # noqa: S603 - its own programs
                    server.command,
                    env={**os.environ, **server.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # A group of its own: Ctrl-C reaches this process alone, which then stops
                    # the whole group, a server's own workers included.
                    start_new_session=True,
                )
            children.append(Child(server, process, log))
        yield children
    finally:
        _stop(children)


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


def _wait_until_up(children: list[Child]) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(children)
    while waiting:
        _need_alive(children)
        waiting = [c for c in waiting if not _answers(c.server.url + c.server.health)]
        if waiting and time.monotonic() > deadline:
            raise StageError(
                f"the {waiting[0].server.name} server did not answer within "
                f"{START_SECONDS:.0f} s; see {waiting[0].log}"
            )
        if waiting:
            time.sleep(0.3)


def _answers(address: str) -> bool:
    # No proxy: the address is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _need_alive(children: list[Child]) -> None:
    for child in children:
        status = child.process.poll()
        if status is not None:
            raise StageError(
                f"the {child.server.name} server ended by itself (exit status {status}), so the "
                f"other was stopped too; see {child.log}"
            )


def _stop(children: list[Child]) -> None:
    # SIGINT is what both servers take as the wish to end in order.
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Port = Annotated[int, typer.Option(min=1, max=65535)]


@app.command(epilog="Example: python -m flows.ui --prefect-port 4201 --mlflow-port 5001")
def command(prefect_port: Port = 4200, mlflow_port: Port = 5000) -> None:
    """Serve the Prefect and MLflow pages on 127.0.0.1 until Ctrl-C."""
    root = Path.cwd()
    try:
        serve(servers(root, prefect_port, mlflow_port), root / "runs")
    except KeyboardInterrupt:  # here, because typer would make "Aborted." of it
        typer.echo("stopped", err=True)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 stopped, 1 a server failed, 2 a port cannot be used."""
    status = 0
    try:
        app(arguments)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        status = 2
    except StageError as error:
        typer.echo(f"error: {error}", err=True)
        status = 1
    raise SystemExit(status)


if __name__ == "__main__":
    main()
