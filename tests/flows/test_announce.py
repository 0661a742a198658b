import json
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from flows import announce as module
from flows import watch as watch_module
from flows.announce import announce, app, version_of
from flows.watch import fingerprint, look, main, watch
from pipeline.errors import InputError
from pipeline.params import PrepareParams
from pipeline.readers.folder import read_folder
from pipeline.readers.limits import ReadLimits
from pipeline.readers.read import digest_source


class Client:
    """Takes events, or does not."""

    api_url = "http://127.0.0.1:1/api/"

    def __init__(self):
        self.events = []
        self.broken = False

    def request(self, method, path, *, json):
        assert (method, path) == ("POST", "/events")
        if self.broken:
            raise InputError("PREFECT_API_URL = x: lost")
        self.events += json
        return self

    def raise_for_status(self):
        pass


@pytest.fixture
def client(monkeypatch):
    client = Client()

    @contextmanager
    def give():
        yield client

    monkeypatch.setattr(module, "server_client", give)
    monkeypatch.setattr(watch_module, "server_client", give)
    return client


@pytest.fixture
def images(tmp_path, monkeypatch, make_image_folder):
    monkeypatch.chdir(tmp_path)
    return make_image_folder(tmp_path / "data" / "raw", {"cat": 3, "dog": 2})


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_event_says_what_the_data_is(images, client):
    result = run("data/raw", "--note", "more dogs")
    digest = digest_source(read_folder(images, ReadLimits()))
    assert result.output == (
        f"data/raw: folder, 5 images in 2 classes, digest {digest[:16]}\n"
        "Announced to http://127.0.0.1:1/api/\n"
    )
    (event,) = client.events
    assert event["event"] == "replenish.dataset.updated"
    assert event["resource"]["prefect.resource.id"].startswith("replenish.dataset.")
    assert event["resource"]["prefect.resource.name"] == "data/raw"
    assert event["payload"] == {
        "path": "data/raw",
        "source": "folder",
        "digest": digest,
        "images": 5,
        "set_aside": 0,
        "classes": 2,
        "counts": {"cat": 3, "dog": 2},
        "note": "more dogs",
    }
    told = json.loads((images.parents[1] / "runs" / "announced.json").read_text())
    assert told["data/raw"]["digest"] == digest


def test_the_same_version_is_announced_once(images, client, make_image_folder):
    run("data/raw")
    assert "Announced before, and the same since" in run(str(images)).output
    assert len(client.events) == 1
    run("data/raw", "--again")
    assert len(client.events) == 2
    make_image_folder(images, {"emu": 1})
    assert "Announced to" in run("data/raw").output
    assert client.events[2]["payload"]["counts"] == {"cat": 3, "dog": 2, "emu": 1}
    resources = {event["resource"]["prefect.resource.id"] for event in client.events}
    assert len(resources) == 1


def test_what_the_server_did_not_take_is_not_remembered(images, client):
    client.broken = True
    with pytest.raises(InputError, match="lost"):
        run("data/raw")
    client.broken = False
    assert "Announced to" in run("data/raw").output


def test_a_path_without_data_is_refused(tmp_path, monkeypatch, client):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"prepare\.path = nowhere"):
        run("nowhere")
    assert client.events == []


def test_many_classes_and_a_long_note_stay_an_event(tmp_path, client):
    counts = {f"class {n}": 1 for n in range(1000)}
    version = module.Version("x", "folder", "d", counts, 0)
    announce(client, version, "n" * 5000, tmp_path / "told.json")
    payload = client.events[0]["payload"]
    assert (len(payload["counts"]), len(payload["note"]), payload["classes"]) == (200, 1000, 1000)


def test_data_is_announced_once_two_looks_see_the_same(images, client, make_image_folder):
    said = []

    def looked():
        return look(images, PrepareParams(), said.append)

    assert looked() == "changing"
    make_image_folder(images, {"emu": 1})
    assert looked() == "changing"
    assert client.events == []
    assert looked() == "announced"
    assert looked() == "known"
    (event,) = client.events
    assert event["payload"]["counts"] == {"cat": 3, "dog": 2, "emu": 1}
    # Touched, but the same: read again, and not announced again.
    (images / "cat" / "000.png").touch()
    assert [looked(), looked(), looked()] == ["changing", "known", "known"]
    assert len(client.events) == 1
    assert said[-1].endswith("the one that was announced before")


def test_files_that_change_while_they_are_read_wait_for_the_next_look(images, client, monkeypatch):
    def read_and_write(path, prepare):
        version = version_of(path, prepare)
        (images / "cat" / "late.png").write_bytes((images / "cat" / "000.png").read_bytes())
        return version

    look(images, PrepareParams(), print)
    with monkeypatch.context() as patch:
        patch.setattr(watch_module, "version_of", read_and_write)
        assert look(images, PrepareParams(), print) == "changing"
    assert client.events == []
    looks = [look(images, PrepareParams(), print) for _ in range(2)]
    assert looks == ["changing", "announced"]


def test_a_fingerprint_sees_names_sizes_and_times(images):
    seen = {fingerprint(images)}
    (images / "cat" / "new.png").write_bytes(b"1")
    seen.add(fingerprint(images))
    (images / "cat" / "new.png").write_bytes(b"22")
    seen.add(fingerprint(images))
    (images / "empty").mkdir()
    seen.add(fingerprint(images))
    (images / "link").symlink_to(images)  # a ring: not followed
    seen.add(fingerprint(images))
    assert len(seen) == 5
    assert fingerprint(images) in seen


class Enough(Exception):
    pass


def test_watching_goes_on_after_an_error_and_tells_it_once(images, client):
    said, naps = [], []

    def sleep(seconds):
        naps.append(seconds)
        client.broken = len(naps) < 4
        if len(naps) == 6:
            raise Enough

    client.broken = True
    with pytest.raises(Enough):
        watch(images, 5.0, False, PrepareParams(), said.append, sleep)
    assert naps == [5.0] * 6
    assert [line for line in said if line.startswith("not announced")] == [
        "not announced, tried again in 5 s: PREFECT_API_URL = x: lost"
    ]
    assert said[-1].endswith(", announced")
    assert len(client.events) == 1


def test_one_look_is_one_look_and_its_error_the_commands(images, client, capsys):
    for expected in ("changing", "announced"):
        with pytest.raises(SystemExit) as ended:
            main(["data/raw", "--once"])
        assert ended.value.code == 0, expected
    assert len(client.events) == 1
    with pytest.raises(SystemExit) as ended:
        main(["nowhere", "--once"])
    assert ended.value.code == 2
    assert "error: nowhere: no such file or folder" in capsys.readouterr().err
