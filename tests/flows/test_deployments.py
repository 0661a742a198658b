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
        return self._run([*self.prefect, *arguments])

    def replenish(self, *arguments):
        return self._run([sys.executable, "-m", "pipeline", *arguments])

    def work(self):
        self.call("worker", "start", "--pool", "replenish", "--limit", "1", "--run-once")

    def start(self, deployment, **parameters):
        return self.get(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": {"mlflow": False, **parameters}},
        )

    def ended(self, created):
        for _ in range(240):
            run = self.get(f"/flow_runs/{created['id']}")
            if run["state"]["type"] in ("FAILED", "COMPLETED", "CRASHED"):
                break
            time.sleep(0.5)
        return run

    def deployments(self):
        flows = {one["id"]: one["name"] for one in self.get("/flows/filter", {})}
        return {
            f"{flows[one['flow_id']]}/{one['name']}": (
                one["id"],
                [schedule["active"] for schedule in one["schedules"]],
            )
            for one in self.get("/deployments/filter", {})
        }

    def _run(self, command):
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.project,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path, body=None, method=None):
        request = urllib.request.Request(
            self.environment["PREFECT_API_URL"] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, path):
        for _ in range(240):
            try:
                return self.get(path)
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"no answer at {path}")


def test_bootstrap_twice_then_a_worker_runs_a_form_in_the_project_folder(api):
    said = api.replenish("bootstrap")
    assert "work pool replenish: made" in said
    nightly = api.get("/deployments/name/augment/nightly")
    (schedule,) = nightly["schedules"]
    assert (schedule["active"], schedule["schedule"]["timezone"]) == (False, "UTC")
    assert nightly["work_queue_name"] == "scheduled"
    # What a person switches on in the page stays on.
    api.get(f"/deployments/{nightly['id']}/schedules/{schedule['id']}", {"active": True}, "PATCH")
    before = api.deployments()
    said = api.replenish("bootstrap")
    assert ": made" not in said
    assert ": brought" not in said
    assert api.deployments() == before
    assert before["augment/nightly"] == (nightly["id"], [True])
    assert set(before) == {
        *("augment/on-demand", "augment/nightly", "generate-shard/generate-shard"),
        *("sweep/sweep", "retention/retention"),
    }

    on_demand = api.get("/deployments/name/augment/on-demand")
    schema = on_demand["parameter_openapi_schema"]
    assert (
        schema["properties"]["params_file"]["description"] == "params file, in the project folder."
    )
    steps = schema["definitions"]["Generator"]["properties"]["steps"]
    assert steps["description"] == "most optimiser steps of the diffusion model"
    assert steps["anyOf"][0] == {"maximum": 10000000, "minimum": 1, "type": "integer"}

    # A file that only the project folder has: the message shows that the worker was in the right
    # folder and how an error of the user's looks.
    (api.project / "wrong.yaml").write_text("trian: {}")
    created = api.start(on_demand, params_file="wrong.yaml")
    api.work()
    run = api.ended(created)
    assert run["state"]["type"] == "FAILED"
    assert "wrong.yaml: trian is not a known key" in run["state"]["message"]

    # The form's fields reach the stage: the path that was filled in is the one that is missing.
    filled = {"data": {"source": "folder", "path": "not/there"}}
    (api.project / "params.yaml").write_text("{}")
    created = api.start(on_demand, params_file="params.yaml", changes=filled)
    api.work()
    assert "prepare.path = not/there: no such folder" in api.ended(created)["state"]["message"]


def test_an_announcement_starts_a_run_on_the_announced_data(api, make_image_folder):
    api.replenish("bootstrap")
    make_image_folder(api.project / "incoming", {"cat": 3, "dog": 2})
    assert "Announced to http" in api.replenish("announce", "incoming")
    assert "nothing was sent" in api.replenish("announce", "incoming")
    wanted = {"data": {"source": "folder", "path": "incoming"}}
    for _ in range(120):
        found = [
            one["parameters"].get("changes")
            for one in api.get("/flow_runs/filter", {"limit": 50})
            if one["auto_scheduled"] is False
        ]
        if wanted in found:
            break
        time.sleep(0.5)
    assert found.count(wanted) == 1


def test_a_wrong_address_is_told_with_exit_status_2(api):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "bootstrap"],
        env={**api.environment, "PREFECT_API_URL": url},
        cwd=api.project,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: PREFECT_API_URL = {url}: no answer (" in done.stderr
    assert "Traceback" not in done.stderr


SLEEPER = """
import sys, time
from prefect import flow, tags

@flow
def sleeper():
    time.sleep(600)

with tags(sys.argv[1]):
    sleeper()
"""


def test_a_killed_run_with_our_tag_is_cleared_and_another_is_left_alone(api):
    api.replenish("bootstrap")
    name = "replenish: clear runs of dead workers"
    (found,) = api.get("/automations/filter", {"automations": {"name": {"any_": [name]}}})
    # The least that Prefect allows, in place of 90 s.
    trigger = {**found["trigger"], "within": 10}
    kept = ("name", "description", "enabled", "actions")
    api.get(
        f"/automations/{found['id']}",
        {**{key: found[key] for key in kept}, "trigger": trigger},
        "PUT",
    )
    (api.project / "sleeper.py").write_text(SLEEPER)
    command = [sys.executable, "sleeper.py"]
    processes = [
        subprocess.Popen([*command, tag], env=api.environment, cwd=api.project)
        for tag in ("replenish", "other")
    ]
    try:
        sleepers = {"flows": {"name": {"any_": ["sleeper"]}}}
        beating = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
        for _ in range(240):
            by_tag = {run["tags"][0]: run for run in api.get("/flow_runs/filter", sleepers)}
            events = api.get("/events/filter", beating)["events"]
            beats = {event["resource"]["prefect.resource.id"] for event in events}
            if len(by_tag) == 2 and all(
                f"prefect.flow-run.{run['id']}" in beats for run in by_tag.values()
            ):
                break
            time.sleep(0.5)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    cleared = api.ended(by_tag["replenish"])
    assert cleared["state"]["type"] == "CRASHED"
    assert "its worker or process died" in cleared["state"]["message"]
    assert api.get(f"/flow_runs/{by_tag['other']['id']}")["state"]["type"] == "RUNNING"
    assert f"automation {name}: brought up to date" in api.replenish("bootstrap")
