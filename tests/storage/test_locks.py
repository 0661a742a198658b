"""One run at a time at a URL."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from stored_stages import NEW, OLD, write_stage

from pipeline.errors import InputError, StageError
from pipeline.storage import locks, transfers
from pipeline.storage.locations import Location
from pipeline.storage.locks import Holder, hold
from pipeline.storage.mirror import read_record, send_stage

NOW = 1_800_000_000.0
OTHER = Holder("other", "elsewhere", 4711, NOW - 90, NOW - 60, NOW + 540)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.time, "time", lambda: NOW)


def put(location: Location, holder: Holder) -> None:
    transfers.write(location, location.path("run.lock"), json.dumps(asdict(holder)).encode())


def there(location: Location) -> dict[str, object] | None:
    data = transfers.read(location, location.path("run.lock"), 1 << 16)
    return None if data is None else json.loads(data)


def test_a_lock_says_who_holds_it_and_goes(location: Location) -> None:
    with hold(location, lasts_seconds=600) as lock:
        found = there(location)
        assert found is not None
        assert (found["host"], found["process"]) == (socket.gethostname(), os.getpid())
        assert (found["since"], found["until"]) == (NOW, NOW + 600)
        lock.check()
    assert there(location) is None


def test_it_is_given_back_when_the_run_fails(location: Location) -> None:
    with pytest.raises(KeyboardInterrupt), hold(location):
        raise KeyboardInterrupt
    assert there(location) is None


def test_a_second_run_is_refused_and_told_by_whom(location: Location) -> None:
    put(location, OTHER)
    with (
        pytest.raises(
            InputError,
            match=r"/.*: another run is at work there \(process 4711 on elsewhere, since .*\); "
            r"wait for it, .* its lock expires in 9 min; or delete .*/run.lock",
        ),
        hold(location),
    ):
        pass
    assert there(location) == asdict(OTHER)


def test_two_runs_of_one_machine_do_not_meet(location: Location) -> None:
    with hold(location), pytest.raises(InputError, match="another run is at work"), hold(location):
        pass


def test_an_expired_lock_is_taken(location: Location) -> None:
    put(location, replace(OTHER, until=NOW))
    with hold(location) as lock:
        lock.check()
    assert there(location) is None


def test_the_lock_of_a_process_that_died_here_is_taken(location: Location) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], text=True,
                          capture_output=True, check=True)  # fmt: skip
    put(location, replace(OTHER, host=socket.gethostname(), process=int(done.stdout)))
    with hold(location):
        pass


def test_a_process_id_that_is_used_again_is_another_process(location: Location) -> None:
    born = psutil.Process().create_time()
    mine = replace(OTHER, host=socket.gethostname(), process=os.getpid(), born=born)
    put(location, mine)
    with pytest.raises(InputError, match="another run is at work"), hold(location):
        pass
    put(location, replace(mine, born=born - 100))
    with hold(location):
        pass


def test_a_run_whose_lock_was_taken_stops_before_its_record(
    location: Location, tmp_path: Path
) -> None:
    old = send_stage(write_stage(tmp_path / "old" / "train", OLD), location, "train")
    new = write_stage(tmp_path / "new" / "train", NEW)
    with hold(location) as lock:
        put(location, OTHER)
        with pytest.raises(StageError, match="another run has taken over, since this one could"):
            send_stage(new, location, "train", lock.check)
    found = read_record(location, "train")
    assert found is not None
    assert found.data == old.data
    assert there(location) == asdict(OTHER)  # and it leaves the other's lock alone


def test_it_is_renewed_while_the_run_works(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(location, lasts_seconds=0.04) as lock:
        monkeypatch.setattr(locks.time, "time", lambda: NOW + 500)
        while (there(location) or {}).get("until") != NOW + 500.04:
            lock._done.wait(0.005)
    assert there(location) is None


def test_a_strangers_file_is_not_taken_for_a_lock(location: Location) -> None:
    transfers.write(location, location.path("run.lock"), b"my notes")
    with (
        pytest.raises(InputError, match=r"run.lock: not a lock that Replenish wrote"),
        hold(location),
    ):
        pass
