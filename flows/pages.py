"""What `make ui` starts: Prefect's server, MLflow's server, the bootstrap, a worker."""

import base64
import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from flows.groups import Program
from flows.team_database import Database
from pipeline.doctor import port_problem
from pipeline.errors import InputError

HOST = "127.0.0.1"  # always: neither page asks who is there
POOL = "replenish"  # the work pool of the main flow


def prefect_page(port: int, database: Database | None) -> Program:
    """Return Prefect's server, over its SQLite file or the team's database."""
    url = f"http://{HOST}:{port}"
    # The page in the browser asks the API at this address.
    environment = {"PREFECT_UI_API_URL": f"{url}/api"}
    if database is not None:
        environment |= database.environment
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database.url("asyncpg", "prefect")
    return Program(
        "Prefect",
        url,
        (
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", HOST, "--port", str(port), "--analytics-off"),
        ),
        lambda: _answers(f"{url}/api/health") is not None,
        environment,
        port,
        "--prefect-port",
    )


def mlflow_page(root: Path, port: int, database: Database | None) -> Program:
    """Return MLflow's server, over the database that runs in `root` write to, or the team's."""
    from pipeline.tracking.mlflow import default_tracking_uri, local_tracking_uri, open_client

    url = f"http://{HOST}:{port}"
    files = (root / "mlartifacts").absolute().as_uri()
    if database is None:
        # Where MLFLOW_TRACKING_URI names another server, this page shows the local database.
        store = default_tracking_uri(root)
        if store.startswith(("http:", "https:")):
            store = local_tracking_uri(root)
        open_client(store)  # makes the database whole: the server may be stopped while it does so
        # Runs in this folder write into it themselves, so files have their address on this disk.
        stored = ("--default-artifact-root", files)
        environment: dict[str, str | None] = {}
    else:
        # The team's files go through this server, so that no machine needs this one's disk.
        store = database.url("psycopg", "mlflow")
        stored = ("--artifacts-destination", files)
        environment = {**database.environment}
    # An address may hold a password of the user's own: the environment is private, arguments not.
    environment["MLFLOW_BACKEND_STORE_URI"] = store
    # Eight more processes, for the judging of language models.
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = os.environ.get(
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
    )
    return Program(
        "MLflow",
        url,
        (
            *(sys.executable, "-m", "mlflow", "server"),
            *("--host", HOST, "--port", str(port), "--workers", "1", *stored),
        ),
        lambda: _answers(f"{url}/health") is not None,
        environment,
        port,
        "--mlflow-port",
    )


def bootstrap(prefect: Program) -> Program:
    """Return what makes pools, deployments and automations on the server; it ends by itself."""
    return Program(
        "bootstrap",
        "prefect.yaml",
        (sys.executable, "-m", "pipeline", "bootstrap"),
        None,
        {"PREFECT_API_URL": f"{prefect.where}/api", "PGPASSWORD": None},
    )


def worker(prefect: Program, mlflow: Program, database: Database | None) -> Program:
    """Return a worker that takes the runs of the pool, one at a time."""
    api, name, since = f"{prefect.where}/api", f"make-ui-{socket.gethostname()}", datetime.now(UTC)
    # A person who presses "Run" waits for the next look; on one machine looks are cheap.
    looks = os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2")
    environment: dict[str, str | None] = {
        "PREFECT_API_URL": api,
        "PREFECT_WORKER_QUERY_SECONDS": looks,
    }
    if database is not None:
        # Runs write where the team looks, and have no business with the database itself.
        environment |= {"MLFLOW_TRACKING_URI": mlflow.where, "PGPASSWORD": None}
    return Program(
        "worker",
        f"work pool {POOL}, one run at a time",
        (
            *(sys.executable, "-m", "prefect", "worker", "start", "--name", name),
            *("--pool", POOL, "--type", "process", "--limit", "1"),
        ),
        lambda: _worker_is_online(api, name, since),
        environment,
        mark=f"{os.getpid()}-{time.time_ns()}",
    )


def check_ports(pages: tuple[Program, ...]) -> None:
    """Make sure that the ports are free and differ.

    Raises:
        InputError: names the port, the option and the key that change it.
    """
    if len({page.port for page in pages}) < len(pages):
        options = " and ".join(page.option for page in pages)
        raise InputError(f"port {pages[0].port} is given twice; give {options} different ports")
    for page in pages:
        if page.port is None:
            continue
        problem = port_problem(page.port, HOST)
        if problem is not None:
            key = page.option.removeprefix("--").replace("-", "_")
            raise InputError(
                f"port {page.port} on {HOST} cannot be used for the {page.name} page ({problem}); "
                f"stop what uses it, or give another: {page.option} {page.port + 1}, or for good "
                f"servers.{key} in params.yaml"
            )


def _answers(address: str, body: bytes | None = None) -> bytes | None:
    # No proxy: the address is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):  # where the server asks who is there
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        address, data=body, headers=headers
    )
    try:
        with opener.open(request, timeout=5) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None


def _worker_is_online(api: str, name: str, since: datetime) -> bool:
    answer = _answers(f"{api}/work_pools/{POOL}/workers/filter", b"{}")
    # A worker of this name may be known from before.
    return any(
        one["name"] == name and datetime.fromisoformat(one["last_heartbeat_time"]) > since
        for one in json.loads(answer or b"[]")
        if one["last_heartbeat_time"]
    )
