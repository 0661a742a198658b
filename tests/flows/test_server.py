import http.server
import socket
import threading

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from flows import bootstrap
from flows.server import need_server, need_workers, server_client
from pipeline.errors import InputError


class Page(http.server.BaseHTTPRequestHandler):
    status, body = 200, b"<html>a page</html>"

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def page():
    """The address of a server that is no Prefect API."""
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def refused(url):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(InputError) as told:
        need_server(answer_seconds=1.0)
    return str(told.value)


def test_an_address_where_nobody_listens_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
    message = refused(url)
    assert message.startswith(f"PREFECT_API_URL = {url}: no answer (")
    assert "export PREFECT_API_URL=" in message


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/api"
        assert f"PREFECT_API_URL = {url}: no answer (" in refused(url)


@pytest.mark.parametrize("url", ["no-address", "ftp://example.org/api"])
def test_what_is_no_address_is_refused(url):
    assert f"PREFECT_API_URL = {url}: no answer (" in refused(url)


def test_a_page_in_place_of_the_api_is_told_with_a_guess(page):
    message = refused(page)
    assert "is no Prefect API (HTTP status 200)" in message
    assert f"an API's address ends in /api: {page}/api?" in message


def test_without_an_address_the_way_to_one_is_told():
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match="PREFECT_API_URL is not set, and this needs a server that"),
    ):
        need_server()


def test_the_command_says_so_too(page):
    with temporary_settings({PREFECT_API_URL: page}):
        result = CliRunner().invoke(bootstrap.app, [])
    assert isinstance(result.exception, InputError)


def test_a_pool_is_looked_at_before_anybody_waits_for_it(server):
    with server_client() as client:
        with pytest.raises(InputError, match=r"work pool none-such: there is none .*known: "):
            need_workers(client, "none-such")
        client.create_work_pool(WorkPoolCreate(name="looked-at", type="process"))
        with pytest.raises(InputError, match=r"no worker is online \(0 known\); start one"):
            need_workers(client, "looked-at")
        client.send_worker_heartbeat("looked-at", "a")
        client.send_worker_heartbeat("looked-at", "b")
        assert need_workers(client, "looked-at") == 2
        client.update_work_pool("looked-at", WorkPoolUpdate(is_paused=True))
        with pytest.raises(InputError, match="work pool looked-at: paused"):
            need_workers(client, "looked-at")


def test_a_pool_with_one_place_gives_out_one_run_and_a_crash_frees_it(server):
    """What keeps a schedule that overlaps itself apart, and why dead runs must be cleared."""
    from datetime import UTC, datetime, timedelta

    from prefect.states import Crashed, Pending, Running

    with get_client(sync_client=True) as client:
        client.create_work_pool(
            WorkPoolCreate(name="one-place", type="process", concurrency_limit=1)
        )
        flow_id = client.create_flow_from_name("augment")
        deployment = client.create_deployment(flow_id, "overlap", work_pool_name="one-place")
        first, second = (client.create_flow_run_from_deployment(deployment).id for _ in range(2))

        def given():
            soon = datetime.now(UTC) + timedelta(minutes=1)
            found = client.get_scheduled_flow_runs_for_work_pool("one-place", scheduled_before=soon)
            return [one.flow_run.id for one in found]

        assert given() == [first]
        for state in (Pending(), Running()):
            client.set_flow_run_state(first, state)
            assert given() == []
        client.set_flow_run_state(first, Crashed())
        assert given() == [second]


def test_a_run_that_was_called_dead_and_lives_ends_as_it_ends(server):
    from prefect.states import Completed, Crashed, Running

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("augment")
        run = client.create_flow_run_from_deployment(client.create_deployment(flow_id, "late")).id
        for state in (Running(), Crashed(), Completed()):
            client.set_flow_run_state(run, state)
        assert client.read_flow_run(run).state.is_completed()
