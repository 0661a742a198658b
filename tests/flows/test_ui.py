import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pydantic import SecretStr

from flows import ui
from flows.groups import Program
from flows.pages import bootstrap, check_ports, mlflow_page, prefect_page, worker
from flows.team_database import make_databases, read_database
from flows.ui import main, serve
from pipeline.errors import InputError

ROOT = Path(__file__).parents[2]
TEAM = read_database(SecretStr("postgresql://ann%40x:hu%2Fsh@db.example.org/"))
WEB = (
    "import http.server as h, sys\n"
    "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def small(name, port):
    """A page that answers at once."""

    def up():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    command = (sys.executable, "-c", WEB, str(port))
    address = f"http://127.0.0.1:{port}"
    return Program(name, address, command, up, port=port, option=f"--{name.lower()}-port")


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("option", ["--prefect-port", "--mlflow-port"])
def test_a_taken_port_is_named_with_its_option_and_nothing_is_started(
    taken, option, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ui, "serve", None)
    other = {"--prefect-port": "--mlflow-port", "--mlflow-port": "--prefect-port"}[option]
    with pytest.raises(SystemExit) as ended:
        main(["--no-worker", option, str(taken), other, str(free_port())])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: port {taken} on 127.0.0.1 cannot be used" in error
    key = option[2:].replace("-", "_")
    assert f"{option} {taken + 1}, or for good servers.{key} in params.yaml" in error


def test_one_port_for_both_is_refused():
    port = free_port()
    with pytest.raises(InputError, match=f"port {port} is given twice; give --a-port and --b-port"):
        check_ports((small("A", port), small("B", port)))


def served(arguments, tmp_path, monkeypatch):
    """What the command would have started."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ui, "check_ports", lambda _: None)
    monkeypatch.setattr(ui, "make_databases", lambda _: ["prefect"])
    monkeypatch.setattr(ui, "serve", lambda *given: calls.append(given))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code, len(calls)) == (0, 1)
    return calls[0]


def test_ports_come_from_the_params_and_options_go_before(tmp_path, monkeypatch):
    (tmp_path / "prefect.yaml").touch()
    pages, database, works, logs = served([], tmp_path, monkeypatch)
    assert ([page.port for page in pages], database, works) == ([4200, 5000], None, True)
    assert logs == Path("runs")
    (tmp_path / "params.yaml").write_text("servers: {prefect_port: 4211, mlflow_port: 5011}\n")
    pages, *_ = served(["--mlflow-port", "5012", "--no-worker"], tmp_path, monkeypatch)
    assert [page.port for page in pages] == [4211, 5012]
    (tmp_path / "other.yaml").write_text("servers: {database: 'postgresql://ann@db/'}\n")
    pages, database, *_ = served(["--params", "other.yaml"], tmp_path, monkeypatch)
    assert [page.port for page in pages] == [4200, 5000]
    assert (database.place, database.password) == ("ann@db:5432", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no prefect.yaml to deploy; run this in the project folder, or give --no-worker"),
        (["--no-worker", "--params", "no.yaml"], "no.yaml: no such params file"),
    ],
)
def test_a_folder_without_the_project_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_both_pages_listen_on_loopback_only(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pages = prefect_page(1, None), mlflow_page(tmp_path, 2, None)
    for page in pages:
        assert page.command[page.command.index("--host") + 1] == "127.0.0.1"
    assert pages[1].environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in pages[0].environment


def test_the_page_of_a_remote_store_shows_the_local_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    environment = mlflow_page(tmp_path, 2, None).environment
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_a_team_s_password_is_in_no_address_and_no_argument(tmp_path):
    prefect, mlflow = prefect_page(1, TEAM), mlflow_page(tmp_path, 2, TEAM)
    place = "ann%40x@db.example.org:5432"
    assert (
        prefect.environment["PREFECT_API_DATABASE_CONNECTION_URL"]
        == f"postgresql+asyncpg://{place}/prefect"
    )
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg://{place}/mlflow"
    for page in (prefect, mlflow):
        assert page.environment["PGPASSWORD"] == "hu/sh"
        told = json.dumps([page.command, {**page.environment, "PGPASSWORD": ""}])
        assert not [word for word in ("hu/sh", "hu%2Fsh") if word in told]
    assert "hu/sh" not in repr(TEAM)


def test_the_worker_asks_this_server_and_has_no_password(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.delenv("PREFECT_WORKER_QUERY_SECONDS", raising=False)
    prefect, mlflow = prefect_page(1, TEAM), mlflow_page(tmp_path, 2, TEAM)
    alone, team = worker(prefect, mlflow, None), worker(prefect, mlflow, TEAM)
    address = {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    assert alone.environment == address
    assert team.environment == {
        **address,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:2",
        "PGPASSWORD": None,
    }
    assert alone.command[-6:] == ("--pool", "replenish", "--type", "process", "--limit", "1")
    assert alone.mark != team.mark
    assert bootstrap(prefect).environment["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_a_database_that_is_not_there_is_told_without_the_password():
    port = free_port()
    database = read_database(SecretStr(f"postgresql://ann:hush@127.0.0.1:{port}/"))
    with pytest.raises(
        InputError, match=rf"ann@127\.0\.0\.1:{port} cannot be used .*PGPASSWORD or ~/.pgpass"
    ) as refused:
        make_databases(database)
    assert "hush" not in str(refused.value)


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'replenish\[team\]'"):
        make_databases(TEAM)


def test_an_ipv6_host_keeps_its_brackets():
    database = read_database(SecretStr("postgres://ann@[::1]:5433"))
    assert database.url("asyncpg", "prefect") == "postgresql+asyncpg://ann@[::1]:5433/prefect"


def test_the_pages_alone_come_up_and_a_polite_kill_stops_both(tmp_path, monkeypatch):
    wanted = small("A", free_port()), small("B", free_port())
    api = f"PREFECT_API_URL={wanted[0].where}/api"
    said = []

    def note(text, **_):
        said.append(text)
        if "Ctrl-C stops all" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ui.typer, "echo", note)
    with pytest.raises(KeyboardInterrupt):
        serve(wanted, None, False, tmp_path)
    check_ports(wanted)
    assert said[1].startswith(f"A        http://127.0.0.1:{wanted[0].port}  pid ")
    assert said[2].endswith(f"  log {tmp_path / 'ui-b.log'}")
    assert said[3].startswith(f"To send runs here from another terminal: export {api}\n")


WAITS = """
import time
from pathlib import Path

from prefect import flow

@flow
def waits():
    Path("begun").touch()
    try:
        time.sleep(120)
    except BaseException as error:
        Path("ended").write_text(type(error).__name__)
        raise
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_one_command_serves_deploys_works_and_stops_in_order(tmp_path):
    ports = free_port(), free_port()
    shutil.copytree(ROOT / "flows", tmp_path / "flows")
    deployments = (ROOT / "prefect.yaml").read_text()
    deployments += "  - {name: here, entrypoint: 'waits.py:waits', work_pool: {name: replenish}}\n"
    (tmp_path / "prefect.yaml").write_text(deployments)
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "params.yaml").write_text(
        f"servers: {{prefect_port: {ports[0]}, mlflow_port: {ports[1]}}}\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    api = f"http://127.0.0.1:{ports[0]}/api"

    def ask(path, body=None):
        request = urllib.request.Request(
            api + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(60):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # SQLite was busy, and nothing was done; Prefect's own clients ask again too.
                if error.code != 503:
                    raise
                time.sleep(0.5)
        raise AssertionError(f"busy for long: {path}")

    with subprocess.Popen(
        [sys.executable, "-m", "flows.ui"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in range(6)]
            assert lines[0].startswith(f"Prefect  http://127.0.0.1:{ports[0]}  pid ")
            assert lines[1].startswith(f"MLflow   http://127.0.0.1:{ports[1]}  pid ")
            assert lines[2] == "deployed prefect.yaml  log runs/ui-bootstrap.log\n"
            assert lines[3].startswith("worker   work pool replenish, one run at a time  pid ")
            assert lines[5] == "Ctrl-C stops all.\n"
            for port in ports:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
                    assert b"<html" in page.read().lower()
            wanted = ask("/deployments/name/waits/here")
            run = ask(f"/deployments/{wanted['id']}/create_flow_run", {})["id"]
            while not (tmp_path / "begun").exists():
                assert process.poll() is None
                time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    assert (tmp_path / "ended").read_text() == "TerminationSignal"
    # The run itself told the server, which was still there.
    database = sqlite3.connect(tmp_path / "prefect/prefect.db")
    found = database.execute("SELECT state_name FROM flow_run WHERE id = ?", (run,)).fetchall()
    database.close()
    assert found == [("Crashed",)]
    assert (tmp_path / "mlflow.db").is_file()
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
