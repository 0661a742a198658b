"""The templates of work pools: Prefect takes them, and they agree with image and compose file."""

import asyncio
import json
import re
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
import yaml
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).parents[2]
KINDS = ("process", "docker", "kubernetes")
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
BEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def template(kind):
    return json.loads((ROOT / f"deploy/work-pools/{kind}.json").read_text())


def fields(kind):
    return template(kind)["variables"]["properties"]


def pod():
    return template("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_prefect_takes_the_template(kind):
    pool = WorkPoolCreate(name="replenish-gpu", type=kind, base_job_template=template(kind))
    assert pool.base_job_template == template(kind)
    is_valid_schema(template(kind)["variables"])


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_obey_the_schema(kind):
    schema = template(kind)["variables"]
    defaults = {name: one["default"] for name, one in fields(kind).items() if "default" in one}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    assert defaults["env"].items() >= BEAT.items()
    validate(defaults, schema, raise_on_error=True)
    assert [error.json_path for error in validate({**defaults, "env": 3}, schema)] == ["$.env"]


@pytest.mark.parametrize("kind", KINDS)
def test_placeholders_and_variables_are_the_same_set(kind):
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template(kind)["job_configuration"])))
    assert used == set(fields(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_prefect_yaml_sets_is_added_to_the_templates_environment(kind):
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (shards,) = [one for one in deployments if one["name"] == "generate-shard"]
    job_variables = {"env": {**shards["work_pool"]["job_variables"]["env"], "EXTRA": "1"}}
    made = asyncio.run(
        BaseJobConfiguration.from_template_and_values(
            template(kind), job_variables, client=AsyncMock()
        )
    )
    assert made.env == {**fields(kind)["env"]["default"], **BEAT, "EXTRA": "1"}


def test_the_process_template_is_prefects_own_with_a_heartbeat():
    ours = template("process")
    assert ours["variables"]["properties"]["env"].pop("default") == BEAT
    assert ours == ProcessWorker.get_default_base_job_template()


def test_docker_containers_join_what_compose_made():
    image = {one["image"] for one in COMPOSE["services"].values() if "profiles" in one}
    assert {fields("docker")["image"]["default"]} == image
    assert fields("docker")["networks"]["default"] == [f"{COMPOSE['name']}_work"]
    mounts = fields("docker")["volumes"]["default"]
    named = [m for m in COMPOSE["services"]["worker"]["volumes"] if not m.startswith(".")]
    assert mounts == [f"{COMPOSE['name']}_{mount}" for mount in named]
    (request,) = fields("docker")["container_create_kwargs"]["default"]["device_requests"]
    assert request == {"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu"]]}


def test_a_pod_has_one_gpu_one_run_and_no_rights():
    (container,) = pod()["containers"]
    assert container["name"] == "prefect-job"  # prefect-kubernetes refuses any other
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert (fields("kubernetes")["gpus"]["default"], fields("kubernetes")["gpus"]["maximum"]) == (
        1,
        1,
    )
    spec = template("kubernetes")["job_configuration"]["job_manifest"]["spec"]
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert fields("kubernetes")["backoff_limit"]["default"] == 0
    assert pod()["restartPolicy"] == "Never"
    assert pod()["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_pods_folders_and_user_are_the_images():
    (container,) = pod()["containers"]
    mounted = {one["mountPath"] for one in container["volumeMounts"] if one["name"] == "shared"}
    named = [m for m in COMPOSE["services"]["worker"]["volumes"] if not m.startswith(".")]
    assert mounted == {mount.split(":")[1] for mount in named}
    context = pod()["securityContext"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user.groups()
    assert context["runAsNonRoot"] is True
    assert container["workingDir"] == "/app"
