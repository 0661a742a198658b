"""The S3 protocol, against moto's server on loopback."""

import json
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from stored_stages import NEW, OLD, Killed, contents, dying, write_stage

from pipeline.errors import InputError, StageError
from pipeline.storage import transfers
from pipeline.storage.locations import Location, open_location
from pipeline.storage.locks import Holder, hold
from pipeline.storage.mirror import fetch_stage, send_stage
from pipeline.storage.shards import StoredShards

IMAGES = np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Location:
    """A new bucket, with credentials in the environment alone."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"bucket-{uuid.uuid4().hex}"
    location = open_location(f"s3://{bucket}/run1")
    location.fs.mkdir(bucket)
    return location


def test_a_folder_goes_and_comes_back(s3: Location, tmp_path: Path) -> None:
    old = write_stage(tmp_path / "old" / "train", OLD)
    new = write_stage(tmp_path / "new" / "train", NEW)
    there = tmp_path / "there" / "train"
    assert fetch_stage(s3, "train", there) is None
    send_stage(old, s3, "train")
    fetch_stage(s3, "train", there)
    assert contents(there) == contents(old)
    record = send_stage(new, s3, "train")
    fetch_stage(open_location(s3.url), "train", there)
    assert contents(there) == contents(new)
    assert set(transfers.listing(s3, "train", "objects")) == set(record.manifest.files.values())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_sender_that_dies_leaves_the_old_folder_or_the_new_one(
    s3: Location, tmp_path: Path, at: int, after: bool
) -> None:
    old = write_stage(tmp_path / "old" / "train", OLD)
    new = write_stage(tmp_path / "new" / "train", NEW)
    there = tmp_path / "there" / "train"
    send_stage(old, s3, "train")
    with pytest.raises(Killed):
        send_stage(new, dying(s3, at, after), "train")
    fetch_stage(s3, "train", there)
    written = at > 3 or (at == 3 and after)  # two objects, then the record
    assert contents(there) == contents(new if written else old)
    send_stage(new, s3, "train")
    fetch_stage(s3, "train", there)
    assert contents(there) == contents(new)


def test_a_changed_object_is_found(s3: Location, tmp_path: Path) -> None:
    record = send_stage(write_stage(tmp_path / "here" / "train", OLD), s3, "train")
    digest = record.manifest.files["a.bin"]
    transfers.write(s3, s3.path("train", "objects", digest), b"ALPHA")
    with pytest.raises(StageError, match=r"s3://.*/run1/train: damaged: changed: a.bin, same.bin"):
        fetch_stage(s3, "train", tmp_path / "there" / "train")


def test_the_lock_is_one_runs_by_conditional_writes(s3: Location) -> None:
    path = s3.path("run.lock")
    with hold(s3) as lock:
        lock.check()
        with pytest.raises(InputError, match="another run is at work there"), hold(s3):
            pass
    assert transfers.read(s3, path, 1 << 16) is None
    assert transfers.create(s3, path, b"1")
    assert not transfers.create(s3, path, b"2")
    first = transfers.tag_of(s3, path)
    assert transfers.replace(s3, path, b"3", first)
    assert not transfers.replace(s3, path, b"4", first)  # another came before
    assert transfers.read(s3, path, 10) == b"3"


def test_an_expired_lock_is_taken_by_one_of_two(
    s3: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired = Holder("other", "elsewhere", 1, 0.0, 0.0, 1.0)
    transfers.write(s3, s3.path("run.lock"), json.dumps(asdict(expired)).encode())
    real = transfers.replace

    def late(location: Location, path: str, data: bytes, tag: str | None) -> bool:
        transfers.write(location, path, data.replace(b"{", b"{ "))  # another run was quicker
        return real(location, path, data, tag)

    monkeypatch.setattr(transfers, "replace", late)
    with pytest.raises(InputError, match="another run began there at this very moment"), hold(s3):
        pass
    monkeypatch.undo()


def test_shards(s3: Location) -> None:
    shards = StoredShards(open_location(f"{s3.url}/shards"))
    assert shards.names() == set()
    shards.write("class-0000-shard-000000", IMAGES)
    assert shards.names() == {"class-0000-shard-000000"}
    np.testing.assert_array_equal(shards.read("class-0000-shard-000000"), IMAGES)
    assert shards.read("class-0000-shard-000001") is None


def test_a_bucket_that_does_not_exist_is_said(s3: Location, tmp_path: Path) -> None:
    nowhere = open_location("s3://no-such-bucket/run1")
    with pytest.raises(InputError, match="s3://no-such-bucket/run1: no such bucket or folder"):
        send_stage(write_stage(tmp_path / "train", OLD), nowhere, "train")
    with pytest.raises(InputError, match="no such bucket or folder"), hold(nowhere):
        pass


def test_a_store_that_does_not_answer_is_said(
    s3: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv(
            "AWS_ENDPOINT_URL", f"http://me:hunter2@127.0.0.1:{taken.getsockname()[1]}"
        )
        with pytest.raises(StageError, match="the store fails .*check network and end") as caught:
            transfers.listing(open_location("s3://bucket/run1"))
    assert "hunter2" not in str(caught.value)


def test_a_store_without_credentials_is_said(s3: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(InputError, match="may not be read or written .*AWS_ACCESS_KEY_ID"):
        transfers.listing(open_location("s3://bucket/run1"))
