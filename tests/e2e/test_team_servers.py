"""A team's PostgreSQL under Prefect and MLflow: both find again what they recorded."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from flows.team_database import make_databases, read_database
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]
PASSWORD = "c0rrect h@rse/b%ttery:"
QUOTED = "c0rrect%20h%40rse%2Fb%25ttery%3A"
ROLES = ("team LOGIN CREATEDB", "guest LOGIN")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RECORD = """
import json
from pathlib import Path

from mlflow import MlflowClient
from prefect import flow
from prefect.runtime import flow_run

@flow
def tiny():
    return flow_run.get_id()

client = MlflowClient()
run = client.create_run(client.create_experiment("team"))
client.log_metric(run.info.run_id, "gain", 1.5)
Path("note.txt").write_text("kept")
client.log_artifact(run.info.run_id, "note.txt")
client.set_terminated(run.info.run_id)
Path("ids.json").write_text(json.dumps([tiny(), run.info.run_id]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A cluster of its own, on a free port of loopback, with passwords."""

    def __init__(self, binaries, folder):
        self.binaries, self.folder, self.port = binaries, folder, free_port()
        # PostgreSQL refuses to run as root; its package makes a user for it.
        self.user = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self.user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._call(
            "initdb", "--pgdata=data", "--username=postgres", "--no-sync", "--no-instructions",
            "--auth-local=trust", "--auth-host=scram-sha-256", "--locale=C",
        )  # fmt: skip

    def _call(self, name, *arguments):
        done = subprocess.run(
            [self.binaries / name, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self.user,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        self._call("pg_ctl", "--pgdata=data", "--wait", "--log=log", "-o", options, "start")

    def stop(self):
        self._call("pg_ctl", "--pgdata=data", "--wait", "--mode=fast", "stop")

    def ask(self, question, name="postgres"):
        with psycopg.connect(
            host=str(self.folder),
            port=self.port,
            user="postgres",
            dbname=name,
            autocommit=True,
            client_encoding="UTF8",
        ) as connection:
            cursor = connection.execute(question)
            return cursor.fetchall() if cursor.description else []

    def url(self, user):
        return f"postgresql://{user}@127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def postgres():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    if not found:
        assert not os.environ.get("CI"), "apt-get install postgresql"
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # Not in pytest's own folder, which other users cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="replenish-postgres-"))
    try:
        server = Postgres(found[-1], folder)
        server.start()
        try:
            for role in ROLES:
                server.ask(f"CREATE ROLE {role} PASSWORD '{PASSWORD}'")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [
        ("guest", QUOTED, "guest may not make the database prefect; .* createdb --owner=guest"),
        ("team", "wrong", r"cannot be used \(.*password authentication failed"),
    ],
)
def test_who_may_not_is_told_what_to_do(postgres, user, password, message):
    url = postgres.url(f"{user}:{password}")
    with pytest.raises(InputError, match=message) as refused:
        make_databases(read_database(SecretStr(url)))
    assert password not in str(refused.value)


class Servers:
    """`python -m flows.ui --no-worker` in a folder, over its params."""

    def __init__(self, folder, environment):
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.ui", "--no-worker"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []

    def __enter__(self):
        while not self.lines or self.lines[-1] != "Ctrl-C stops all.\n":
            self.lines.append(self.process.stdout.readline())
            assert self.lines[-1], self.lines
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(120) == 0
        self.process.stdout.close()


def ask(address, body=None):
    request = urllib.request.Request(
        address,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def told(process):
    """Everything that other users of the machine see of a process and of those below it."""
    return [word for one in [process, *process.children(recursive=True)] for word in one.cmdline()]


def test_runs_are_found_again_after_a_restart(postgres, tmp_path):
    prefect, mlflow = free_port(), free_port()
    ports = f"prefect_port: {prefect}, mlflow_port: {mlflow}"
    params = tmp_path / "params.yaml"
    api, pages = f"http://127.0.0.1:{prefect}/api", f"http://127.0.0.1:{mlflow}"
    bare = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "PG"))},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    logs = [tmp_path / "runs/ui-prefect.log", tmp_path / "runs/ui-mlflow.log"]

    params.write_text(f"servers: {{{ports}, database: '{postgres.url(f'team:{QUOTED}')}'}}\n")
    with Servers(tmp_path, bare) as first:
        assert f"records  PostgreSQL team@127.0.0.1:{postgres.port}: new\n" in first.lines
        subprocess.run(
            [sys.executable, "-c", RECORD],
            cwd=tmp_path,
            env={**bare, "PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": pages},
            check=True,
            timeout=300,
        )
        words = told(psutil.Process(first.process.pid))
    words += first.lines + [log.read_text() for log in logs]
    assert not [word for word in words if PASSWORD in word or QUOTED in word]
    flow_run, run = json.loads((tmp_path / "ids.json").read_text())

    # The same with the password in the environment alone, and without what lay on this disk.
    params.write_text(f"servers: {{{ports}, database: '{postgres.url('team')}'}}\n")
    shutil.rmtree(tmp_path / "prefect")
    with Servers(tmp_path, {**bare, "PGPASSWORD": PASSWORD}) as second:
        assert f"records  PostgreSQL team@127.0.0.1:{postgres.port}\n" in second.lines
        found = json.loads(ask(f"{api}/flow_runs/{flow_run}"))
        assert found["state"]["type"] == "COMPLETED"
        found = json.loads(ask(f"{pages}/api/2.0/mlflow/runs/get?run_id={run}"))["run"]
        assert found["info"]["status"] == "FINISHED"
        assert [(m["key"], m["value"]) for m in found["data"]["metrics"]] == [("gain", 1.5)]
        assert found["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
        assert ask(f"{pages}/get-artifact?run_uuid={run}&path=note.txt") == b"kept"

    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "prefect/prefect.db").exists()
    question = (
        "SELECT pg_catalog.pg_encoding_to_char(encoding) FROM pg_database WHERE datname = '{}'"
    )
    # They are there, so that nobody need be allowed to make them.
    assert make_databases(read_database(SecretStr(postgres.url(f"guest:{QUOTED}")))) == []
    for name, table in {"prefect": "flow_run", "mlflow": "runs"}.items():
        assert postgres.ask(question.format(name)) == [("UTF8",)]
        assert postgres.ask(f"SELECT count(*) FROM {table}", name) == [(1,)]
