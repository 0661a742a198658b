"""Stage folders in a store: whole or absent, whatever happens while they are sent or fetched."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from stored_stages import NEW, OLD, Killed, contents, dying, write_stage

from pipeline.errors import InputError, StageError
from pipeline.folders import MANIFEST, Manifest, read_manifest
from pipeline.hashing import digest_json
from pipeline.storage import mirror, transfers
from pipeline.storage.locations import Location, open_location
from pipeline.storage.mirror import fetch_stage, outline_stage, read_record, send_stage


def objects(location: Location) -> set[str]:
    return set(transfers.listing(location, "train", "objects"))


def test_a_folder_comes_back_to_the_byte(location: Location, tmp_path: Path) -> None:
    sent = write_stage(tmp_path / "here" / "train", OLD)
    send_stage(sent, location, "train")
    assert fetch_stage(location, "train", tmp_path / "there" / "train") is not None
    assert contents(tmp_path / "there" / "train") == contents(sent)
    assert len(objects(location)) == 2  # two files have the same bytes
    assert sorted(path.name for path in (tmp_path / "there" / ".work").iterdir()) == []


def test_what_the_store_lacks_is_none_and_leaves_the_folder(
    location: Location, tmp_path: Path
) -> None:
    folder = write_stage(tmp_path / "train", OLD)
    before = contents(folder)
    assert fetch_stage(location, "train", folder) is None
    assert read_record(location, "train") is None
    assert contents(folder) == before


def test_only_what_differs_travels(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_stage(tmp_path / "old" / "train", OLD)
    new = write_stage(tmp_path / "new" / "train", NEW)
    there = tmp_path / "there" / "train"
    sent: list[str] = []
    fetched: list[str] = []
    put, get = transfers.send_files, transfers.fetch_files

    def send_files(location: Location, pairs: Any) -> None:
        sent.extend(path.name for path, _ in pairs)
        put(location, pairs)

    def fetch_files(location: Location, pairs: Any, sizes: Any) -> None:
        fetched.extend(path.rpartition("/")[2] for path, _ in pairs)
        get(location, pairs, sizes)

    monkeypatch.setattr(transfers, "send_files", send_files)
    monkeypatch.setattr(transfers, "fetch_files", fetch_files)
    send_stage(old, location, "train")
    fetch_stage(location, "train", there)
    assert (sorted(sent), len(fetched)) == (["b.bin", "same.bin"], 2)
    sent.clear()
    fetched.clear()
    send_stage(new, location, "train")
    fetch_stage(location, "train", there)
    files = read_manifest(new).files  # type: ignore[union-attr]
    assert sorted(sent) == ["b.bin", "c.bin"]
    assert set(fetched) == {files["deep/b.bin"], files["c.bin"]}
    assert contents(there) == contents(new)
    assert objects(location) == set(files.values())  # the old ones were removed
    sent.clear()
    fetched.clear()
    send_stage(new, location, "train")
    fetch_stage(location, "train", there)
    assert (sent, fetched) == ([], [])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_sender_that_dies_at_any_write_leaves_the_old_folder_or_the_new_one(
    location: Location, tmp_path: Path, after: bool
) -> None:
    old = write_stage(tmp_path / "old" / "train", OLD)
    new = write_stage(tmp_path / "new" / "train", NEW)
    send_stage(old, location, "train")
    counted = dying(location, at=-1)
    send_stage(new, counted, "train")
    # Two objects, the record, one old object; where there are names to mend, a rename each.
    writes = counted.fs.writes
    assert writes == (4 if location.whole else 7)
    seen = []
    for at in range(1, writes + 1):
        send_stage(old, location, "train")
        with pytest.raises(Killed):
            send_stage(new, dying(location, at, after), "train")
        reader = tmp_path / f"reader-{at}" / "train"
        fetch_stage(location, "train", reader)
        seen.append("old" if contents(reader) == contents(old) else "new")
        assert contents(reader) == contents(old if seen[-1] == "old" else new)
        send_stage(new, location, "train")
        fetch_stage(location, "train", reader)
        assert contents(reader) == contents(new)
        assert objects(location) == set(read_manifest(new).files.values())  # type: ignore[union-attr]
        assert set(transfers.listing(location, "train")) == {"stored.json"}
    assert seen == sorted(seen, reverse=True)  # old until the record is written, new from then on
    assert set(seen) == {"old", "new"}


def test_a_first_sending_that_dies_leaves_nothing_to_read(
    location: Location, tmp_path: Path
) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    with pytest.raises(Killed):
        send_stage(folder, dying(location, at=2), "train")
    assert fetch_stage(location, "train", tmp_path / "there" / "train") is None
    send_stage(folder, location, "train")
    fetch_stage(location, "train", tmp_path / "there" / "train")
    assert contents(tmp_path / "there" / "train") == contents(folder)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_fetch_that_dies_leaves_the_old_folder_and_goes_on(
    location: Location, tmp_path: Path, at: int, after: bool
) -> None:
    new = write_stage(tmp_path / "new" / "train", NEW)
    there = write_stage(tmp_path / "there" / "train", OLD)
    before = contents(there)
    send_stage(new, location, "train")
    with pytest.raises(Killed):
        fetch_stage(dying(location, at, after), "train", there)
    assert contents(there) == before
    fetch_stage(location, "train", there)
    assert contents(there) == contents(new)


def test_what_a_crash_left_of_a_fetch_is_not_believed(location: Location, tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    send_stage(folder, location, "train")
    digest = read_manifest(folder).files["a.bin"]  # type: ignore[union-attr]
    left = tmp_path / "there" / ".work" / "train.fetch" / "objects" / digest
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    fetch_stage(location, "train", tmp_path / "there" / "train")
    assert contents(tmp_path / "there" / "train") == contents(folder)


def test_a_changed_object_is_found_and_named(location: Location, tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    record = send_stage(folder, location, "train")
    digest = record.manifest.files["deep/b.bin"]
    transfers.write(location, location.path("train", "objects", digest), b"beta" * 39 + b"BETA")
    with pytest.raises(StageError, match=r"/train: damaged: changed: deep/b.bin; delete .*/train"):
        fetch_stage(location, "train", tmp_path / "there" / "train")
    assert not (tmp_path / "there" / "train").exists()


def test_a_missing_object_is_found(location: Location, tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    record = send_stage(folder, location, "train")
    digest = record.manifest.files["a.bin"]
    transfers.remove(location, [location.path("train", "objects", digest)])
    with pytest.raises(StageError, match="damaged: objects are missing"):
        fetch_stage(location, "train", tmp_path / "there" / "train")
    send_stage(folder, location, "train")  # who has the folder mends it
    fetch_stage(location, "train", tmp_path / "there" / "train")
    assert contents(tmp_path / "there" / "train") == contents(folder)


def test_a_half_written_object_is_sent_again(location: Location, tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    digest = read_manifest(folder).files["a.bin"]  # type: ignore[union-attr]
    transfers.write(location, location.path("train", "objects", digest), b"al")
    send_stage(folder, location, "train")
    fetch_stage(location, "train", tmp_path / "there" / "train")
    assert contents(tmp_path / "there" / "train") == contents(folder)


def test_a_reader_overtaken_by_a_sender_gets_the_new_folder(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_stage(tmp_path / "old" / "train", OLD)
    new = write_stage(tmp_path / "new" / "train", NEW)
    send_stage(old, location, "train")
    real = mirror.read_record
    calls = []

    def overtaken(location: Location, name: str) -> Any:
        record = real(location, name)
        calls.append(name)
        if len(calls) == 1:
            send_stage(new, location, name)
        return record

    monkeypatch.setattr(mirror, "read_record", overtaken)
    fetch_stage(location, "train", tmp_path / "there" / "train")
    assert contents(tmp_path / "there" / "train") == contents(new)


def test_a_file_deleted_from_the_mirror_is_fetched_again(
    location: Location, tmp_path: Path
) -> None:
    folder = write_stage(tmp_path / "here" / "train", OLD)
    before = contents(folder)
    send_stage(folder, location, "train")
    (folder / "deep" / "b.bin").unlink()
    fetch_stage(location, "train", folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"../outside": "0" * 64}, "not a path inside"),
        ({"/etc/passwd": "0" * 64}, "not a path inside"),
        ({"a\\b": "0" * 64}, "not a path inside"),
        ({"a.bin": "../../../etc/passwd"}, "'a.bin' does not belong"),
        ({"a.bin": "0" * 63}, "'a.bin' does not belong"),
        ({"a.bin": 7}, "expected string"),
        ({"manifest.json": "0" * 64}, "'manifest.json' does not belong"),
        ({"a": "0" * 64, "a/b": "0" * 64, "a-b": "0" * 64}, "'a/b' does not belong"),
        ({"a/b": "0" * 64, "a//b": "1" * 64}, "'a//b' does not belong"),
        (["a.bin"], "no attribute"),
    ],
)
def test_a_hostile_manifest_is_refused_before_anything_is_fetched(
    location: Location, tmp_path: Path, files: Any, what: str
) -> None:
    hostile = Manifest("train", "key", {}, {}, files, digest_json(files))
    transfers.write(
        location, location.path("train", "stored.json"), json.dumps(asdict(hostile)).encode()
    )
    with pytest.raises(StageError, match=f"stored.json: damaged .*{what}"):
        fetch_stage(location, "train", tmp_path / "there" / "train")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"[" * 5000, b"[]", b'{"stage": "train"}', b"null"],
    ids=["empty", "bytes", "deep", "list", "short", "null"],
)
def test_a_damaged_record_is_refused(location: Location, tmp_path: Path, data: bytes) -> None:
    transfers.write(location, location.path("train", "stored.json"), data)
    with pytest.raises(StageError, match=r"stored.json: damaged .*; delete .*/train and run again"):
        fetch_stage(location, "train", tmp_path / "train")


def test_a_record_of_another_stage_or_digest_is_refused(location: Location) -> None:
    good = Manifest("train", "key", {}, {}, {}, digest_json({}))
    for bad in (
        replace(good, stage="prepare"),
        replace(good, digest="0" * 64),
        replace(good, inputs=[]),  # type: ignore[arg-type]
    ):
        transfers.write(
            location, location.path("train", "stored.json"), json.dumps(asdict(bad)).encode()
        )
        with pytest.raises(StageError, match="damaged"):
            read_record(location, "train")


def test_a_file_that_changed_since_it_was_finished_is_not_sent(
    location: Location, tmp_path: Path
) -> None:
    folder = write_stage(tmp_path / "train", OLD)
    (folder / "deep" / "b.bin").write_bytes(b"BETA" * 40)
    with pytest.raises(StageError, match=r"b.bin: not what .*manifest.json says"):
        send_stage(folder, location, "train")
    (folder / "deep" / "b.bin").unlink()
    with pytest.raises(StageError, match=r"b.bin: missing"):
        send_stage(folder, location, "train")
    assert transfers.listing(location, "train") == {}


def test_an_unfinished_folder_is_not_sent(location: Location, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no finished folder of `train`; run the stage first"):
        send_stage(tmp_path / "train", location, "train")


def test_other_things_are_not_replaced(location: Location, tmp_path: Path) -> None:
    send_stage(write_stage(tmp_path / "here" / "train", OLD), location, "train")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other things than the stage `train`"):
        fetch_stage(location, "train", mine)
    other = write_stage(tmp_path / "other", NEW, "prepare")
    with pytest.raises(InputError, match="holds the stage `prepare`"):
        fetch_stage(location, "train", other)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_too_little_space_is_said_before_the_fetch(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_stage(write_stage(tmp_path / "here" / "train", OLD), location, "train")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))  # type: ignore[attr-defined]
    with pytest.raises(StageError, match=r"0.00 GiB to fetch, and 0.00 GiB free at .*; free some"):
        fetch_stage(location, "train", tmp_path / "there" / "train")


def test_a_plain_folder_at_a_file_url_is_explained(tmp_path: Path) -> None:
    write_stage(tmp_path / "run" / "train", OLD)
    with pytest.raises(InputError, match="a plain stage folder; give its path, without file://"):
        read_record(open_location(f"file://{tmp_path}/run"), "train")


def test_an_outline_tells_which_files_there_are(location: Location, tmp_path: Path) -> None:
    record = send_stage(write_stage(tmp_path / "here" / "train", OLD), location, "train")
    assert outline_stage(location, "train", tmp_path / "outline")
    assert (tmp_path / "outline" / MANIFEST).read_bytes() == record.data
    assert sorted(contents(tmp_path / "outline")) == sorted([*OLD, MANIFEST])
    assert (tmp_path / "outline" / "a.bin").stat().st_size == 0
    assert not outline_stage(location, "prepare", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
