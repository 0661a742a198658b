"""Flow runs cancelled from Prefect in each long stage, and a server that dies under one."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import yaml
from e2e.servers import FINAL, PrefectServer, start_server, wait_until
from filelock import FileLock, Timeout

from pipeline.folders import read_manifest
from pipeline.params import SECTIONS

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(2400)]

T = TypeVar("T")
# Prefect's worker kills what has not ended 30 s after it was told to. How soon a run does end is
# for the machine to say; that it ended by itself is in what it wrote last: see `assert_stopped`.
PATIENCE_SECONDS = 180.0
# Long enough to be caught at it, on a machine that is not busy too.
LONGER: dict[str, dict[str, Any]] = {
    "pretrain": {"base": "none"},
    "train": {"steps": 250, "checkpoint_every_steps": 25, "checks": 2},
    "synthesize": {"images_per_class": 24, "sampler_steps": 40, "adapt_below": 0.0},
    "evaluate": {"steps": 250, "seeds": 4, "curve_fractions": []},
}


def digests(artifacts: Path) -> dict[str, str]:
    found = {name: read_manifest(artifacts / name) for name in SECTIONS}
    return {name: one.digest for name, one in found.items() if one is not None}


def live(artifacts: Path, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads((artifacts / ".runs" / f"{stage}.live.json").read_text()))
    except (OSError, ValueError):
        return {}


def descendants(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != "zombie"]


def is_free(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return True
    except Timeout:
        return False


def mlflow_statuses(project: Any) -> list[str]:
    with sqlite3.connect(f"file:{project.folder / 'mlflow.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "select status from runs where run_uuid not in"
            " (select run_uuid from tags where key = 'mlflow.parentRunId')"
        )
        return [status for (status,) in rows]


@pytest.fixture(scope="module")
def longer(project: Any) -> Any:
    """The small project with longer stages, and what a run makes that nobody stops."""
    path = project.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for section, values in LONGER.items():
        params[section].update(values)
    path.write_text(yaml.safe_dump(params))
    project.python("-m", "pipeline", "run", "--no-mlflow", "--artifacts", "inline")
    return project


@pytest.fixture(scope="module")
def server(longer: Any) -> Iterator[PrefectServer]:
    with start_server(longer) as running:
        longer.run(sys.executable, "-m", "pipeline", "bootstrap", environment=running.environment)
        yield running


def patiently(call: Callable[[], T]) -> T:
    """Call the server, which says 503 while its database is busy, or may be about to start."""
    found: list[T] = []

    def answered() -> bool:
        try:
            found.append(call())
        except httpx.HTTPError:
            return False
        return True

    wait_until(answered, 120)
    return found[0]


def start(server: PrefectServer, artifacts: str, **more: Any) -> str:
    given = {"artifacts": artifacts, "changes": {"where": {"workers": 2}}, **more}
    return patiently(lambda: server.start_run("augment/on-demand", given))


def end(server: PrefectServer, run: str, seconds: float) -> str:
    wait_until(lambda: patiently(lambda: server.state_of(run)) in FINAL, seconds)
    return patiently(lambda: server.state_of(run))


def cancel(server: PrefectServer, run: str) -> None:
    """Cancel a run as the page does, and wait until it has ended."""
    order = {"state": {"type": "CANCELLING"}}
    patiently(lambda: server.post(f"/flow_runs/{run}/set_state", order))
    end(server, run, PATIENCE_SECONDS)


def assert_stopped(
    server: PrefectServer, run: str, artifacts: Path, stage: str, before: list[psutil.Process]
) -> None:
    """Check that the run ended by itself, told so, and left no process and no lock."""
    assert server.state_of(run) == "CANCELLED"
    # Whoever was killed after the grace could not have written that.
    assert live(artifacts, stage)["error"] == "TerminationSignal"
    assert mlflow_statuses(server) == ["KILLED"]
    wait_until(lambda: not alive(before), PATIENCE_SECONDS)
    for name in (stage, "flow"):
        with FileLock(artifacts / ".work" / f"{name}.lock").acquire(timeout=0):
            pass


def test_cancelled_in_each_stage_it_stops_soon_and_goes_on(
    longer: Any, server: PrefectServer
) -> None:
    worker, gpu = server.worker("replenish"), server.worker("replenish-gpu")
    artifacts = longer.folder / "cancelled"
    work = artifacts / ".work"
    prefect = {"changes": {"where": {"backend": "prefect", "workers": 1}}}

    run = start(server, "cancelled", **prefect)
    wait_until(lambda: list(work.glob("train/*/state.safetensors")), 400)
    before = descendants(worker)
    cancel(server, run)
    assert_stopped(server, run, artifacts, "train", before)

    run = start(server, "cancelled", **prefect)
    wait_until(lambda: list(work.glob("synthesize/*/shards/**/*.sha256")), 400)
    before = descendants(worker) + descendants(gpu)
    cancel(server, run)
    assert_stopped(server, run, artifacts, "synthesize", before)
    went_on = re.search(r"train: goes on from step (\d+)", server.logs_of(run))
    assert went_on is not None
    assert int(went_on[1]) >= 25
    # The leases that were out are cancelled, too, and none of them waits for a worker.
    wait_until(
        lambda: set(server.states("generate-shard")) <= {"COMPLETED", "CANCELLED"}, PATIENCE_SECONDS
    )

    run = start(server, "cancelled")
    wait_until(lambda: list(work.glob("evaluate/*/runs/*.npz")), 400)
    before = descendants(worker)
    cancel(server, run)
    assert_stopped(server, run, artifacts, "evaluate", before)

    run = start(server, "cancelled")
    assert end(server, run, 600) == "COMPLETED"
    assert digests(artifacts) == digests(longer.folder / "inline")
    assert mlflow_statuses(longer) == ["FINISHED"]
    assert [path.name for path in work.rglob("*") if path.suffix != ".lock"] == ["mlflow_run.json"]
    assert list((artifacts / ".runs").glob("*.live.json")) == []


def test_a_run_goes_on_while_its_server_is_gone(longer: Any, server: PrefectServer) -> None:
    if not server.online("replenish"):
        server.worker("replenish")
    artifacts = longer.folder / "alone"
    run = start(server, "alone", mlflow=False)
    wait_until(lambda: live(artifacts, "train"), 400)
    first = server.processes[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    wait_until(lambda: (artifacts / "train" / "manifest.json").exists(), 400)
    port = server.environment["PREFECT_API_URL"].split(":")[2].split("/")[0]
    server.spawn("server", "server", "start", "--host", "127.0.0.1", "--port", port)
    wait_until(lambda: (artifacts / "report" / "manifest.json").exists(), 600)
    assert digests(artifacts) == digests(longer.folder / "inline")
    # It may have been taken for dead, Crashed, while nobody heard it; its end puts that right.
    wait_until(lambda: patiently(lambda: server.state_of(run)) == "COMPLETED", 120)
    lock = FileLock(artifacts / ".work" / "flow.lock")
    wait_until(lambda: is_free(lock), 120)
    again = start(server, "alone", mlflow=False)
    assert end(server, again, 400) == "COMPLETED"
    wait_until(lambda: server.logs_of(again).count("up to date") == len(SECTIONS), 60)
