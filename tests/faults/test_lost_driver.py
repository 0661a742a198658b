"""A driver that is killed while workers elsewhere have its shards: another goes on from there."""

from pathlib import Path
from threading import Event

import numpy as np
import pytest
from synthesis.test_leasing import QUICK, Threads, images_of, plan

from pipeline.synthesis.leasing import LeasingExecutor, Seen
from pipeline.synthesis.shards import read_shard
from pipeline.synthesis.spaces import FolderSpace

pytestmark = pytest.mark.faults


class Service(Threads):
    """Keeps the leases of all drivers, as a Prefect server does: a key that it knows is joined.

    The first lease is done at once; the others begin when a second driver has joined one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go = Event()
        self.sent: set[str] = set()
        self.joined: list[str] = []

    def submit(self, lease, key):
        if key in self.sent:
            self.joined.append(lease.id)
            self.go.set()
            return self.seen[lease.id].state in ("waiting", "running")
        self.sent.add(key)
        return super().submit(lease, key)

    def _work(self, lease, trouble):
        if lease.id != self.submitted[0].id:
            assert self.go.wait(60)
        if self.seen[lease.id].state == "waiting":  # it did not die meanwhile
            super()._work(lease, trouble)


def lose_driver(folder: Path, service: Service):
    """Start a driver and drop it once the first lease is done and the three others are out."""
    executor = LeasingExecutor(service, folder, FolderSpace(folder), [].append, 2, QUICK)
    running = executor.run(plan(8))
    next(running)
    service.threads[0].join()
    assert len(service.submitted) == 4
    return running  # kept, so that it neither cancels nor closes anything: it is dead


def go_on(folder: Path, service: Service) -> None:
    """Let a new driver end the work, and check that every shard is as it should be."""
    notes: list[str] = []
    space = FolderSpace(folder)
    list(LeasingExecutor(service, folder, space, notes.append, 2, QUICK).run(plan(8)))
    assert notes == []
    for shard in plan(8):
        assert np.array_equal(read_shard(folder, shard), images_of(shard))


def test_leases_that_are_at_work_are_joined_and_not_sent_again(tmp_path: Path) -> None:
    service = Service(tmp_path)
    dead = lose_driver(tmp_path, service)
    go_on(tmp_path, service)
    # A lease that is slow by chance may be handed out twice; the first four are all there is.
    assert service.joined == [lease.id for lease in service.submitted[1:4]]
    given = [shard for lease in service.submitted[:4] for shard in lease.shards]
    assert given == plan(8)
    dead.close()


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_leases_that_died_with_it_are_sent_again(tmp_path: Path, how: str) -> None:
    service = Service(tmp_path)
    dead = lose_driver(tmp_path, service)
    died = [lease for lease in service.submitted if service.seen[lease.id].state == "waiting"]
    assert len(died) == 3
    for lease in died:
        service.seen[lease.id] = Seen(how, "its machine went down")
    go_on(tmp_path, service)
    again = [shard for lease in service.submitted[4:] for shard in lease.shards]
    assert set(again) == set(plan(8)[2:])
    assert service.joined == [lease.id for lease in died]
    dead.close()
