import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows import ui
from flows.ui import Server, check_ports, main, serve, servers
from pipeline.errors import InputError, StageError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def small(name, port, code=None):
    """A server that answers at once, or `code` in its place."""
    web = (
        "import http.server as h, sys\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
    )
    command = (sys.executable, "-c", code or web, str(port))
    return Server(name, port, f"--{name.lower()}-port", command, "/", {})


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("option", ["--prefect-port", "--mlflow-port"])
def test_a_taken_port_is_named_with_its_option_and_nothing_is_started(
    taken, option, capsys, monkeypatch
):
    monkeypatch.setattr(ui, "_children", None)
    other = {"--prefect-port": "--mlflow-port", "--mlflow-port": "--prefect-port"}[option]
    with pytest.raises(SystemExit) as ended:
        main([option, str(taken), other, str(free_port())])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"error: port {taken} on 127.0.0.1 cannot be used" in error
    assert f"{option} {taken + 1}" in error


def test_one_port_for_both_is_refused():
    port = free_port()
    with pytest.raises(InputError, match=f"port {port} is given twice; give --a-port and --b-port"):
        check_ports((small("A", port), small("B", port)))


def test_both_servers_listen_on_loopback_only(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for server in servers(tmp_path, 1, 2):
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in server.command


def test_the_page_of_a_remote_store_shows_the_local_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in servers(tmp_path, 1, 2)[1].command


def test_a_server_that_dies_is_named_and_the_other_is_stopped(tmp_path):
    living, port = small("A", free_port()), free_port()
    dying = small("B", port, "import time; time.sleep(0.5); print('why'); raise SystemExit(3)")
    with pytest.raises(StageError, match=r"the B server ended by itself \(exit status 3\)"):
        serve((living, dying), tmp_path)
    assert (tmp_path / "ui-b.log").read_text() == "why\n"
    check_ports((living, dying))  # both are gone


def test_a_server_that_does_not_answer_in_time_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ui, "START_SECONDS", 1.0)
    mute = small("B", free_port(), "import time; time.sleep(60)")
    with pytest.raises(StageError, match="the B server did not answer within 1 s"):
        serve((small("A", free_port()), mute), tmp_path)


def test_a_stubborn_server_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(ui, "START_SECONDS", 1.0)
    monkeypatch.setattr(ui, "STOP_SECONDS", 0.5)
    deaf = (
        "import signal, time\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    with pytest.raises(StageError, match="did not answer"):
        serve((small("A", free_port(), deaf),), tmp_path)
    assert time.monotonic() - began < 20


def test_a_polite_kill_stops_both(tmp_path, monkeypatch):
    wanted = small("A", free_port()), small("B", free_port())
    monkeypatch.setattr(ui.typer, "echo", lambda text, **_: _kill_when_up(text))
    with pytest.raises(KeyboardInterrupt):
        serve(wanted, tmp_path)
    monkeypatch.undo()
    check_ports(wanted)


def _kill_when_up(text):
    if "Ctrl-C stops both" in text:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.e2e
@pytest.mark.slow
def test_both_pages_come_up_and_go_down(tmp_path):
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "flows.ui"]
    for option, port in zip(("--prefect-port", "--mlflow-port"), ports, strict=True):
        command += [option, str(port)]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            assert lines[0] == f"Prefect: http://127.0.0.1:{ports[0]}\n"
            assert lines[1] == f"MLflow:  http://127.0.0.1:{ports[1]}\n"
            for port in ports:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
                    assert b"<html" in page.read().lower()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert (tmp_path / "mlflow.db").is_file()
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
