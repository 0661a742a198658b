"""Shards at a URL: whole or absent, and the same files as in a local folder."""

from pathlib import Path

import numpy as np
import pytest
from stored_stages import Killed, dying

from pipeline.errors import InputError
from pipeline.storage import transfers
from pipeline.storage.locations import Location, open_location
from pipeline.storage.shards import StoredShards
from pipeline.synthesis.shards import Shard, read_shard, write_shard
from pipeline.synthesis.spaces import FolderSpace

SHARD = Shard(label=0, number=0, size=2)
NAME = "class-0000-shard-000000"
IMAGES = np.arange(2 * 3 * 3 * 1, dtype=np.uint8).reshape(2, 3, 3, 1)


def test_what_is_written_is_read(location: Location) -> None:
    shards = StoredShards(location)
    assert shards.read(NAME) is None
    assert shards.names() == set()
    shards.write(NAME, IMAGES)
    np.testing.assert_array_equal(shards.read(NAME), IMAGES)
    assert shards.names() == {NAME} == {SHARD.name}
    assert set(transfers.listing(location)) == {f"{NAME}.safetensors", f"{NAME}.sha256"}


def test_a_second_writer_changes_nothing(location: Location) -> None:
    StoredShards(location).write(NAME, IMAGES)
    before = transfers.read(location, location.path(f"{NAME}.safetensors"), 1 << 20)
    StoredShards(location).write(NAME, IMAGES)
    assert transfers.read(location, location.path(f"{NAME}.safetensors"), 1 << 20) == before


def test_files_are_those_of_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    write_shard(tmp_path / "local", SHARD, IMAGES)
    StoredShards(open_location(f"file://{tmp_path}/stored")).write(NAME, IMAGES)
    for kind in ("safetensors", "sha256"):
        names = [tmp_path / folder / f"{NAME}.{kind}" for folder in ("local", "stored")]
        assert len({path.read_bytes() for path in names}) == 1
    np.testing.assert_array_equal(read_shard(tmp_path / "stored", SHARD), IMAGES)
    np.testing.assert_array_equal(read_shard(tmp_path / "local", SHARD), IMAGES)
    assert FolderSpace(tmp_path / "local").finished() == {NAME}
    assert FolderSpace(tmp_path / "none").finished() == set()
    assert read_shard(tmp_path / "local", Shard(label=1, number=0, size=2)) is None


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_worker_that_dies_leaves_no_shard_or_a_whole_one(location: Location, after: bool) -> None:
    counted = dying(location, at=-1)
    StoredShards(counted).write(NAME, IMAGES)
    writes = counted.fs.writes
    assert writes == (2 if location.whole else 4)
    for at in range(1, writes + 1):
        transfers.remove(location, [location.path(f) for f in transfers.listing(location)])
        with pytest.raises(Killed):
            StoredShards(dying(location, at, after)).write(NAME, IMAGES)
        found = StoredShards(location).read(NAME)
        whole = after and at == writes
        assert (found is not None) == whole
        assert StoredShards(location).names() == ({NAME} if whole else set())
        StoredShards(location).write(NAME, IMAGES)
        np.testing.assert_array_equal(StoredShards(location).read(NAME), IMAGES)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        (f"{NAME}.safetensors", b"other bytes"),
        (f"{NAME}.sha256", b"0" * 64),
        (f"{NAME}.sha256", b"\xff"),
        (f"{NAME}.sha256", b""),
    ],
)
def test_a_damaged_shard_is_none(location: Location, file: str, data: bytes) -> None:
    StoredShards(location).write(NAME, IMAGES)
    transfers.write(location, location.path(file), data)
    assert StoredShards(location).read(NAME) is None


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a.b", "é"])
def test_other_names_are_refused(location: Location, name: str) -> None:
    shards = StoredShards(location)
    with pytest.raises(InputError, match="not the name of a shard"):
        shards.write(name, IMAGES)
    with pytest.raises(InputError, match="not the name of a shard"):
        shards.read(name)
