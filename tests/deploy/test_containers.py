"""The containers, as far as no container is needed: what their files promise holds."""

import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from moto.server import ThreadedMotoServer

from flows.bootstrap import POOLS
from flows.team_database import NAMES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SECRETS = {"POSTGRES_PASSWORD", "PREFECT_AUTH", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
SECRET_NAME = re.compile("PASSWORD|SECRET|ACCESS_KEY|AUTH|TOKEN")
PINNED = re.compile(r"^[\w./-]+:v?\d+\.[\w.-]+$")


def variables(text):
    """Return name and what follows it of each `${NAME...}`."""
    return re.findall(r"\$\{(\w+)([^}]*)\}", text)


def example():
    lines = (DEPLOY / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def each_service():
    return [pytest.param(service, id=name) for name, service in SERVICES.items()]


def test_passwords_come_from_the_env_file_and_nothing_starts_without_them():
    used = variables(TEXT)
    assert {name for name, _ in used} == set(example())
    assert {name for name, rest in used if rest.startswith(":?")} == SECRETS
    assert all(rest.startswith(":?") for name, rest in used if name in SECRETS)
    assert {name: value for name, value in example().items() if value} == {
        "PREFECT_PORT": "4200",
        "MLFLOW_PORT": "5000",
    }


@pytest.mark.parametrize("service", each_service())
def test_no_secret_is_written_down(service):
    for name, value in service.get("environment", {}).items():
        if SECRET_NAME.search(name) or name == "PGPASSWORD":
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
        assert not re.search(r"//[^/@]*:[^/@]*@", value), f"{name} has a password in an address"


def test_the_env_file_is_out_of_git_and_out_of_the_image():
    assert ".env" in (DEPLOY / ".gitignore").read_text().splitlines()
    assert "!deploy" not in (DEPLOY / "Dockerfile.dockerignore").read_text()


@pytest.mark.parametrize("service", each_service())
def test_a_service_is_pinned_or_built_here(service):
    if "build" in service:
        build = service["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert service["image"] == f"replenish:{build['args']['DEVICE']}"
        assert service["cap_drop"] == ["ALL"]
    else:
        assert PINNED.match(service["image"])


def test_ports_are_published_on_loopback_alone_and_only_of_the_pages():
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {
        "prefect": ["127.0.0.1:${PREFECT_PORT:-4200}:4200"],
        "mlflow": ["127.0.0.1:${MLFLOW_PORT:-5000}:5000"],
    }


@pytest.mark.parametrize("service", each_service())
def test_mounts_are_declared_or_there(service):
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mount.endswith(":ro"), source
        else:
            assert source in COMPOSE["volumes"]
    for one in service.get("configs", []):
        assert one["source"] in COMPOSE["configs"]


def test_every_declared_volume_is_used():
    used = {mount.split(":")[0] for one in SERVICES.values() for mount in one.get("volumes", [])}
    assert set(COMPOSE["volumes"]) <= used


@pytest.mark.parametrize("service", each_service())
def test_what_a_service_waits_for_can_happen(service):
    for name, how in service.get("depends_on", {}).items():
        target = SERVICES[name]
        if how["condition"] == "service_healthy":
            assert "healthcheck" in target
        if how["condition"] == "service_completed_successfully":
            assert target["restart"] == "on-failure:5", f"{name} would be started for ever"


def workers():
    return {
        name: one
        for name, one in SERVICES.items()
        if one.get("command", [])[:2] == WORKER_START[:2]
    }


WORKER_START = ["prefect", "worker", "start"]


def test_workers_share_their_folders_and_cannot_reach_the_records():
    assert sorted(workers()) == ["gpu-worker-0", "gpu-worker-1", "worker"]
    for service in workers().values():
        assert service["networks"] == ["work"]
        assert service["volumes"] == SERVICES["worker"]["volumes"]
        assert "artifacts:/app/artifacts" in service["volumes"]
        assert "PGPASSWORD" not in service["environment"]
    assert COMPOSE["networks"]["records"]["internal"] is True
    assert all(SERVICES[name]["networks"] == ["records"] for name in ("postgres", "store"))


def test_workers_take_from_the_pools_that_bootstrap_makes_one_run_each():
    pools = {name: options(one)["--pool"] for name, one in workers().items()}
    assert set(pools.values()) == {pool.name for pool in POOLS}
    assert {options(one)["--limit"] for one in workers().values()} == {"1"}


def options(service):
    return dict(word.split("=", 1) for word in service["command"] if word.startswith("--"))


def test_each_gpu_has_one_worker_and_none_starts_unasked():
    gpus = {}
    for name, service in workers().items():
        if name != "worker":
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
            assert service["image"] == "replenish:cuda"
            gpus[name] = (device["device_ids"], service["profiles"])
    assert gpus == {
        "gpu-worker-0": (["0"], ["gpu", "gpus"]),
        "gpu-worker-1": (["1"], ["gpus"]),
    }
    assert "profiles" not in SERVICES["worker"]


def test_both_databases_are_made_and_used():
    made = re.findall(r"CREATE DATABASE (\w+);", (DEPLOY / "databases.sql").read_text())
    assert {SERVICES["postgres"]["environment"]["POSTGRES_DB"], *made} == set(NAMES)
    prefect = SERVICES["prefect"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"]
    mlflow = SERVICES["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert prefect == "postgresql+asyncpg://replenish@postgres:5432/prefect"
    assert mlflow == "postgresql+psycopg://replenish@postgres:5432/mlflow"


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("mlflow:5000", True),
        ("127.0.0.1:5000", True),
        ("localhost:5001", True),
        ("mlflow.example.com", False),
        ("10.0.0.7:5000", False),
    ],
)
def test_mlflow_answers_the_workers_and_this_machine(host, answered):
    allowed = options(SERVICES["mlflow"])["--allowed-hosts"].split(",")
    assert is_allowed_host_header(allowed, host) is answered


def test_the_bucket_is_made_once_and_its_code_may_run_again(unused_store):
    command = [sys.executable, *SERVICES["bucket"]["command"][1:]]
    environment = {
        "PATH": os.environ["PATH"],
        "MLFLOW_S3_ENDPOINT_URL": unused_store,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for _ in range(2):
        subprocess.run(command, env=environment, check=True, timeout=120)
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=unused_store,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    # Other tests of this process may have buckets of their own in the same store.
    assert [one["Name"] for one in client.list_buckets()["Buckets"]].count("mlflow") == 1


@pytest.fixture
def unused_store():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_health_checks_are_valid_python():
    for name in ("prefect", "mlflow"):
        *_, code = SERVICES[name]["healthcheck"]["test"]
        compile(code, name, "exec")


# ---------------------------------------------------------------- the image


def instructions():
    """Return the Dockerfile's instructions, each a word and its text, comments left out."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    kept = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", kept)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def values(word):
    return [text for name, text in instructions() if name == word]


def test_the_base_is_pinned_to_a_version_this_project_runs_on():
    assert values("FROM") == ["${BASE}"]
    (base,) = [text for text in values("ARG") if text.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.1[12]\.\d+-slim-bookworm", base)


def test_the_last_user_is_a_number_and_not_root():
    assert values("USER") == ["10001:10001"]
    assert instructions().index(("USER", "10001:10001")) > max(
        number for number, (word, _) in enumerate(instructions()) if word in ("RUN", "COPY")
    )


def test_copied_files_are_there_and_reach_the_build():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    copied = {source for text in values("COPY") for source in text.split()[:-1]}
    assert {source.split("/")[0] for source in copied} == let_in
    assert all((ROOT / source).exists() for source in copied)
    refused = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    assert all(any(fnmatch(name, one) for one in refused) for name in (".env", "team.env", "x.pyc"))


def test_pip_takes_the_tested_versions_alone():
    installs = [
        part
        for text in values("RUN")
        for part in re.split(r"&&|;|\bthen\b", text)
        if "pip install" in part
    ]
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in part for part in installs)
    assert all("--no-cache-dir" in part for part in installs)


def test_extras_exist():
    (extras,) = [text for text in values("ARG") if text.startswith("EXTRAS=")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(known)


def test_no_secret_is_asked_for_and_no_health_check_is_built_in():
    names = [text.split("=")[0] for text in values("ARG")]
    names += re.findall(r"(\w+)=", " ".join(values("ENV")))
    assert not [name for name in names if SECRET_NAME.search(name)]
    assert values("HEALTHCHECK") == []


def test_telemetry_is_off_as_in_the_makefile():
    set_here = dict(re.findall(r"(\w+)=(\S+)", " ".join(values("ENV"))))
    makefile = (ROOT / "Makefile").read_text()
    exported = dict(re.findall(r"^export (\w+) = (\S+)$", makefile, re.MULTILINE))
    assert exported.items() <= set_here.items()
    assert set_here["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
