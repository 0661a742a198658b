"""Artifacts at a URL: the mirror in the cache, and who may write."""

import re
from pathlib import Path

import pytest
from filelock import FileLock
from stored_stages import NEW, OLD, Killed, contents, dying, write_stage

from pipeline.errors import InputError, StageError
from pipeline.storage import artifacts, transfers
from pipeline.storage.artifacts import Artifacts, fetch_all, mirror_folder, open_artifacts
from pipeline.storage.locations import Location, open_location
from pipeline.storage.locks import hold
from pipeline.storage.mirror import fetch_stage, send_stage


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    with open_artifacts(str(tmp_path / "run")) as place:
        assert place == Artifacts(tmp_path / "run")
        place.fetch(["train"], pytest.fail)
        place.send("train", pytest.fail)
    assert not (tmp_path / "run").exists()


def test_a_url_is_mirrored_below_the_cache_and_locked(location: Location, tmp_path: Path) -> None:
    with open_artifacts(location.url, tmp_path / "cache") as place:
        assert place.folder == mirror_folder(location, tmp_path / "cache")
        assert re.fullmatch(r"[a-z0-9-]{1,60}-[0-9a-f]{12}", place.folder.name)
        assert place.folder.parent == tmp_path / "cache"
        assert "run.lock" in transfers.listing(location)
        with (
            pytest.raises(InputError, match="another run on this machine is at work there"),
            open_artifacts(location.url, tmp_path / "cache"),
        ):
            pass
        with (
            pytest.raises(InputError, match=r"another run is at work there \(process"),
            open_artifacts(location.url, tmp_path / "other"),
        ):
            pass
    assert transfers.listing(location) == {}
    FileLock(place.folder / ".work" / "mirror.lock").acquire(timeout=0).lock.release()


def test_other_urls_have_other_mirrors(tmp_path: Path) -> None:
    names = {mirror_folder(open_location(f"memory://b/{run}"), tmp_path) for run in ("a-b", "a/b")}
    assert len(names) == 2


def test_what_another_machine_sent_is_fetched_once(location: Location, tmp_path: Path) -> None:
    sent = write_stage(tmp_path / "elsewhere" / "train", OLD)
    send_stage(sent, location, "train")
    notes: list[str] = []
    for _ in range(2):
        with open_artifacts(location.url, tmp_path / "cache") as place:
            place.fetch(["train", "prepare"], notes.append)
            assert contents(place.folder / "train") == contents(sent)
            assert not (place.folder / "prepare").exists()
    assert notes == [f"train: fetching {location.url}/train"]


def test_what_was_finished_here_but_not_sent_is_not_lost(
    location: Location, tmp_path: Path
) -> None:
    send_stage(write_stage(tmp_path / "old" / "train", OLD), location, "train")
    with open_artifacts(location.url, tmp_path / "cache") as place:
        place.fetch(["train"], lambda _: None)
        new = contents(write_stage(_emptied(place.folder / "train"), NEW))
        killed = Artifacts(place.folder, dying(location, at=2), place.lock)
        with pytest.raises(Killed):
            killed.send("train", lambda _: None)
    notes: list[str] = []
    with open_artifacts(location.url, tmp_path / "cache") as place:
        place.fetch(["train"], notes.append)
        assert contents(place.folder / "train") == new
    assert notes == [f"train: sending to {location.url}/train"]
    fetch_stage(location, "train", tmp_path / "reader" / "train")
    assert contents(tmp_path / "reader" / "train") == new


def test_what_another_run_sent_since_is_taken_instead(location: Location, tmp_path: Path) -> None:
    send_stage(write_stage(tmp_path / "old" / "train", OLD), location, "train")
    theirs = write_stage(tmp_path / "theirs" / "train", {"t.bin": b"theirs"})
    with open_artifacts(location.url, tmp_path / "cache") as place:
        place.fetch(["train"], lambda _: None)
        write_stage(_emptied(place.folder / "train"), NEW)  # finished, never sent
    send_stage(theirs, location, "train")
    with open_artifacts(location.url, tmp_path / "cache") as place:
        place.fetch(["train"], lambda _: None)
        assert contents(place.folder / "train") == contents(theirs)


def test_a_store_that_was_emptied_gets_the_folder_again(location: Location, tmp_path: Path) -> None:
    with open_artifacts(location.url, tmp_path / "cache") as place:
        write_stage(place.folder / "train", OLD)
        place.send("train", lambda _: None)
        transfers.remove(location, [location.path("train", "stored.json")])
        place.fetch(["train"], pytest.fail)
        place.send("train", lambda _: None)
    assert "stored.json" in transfers.listing(location, "train")


def test_a_helping_process_reads_the_mirror_and_sends_nothing(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with hold(location), open_artifacts(location.url, tmp_path / "cache") as place:
        assert place == Artifacts(mirror_folder(location, tmp_path / "cache"), location)
        place.fetch(["train"], pytest.fail)
        place.send("train", pytest.fail)
    monkeypatch.setenv("RANK", "0")
    with open_artifacts(location.url, tmp_path / "cache") as place:
        assert place.lock is not None


def test_processes_on_several_machines_need_a_shared_folder(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match="processes on several machines read one local folder"),
        open_artifacts(location.url, tmp_path / "cache"),
    ):
        pass


def test_all_stages_are_fetched_and_damage_is_listed(location: Location, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished stage; give the URL of a run"):
        fetch_all(location, tmp_path / "none")
    for name in ("prepare", "train"):
        send_stage(write_stage(tmp_path / name, OLD, name), location, name)
    transfers.write(location, location.path("train", "stored.json"), b"{}")
    fetched, problems = fetch_all(location, tmp_path / "there")
    assert fetched == ["prepare"]
    assert [line.partition(" (")[0] for line in problems] == [
        f"{location.url}/train/stored.json: damaged"
    ]


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert artifacts.cache_root() == tmp_path / "replenish" / "artifacts"
    assert mirror_folder(open_location("memory://b/run 1")).name.startswith("memory-b-run-1-")


def test_a_lost_lock_stops_the_sending(location: Location, tmp_path: Path) -> None:
    with open_artifacts(location.url, tmp_path / "cache") as place:
        write_stage(place.folder / "train", OLD)
        transfers.remove(location, [location.path("run.lock")])
        with pytest.raises(StageError, match="another run has taken over"):
            place.send("train", lambda _: None)
    assert "stored.json" not in transfers.listing(location, "train")


def _emptied(folder: Path) -> Path:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return folder
