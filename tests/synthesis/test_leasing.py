"""The driver's side of leases, with a carrier whose workers are threads of this process."""

import time
from pathlib import Path
from threading import Event, Thread
from types import MappingProxyType

import numpy as np
import pytest

from pipeline.errors import InputError, StageError
from pipeline.synthesis.leasing import LeasingExecutor, Patience, Seen
from pipeline.synthesis.shards import Shard, read_shard, write_shard
from pipeline.synthesis.spaces import BEATS, FolderSpace

QUICK = Patience(poll_seconds=0.005, workers_seconds=0.1)


def plan(count, size=2):
    return [Shard(0, number, size) for number in range(count)]


def images_of(shard):
    pixels = np.arange(shard.indices.start, shard.indices.stop, dtype=np.uint8)
    return np.broadcast_to(pixels[:, None, None, None], (shard.size, 2, 2, 1)).copy()


class Threads:
    """A carrier: each lease is a thread; `trouble` has what befalls which submission.

    fail: an error after its first shard; lose: it dies then, and that is seen; hang: it does
    nothing more then; refuse: an error at its first shard; mute: nothing at all but one beat; deaf:
    it is never begun.
    """

    def __init__(self, folder, trouble=MappingProxyType({}), there=1):
        self.folder, self.trouble, self.there = folder, trouble, there
        self.submitted, self.keys, self.cancelled = [], [], {}
        self.seen, self.threads = {}, []
        self.away = Event()
        self.closed = False
        self.used = set()

    def workers(self):
        self._answer()
        return self.there

    def submit(self, lease, key):
        self._answer()
        number = len(self.submitted)
        self.submitted.append(lease)
        self.keys.append(key)
        self.seen[lease.id] = Seen("waiting")
        if self.there and self.trouble.get(number) != "deaf":
            thread = Thread(target=self._work, args=(lease, self.trouble.get(number)))
            self.threads.append(thread)
            thread.start()
        return key not in self.used

    def look(self, leases):
        self._answer()
        return {lease: self.seen[lease] for lease in leases if lease in self.seen}

    def cancel(self, lease, why):
        self._answer()
        self.cancelled[lease] = why

    def missing_workers(self, seconds):
        return StageError("nobody is there")

    def close(self):
        for thread in self.threads:
            thread.join()
        self.closed = True

    def _answer(self):
        if self.away.is_set():
            raise ConnectionError("the service does not answer")

    def _work(self, lease, trouble):
        (self.folder / BEATS).mkdir(exist_ok=True)
        (self.folder / BEATS / lease.id).write_bytes(b"0")
        for number, shard in enumerate(lease.shards):
            if trouble == "mute":
                return
            if trouble == "refuse" or (number == 1 and trouble == "fail"):
                self.seen[lease.id] = Seen("failed", "no memory")
                return
            if number == 1 and trouble == "lose":
                self.seen[lease.id] = Seen("lost", "killed")
                return
            if number == 1 and trouble == "hang":
                return
            if read_shard(self.folder, shard) is None:
                write_shard(self.folder, shard, images_of(shard))
        self.seen[lease.id] = Seen("ended")


def run(folder, carrier, shards, workers=1, patience=QUICK, notes=None):
    said = [] if notes is None else notes
    with LeasingExecutor(
        carrier, folder, FolderSpace(folder), said.append, workers, patience
    ) as executor:
        done = list(executor.run(shards))
    for shard in done:
        assert np.array_equal(read_shard(folder, shard), images_of(shard))
    assert sorted(done, key=lambda one: one.number) == shards
    return said


def test_every_shard_is_done_once_by_one_lease_each(tmp_path: Path) -> None:
    carrier = Threads(tmp_path)
    assert run(tmp_path, carrier, plan(8), workers=2) == []
    # A lease that is slow by chance may be handed out twice; the first four are all there is.
    given = [shard for lease in carrier.submitted[:4] for shard in lease.shards]
    assert given == plan(8)
    assert [len(lease.shards) for lease in carrier.submitted[:4]] == [2] * 4
    assert carrier.closed


@pytest.mark.parametrize(("trouble", "why"), [("fail", "no memory"), ("lose", "killed")])
def test_what_a_lease_leaves_goes_to_another(tmp_path: Path, trouble: str, why: str) -> None:
    carrier = Threads(tmp_path, {0: trouble})
    notes = run(tmp_path, carrier, plan(12))
    assert notes == [
        "synthesize: 5 shards from class-0000-shard-000001 on go to another worker: " + why
    ]
    first, again = carrier.submitted[0], [one for one in carrier.submitted if one.shards[0].number]
    assert [shard.number for shard in first.shards] == [0, 1, 2, 3, 4, 5]
    assert any([shard.number for shard in one.shards][:2] == [1, 2] for one in again)
    assert len(set(carrier.keys)) == len(carrier.keys)


def test_a_silent_lease_is_lost(tmp_path: Path) -> None:
    carrier = Threads(tmp_path, {0: "mute"})
    notes = run(tmp_path, carrier, plan(1), patience=Patience(0.005, silent_seconds=0.3))
    assert notes == [
        "synthesize: 1 shards from class-0000-shard-000000 on go to another worker: "
        "silent for 0.3 s"
    ]
    assert carrier.cancelled == {carrier.submitted[0].id: "silent for 0.3 s"}


def test_what_hangs_is_done_a_second_time_once_nothing_else_waits(tmp_path: Path) -> None:
    carrier = Threads(tmp_path, {0: "hang"})
    patience = Patience(poll_seconds=0.005, silent_seconds=60, workers_seconds=0.1)
    assert run(tmp_path, carrier, plan(12), patience=patience) == []
    assert carrier.cancelled == {carrier.submitted[0].id: "its shards are done"}


def test_a_shard_that_always_fails_ends_the_run_and_finished_ones_stay(tmp_path: Path) -> None:
    carrier = Threads(tmp_path, {0: "fail", **dict.fromkeys(range(1, 50), "refuse")})
    message = "shard class-0000-shard-00000. failed 3 times, the last time: no memory"
    with pytest.raises(StageError, match=message):
        run(tmp_path, carrier, plan(8))
    assert read_shard(tmp_path, plan(1)[0]) is not None


def test_leases_of_a_run_that_ends_are_cancelled(tmp_path: Path) -> None:
    carrier = Threads(tmp_path, {1: "deaf"})
    with LeasingExecutor(carrier, tmp_path, FolderSpace(tmp_path), [].append, 1, QUICK) as executor:
        run = executor.run(plan(8))
        next(run)
        run.close()
    assert set(carrier.cancelled.values()) <= {"the run that sent it has ended"}
    assert carrier.submitted[1].id in carrier.cancelled


def test_a_second_driver_joins_the_leases_of_the_first(tmp_path: Path) -> None:
    first = Threads(tmp_path, dict.fromkeys(range(9), "deaf"))
    first.there = 0
    with pytest.raises(StageError, match="nobody is there"):
        run(tmp_path, first, plan(8))
    second = Threads(tmp_path)
    run(tmp_path, second, plan(8))
    assert second.keys[:2] == first.keys[:2]
    other = tmp_path / "other"
    other.mkdir()
    third = Threads(other)
    run(other, third, plan(8))
    assert set(third.keys).isdisjoint(second.keys)


def test_leases_of_an_earlier_run_that_have_ended_are_not_waited_for(tmp_path: Path) -> None:
    first = Threads(tmp_path, dict.fromkeys(range(50), "refuse"))
    with pytest.raises(StageError, match="failed 3 times"):
        run(tmp_path, first, plan(4))
    second = Threads(tmp_path)
    second.used = set(first.keys)
    run(tmp_path, second, plan(4))
    assert set(first.keys) < set(second.keys)


def test_small_faults_here_and_there_do_not_add_up(tmp_path: Path) -> None:
    carrier = Threads(tmp_path, dict.fromkeys(range(0, 40, 2), "fail"))
    assert any("no memory" in note for note in run(tmp_path, carrier, plan(40)))  # and it ends


def test_shards_that_stand_are_not_asked_for(tmp_path: Path) -> None:
    for shard in plan(8)[:5]:
        write_shard(tmp_path, shard, images_of(shard))
    carrier = Threads(tmp_path)
    run(tmp_path, carrier, plan(8))
    assert [shard for lease in carrier.submitted for shard in lease.shards] == plan(8)[5:]
    again = Threads(tmp_path)
    run(tmp_path, again, plan(8))
    assert again.submitted == []


def test_without_a_worker_the_run_ends_soon(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(StageError, match="nobody is there"):
        run(tmp_path, Threads(tmp_path, there=0), plan(4), notes=notes)
    assert notes == ["synthesize: no worker is there to draw the shards; waiting for one"]


def test_the_service_may_be_away_for_a_while(tmp_path: Path) -> None:
    carrier = Threads(tmp_path)
    carrier.away.set()
    back = Thread(target=lambda: (time.sleep(0.05), carrier.away.clear()))
    back.start()
    notes = run(tmp_path, carrier, plan(4))
    back.join()
    assert notes == [
        "synthesize: the service does not answer; waiting for it, finished shards stay",
        "synthesize: the service is back",
    ]


def test_a_service_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    carrier = Threads(tmp_path)
    carrier.away.set()
    soon = Patience(poll_seconds=0.005, service_seconds=0.2)
    with pytest.raises(StageError, match="does not answer, for . s now; finished shards stay"):
        run(tmp_path, carrier, plan(4), patience=soon)


def test_errors_of_the_carrier_reach_the_user(tmp_path: Path) -> None:
    class Refusing(Threads):
        def submit(self, lease, key):
            raise InputError("no such work pool")

    with pytest.raises(InputError, match="no such work pool"):
        run(tmp_path, Refusing(tmp_path), plan(4))
