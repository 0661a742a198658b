"""prefect.yaml for real: deploy to a server on loopback, then a run through a process worker."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "flows", project / "flows")
    shutil.copy(ROOT / "prefect.yaml", project / "prefect.yaml")
    api = Api(environment, project)
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*api.prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        api.wait("/health")
        yield api
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class Api:
    prefect = (sys.executable, "-m", "prefect")

    def __init__(self, environment, project):
        self.environment = environment
        self.project = project

    def call(self, *arguments):
        done = subprocess.run(
            [*self.prefect, *arguments],
            env=self.environment,
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path, body=None):
        request = urllib.request.Request(
            self.environment["PREFECT_API_URL"] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait(self, path):
        for _ in range(240):
            try:
                return self.get(path)
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"no answer at {path}")


def test_deployments_are_made_and_a_worker_runs_them_in_the_project_folder(api):
    api.call("work-pool", "create", "--type", "process", "replenish")
    api.call("--no-prompt", "deploy", "--all")

    nightly = api.get("/deployments/name/augment/nightly")
    (schedule,) = nightly["schedules"]
    assert schedule["active"] is False
    assert schedule["schedule"]["timezone"] == "UTC"
    on_demand = api.get("/deployments/name/augment/on-demand")
    fields = on_demand["parameter_openapi_schema"]["properties"]
    assert fields["params_file"]["description"] == "params file, in the project folder."
    changes = on_demand["parameter_openapi_schema"]["definitions"]["Changes"]["properties"]
    assert changes["train_steps"]["description"] == "most optimiser steps of the diffusion model"

    # A file that only the project folder has, and that is no params file: the message shows that
    # the worker was in the right folder and how an error of the user's looks.
    created = api.get(
        f"/deployments/{on_demand['id']}/create_flow_run",
        {"parameters": {"params_file": "prefect.yaml", "mlflow": False}},
    )
    api.call("worker", "start", "--pool", "replenish", "--limit", "1", "--run-once")
    for _ in range(240):
        run = api.get(f"/flow_runs/{created['id']}")
        if run["state"]["type"] in ("FAILED", "COMPLETED", "CRASHED"):
            break
        time.sleep(0.5)
    assert run["state"]["type"] == "FAILED"
    assert "prefect.yaml: deployments is not a known key" in run["state"]["message"]
