"""A Prefect server of a test's own, its workers, and its API."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    """Return the condition's value once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class PrefectServer:
    """A running server; `environment` points a command at it."""

    folder: Path
    api: httpx.Client
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                (sys.executable, "-m", "prefect", *command),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, pool: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until the server knows it."""
        before = self.online(pool)
        name = f"{pool}-{len(self.processes)}"
        process = self.spawn(
            name, "worker", "start", "--pool", pool, "--limit", "1", "--name", name
        )
        wait_until(lambda: self.online(pool) > before, 180)
        return process

    def online(self, pool: str) -> int:
        found = self.post(f"/work_pools/{pool}/workers/filter", {})
        return sum(one["status"] == "ONLINE" for one in found)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        deadline = time.monotonic() + 60
        while True:
            answer = self.api.post(path, json=body)
            # A busy machine's server says so where its database is locked for long.
            if answer.status_code != 503 or time.monotonic() > deadline:
                answer.raise_for_status()
                return answer.json()
            time.sleep(1)

    def get(self, path: str) -> Any:
        answer = self.api.get(path)
        answer.raise_for_status()
        return answer.json()

    def start_run(self, deployment: str, parameters: dict[str, Any]) -> str:
        found = self.get(f"/deployments/name/{deployment}")
        run = self.post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def state_of(self, run: str) -> str:
        return str(self.get(f"/flow_runs/{run}")["state_type"])

    def parameters_of(self, run: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{run}")["parameters"])

    def finish(self, run: str, seconds: float) -> str:
        wait_until(lambda: self.state_of(run) in FINAL, seconds)
        return self.state_of(run)

    def states(self, flow: str) -> list[str]:
        runs = self.post("/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
        return [one["state_type"] for one in runs]

    def logs_of(self, run: str) -> str:
        lines: list[str] = []
        while True:
            found = self.post(
                "/logs/filter",
                {"logs": {"flow_run_id": {"any_": [run]}}, "offset": len(lines), "limit": 200},
            )
            if not found:
                return "\n".join(lines)
            lines += [one["message"] for one in found]

    def stop(self) -> None:
        # Workers all at once, each of which takes seconds to end; the server last, for their sake.
        workers = [one for one in self.processes if "worker" in one.args]
        for group in (workers, [one for one in self.processes if one not in workers]):
            for process in group:
                _signal(process, signal.SIGINT)
            for process in group:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    pass
                _signal(process, signal.SIGKILL)  # whatever is left of its group
                process.wait(20)
        self.api.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def start_server(project: Any) -> Iterator[PrefectServer]:
    """Start a server whose database lies in the project's folder, and stop all that it had."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **project.environment,
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    # No proxy: the address is this machine.
    client = httpx.Client(base_url=url, timeout=30, trust_env=False)
    server = PrefectServer(project.folder, client, environment)
    try:
        server.spawn("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_until(lambda: _answers(server), 180)
        yield server
    finally:
        server.stop()


def _answers(server: PrefectServer) -> bool:
    try:
        return server.api.get("/health").status_code == 200
    except httpx.TransportError:
        return False
