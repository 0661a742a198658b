"""Which shards are handed out, to whom and how often: scheduling, apart from who carries it out.

A lease is a group of shards that one worker does. Workers elsewhere die, stall and are pre-empted:
a lease that is silent too long is lost and its shards are handed out again, and when nothing else
is left, those of the slowest lease are handed out a second time (backup tasks, Dean and Ghemawat
2004, "MapReduce", section 3.6). A shard that comes twice counts once: its bits are the same.

The shards are cut into groups by their place among all, and a group stays together, so that a
driver that was started again gives its leases the same ids although some shards are done by then.

Nothing here sleeps, asks the time or talks to anybody, so that the simulation in
`benchmarks/scale.py` runs this very code. No call takes longer where more shards wait; only the
search for slow leases, when nothing else is left, looks at all leases that are out.
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.errors import StageError
from pipeline.hashing import digest_json
from pipeline.synthesis.shards import Shard

_TIMES = 1001  # of the last leases, whose median says what is slow


@dataclass(frozen=True)
class Rules:
    """How shards are handed out.

    Attributes:
        group: shards of a lease.
        ahead: leases that are out at once.
        attempts: errors of one shard that are forgiven, less one.
        losses: lost leases of one shard that are forgiven, less one; a worker's death is not the
            shard's fault, but a shard that kills every worker has to end the run.
        silent_seconds: a begun lease that is not heard of so long is lost.
        slow_times: a lease that runs so many times the median is handed out a second time, once
            nothing else waits.
    """

    group: int
    ahead: int
    attempts: int = 3
    losses: int = 10
    silent_seconds: float = 60.0
    slow_times: float = 3.0


@dataclass
class Lease:
    """Shards that were handed out together.

    Attributes:
        id: the same for the same group of shards at the same attempt, in any run of the driver.
        shards: of the group, those that were not done.
        handed: when, in seconds of the driver's clock.
        begun: when a worker was first heard of; None while it waits for one.
        heard: when the worker was last heard of.
        doubled: is it handed out a second time already?
        group: place of its group among all.
    """

    id: str
    shards: tuple[Shard, ...]
    handed: float
    begun: float | None = None
    heard: float = 0.0
    doubled: bool = False
    group: int = 0


@dataclass
class _Group:
    """Shards that travel together: each one that is not done was in every lease of the group.

    So what happened to one of those happened to all, and is counted here.
    """

    left: int
    leases: list[Lease] = field(default_factory=list)
    handed: int = 0
    errors: int = 0
    losses: int = 0


@dataclass
class Dispatch:
    """The shards of one run: which wait, which are out, which are done.

    The times that its methods are given are seconds of one clock that never goes back.

    Attributes:
        shards: all of them, none twice, in the order in which they are wanted.
        rules: how they are handed out.
        out: leases that are with workers, by id.
        lost: leases that were given up, for the record.
    """

    shards: Sequence[Shard]
    rules: Rules
    out: dict[str, Lease] = field(default_factory=dict)
    lost: int = 0
    _missing: dict[Shard, int] = field(default_factory=dict)  # and the group of each
    _groups: dict[int, _Group] = field(default_factory=dict)  # handed out and not done, or out
    _again: deque[int] = field(default_factory=deque)  # groups that came back
    _next: int = 0  # group that was never handed out
    _heard: OrderedDict[str, Lease] = field(default_factory=OrderedDict)  # begun, silent first
    _needless: dict[str, Lease] = field(default_factory=dict)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES))
    _median: float | None = None

    def __post_init__(self) -> None:
        """Let all shards wait."""
        size = self.rules.group
        for number, start in enumerate(range(0, len(self.shards), size)):
            # One number for the whole group: it is kept once.
            self._missing.update(dict.fromkeys(self.shards[start : start + size], number))
        if len(self._missing) != len(self.shards):
            raise ValueError("a shard stands twice among those to hand out")

    @property
    def finished(self) -> bool:
        """Say whether every shard is done."""
        return not self._missing

    @property
    def missing(self) -> int:
        """Return how many shards are not done."""
        return len(self._missing)

    def hand_out(self, now: float) -> Lease | None:
        """Return the next lease, or None where there is nothing to hand out now."""
        if len(self.out) >= self.rules.ahead:
            return None
        number = self._next_group()
        if number is None:
            number = self._slow_group(now)
        if number is None:
            return None
        whole = self._shards_of(number)
        left = tuple(shard for shard in whole if shard in self._missing)
        group = self._groups.setdefault(number, _Group(len(left)))
        # The id counts how often the group went out, so that none is used twice.
        lease = Lease(lease_id(whole, group.handed), left, now, heard=now, group=number)
        group.handed += 1
        group.leases.append(lease)
        self.out[lease.id] = lease
        return lease

    def heard(self, lease_id: str, now: float) -> None:
        """Take note that the worker of a lease lives."""
        lease = self.out.get(lease_id)
        if lease is not None:
            lease.begun = now if lease.begun is None else lease.begun
            lease.heard = now
            self._heard[lease_id] = lease
            self._heard.move_to_end(lease_id)

    def done(self, shard: Shard) -> bool:
        """Take note that a shard is on disk; say whether that is news.

        A shard of another run is none.
        """
        number = self._missing.pop(shard, None)
        if number is None:
            return False
        group = self._groups.get(number)
        if group is not None:
            group.left -= 1
            if not group.left:
                self._close(number, group)
        return True

    def is_done(self, shard: Shard) -> bool:
        """Say whether a shard of this run is done."""
        return shard not in self._missing

    def ended(self, lease_id: str, now: float, error: str | None = None) -> None:
        """Take note that a worker is through with a lease; what it did not do waits again.

        Args:
            lease_id: of the lease.
            now: seconds.
            error: what went wrong, if anything did.

        Raises:
            StageError: a shard has failed too often.
        """
        lease = self._take_back(lease_id)
        if lease is None:
            return
        group = self._groups.get(lease.group)
        if group is None:
            if lease.begun is not None:
                self._times.append(now - lease.begun)
                self._median = None
            return
        # What failed further on is another shard: only errors without progress add up.
        group.errors = 1 if group.left < len(lease.shards) else group.errors + 1
        if group.errors >= self.rules.attempts:
            raise self._failed(lease, group.errors, error or "it ended without them")

    def give_up(self, lease_id: str, why: str) -> None:
        """Take note that a lease is lost: its worker died, or says nothing any more.

        Raises:
            StageError: a shard was lost too often.
        """
        lease = self._take_back(lease_id)
        if lease is None:
            return
        self.lost += 1
        group = self._groups.get(lease.group)
        if group is None:
            return
        group.losses = 1 if group.left < len(lease.shards) else group.losses + 1
        if group.losses >= self.rules.losses:
            raise self._failed(lease, group.losses, why)

    def used_up(self, lease_id: str) -> None:
        """Take note that an earlier driver had a lease of this id, which has ended.

        What is left of it waits again, for a lease with another id. Nobody is to blame: what failed
        before this driver began must not count, or it could never go on from there.
        """
        self._take_back(lease_id)

    def overdue(self, now: float) -> list[Lease]:
        """Return the begun leases that were silent too long."""
        silent = []
        for lease in self._heard.values():
            if now - lease.heard <= self.rules.silent_seconds:
                break  # the others were heard of later
            silent.append(lease)
        return silent

    def needless(self) -> list[Lease]:
        """Return the leases that are out although all their shards are done, by another.

        One that was the only lease of its shards, and has begun, has done them itself: it ends.
        """
        return list(self._needless.values())

    def _shards_of(self, number: int) -> Sequence[Shard]:
        return self.shards[number * self.rules.group : (number + 1) * self.rules.group]

    def _next_group(self) -> int | None:
        """Take the next group that waits and is not done."""
        while self._again:
            number = self._again.popleft()
            if number in self._groups:  # it may have come from a lease that was given up
                return number
        while self._next * self.rules.group < len(self.shards):
            number = self._next
            self._next += 1
            if any(shard in self._missing for shard in self._shards_of(number)):
                return number
        return None

    def _slow_group(self, now: float) -> int | None:
        """Return the group of the slowest lease, where that is too slow and has no copy yet."""
        if not self._times:
            return None
        if self._median is None:
            self._median = statistics.median(self._times)
        limit = self.rules.slow_times * self._median
        slow = [
            lease
            for lease in self.out.values()
            if not lease.doubled
            and lease.group in self._groups
            and lease.begun is not None
            and now - lease.begun > limit
        ]
        if not slow:
            return None
        slowest = min(slow, key=lambda lease: lease.begun or 0.0)
        slowest.doubled = True
        return slowest.group

    def _close(self, number: int, group: _Group) -> None:
        """Forget a group that is done; say which of its leases have nothing left to do."""
        del self._groups[number]
        for lease in group.leases:
            if group.handed > 1 or lease.begun is None:
                self._needless[lease.id] = lease

    def _take_back(self, lease_id: str) -> Lease | None:
        """Take a lease back; where it was the last one of a group that is not done, that waits."""
        lease = self.out.pop(lease_id, None)
        if lease is None:
            return None
        self._heard.pop(lease_id, None)
        self._needless.pop(lease_id, None)
        group = self._groups.get(lease.group)
        if group is not None:
            group.leases.remove(lease)
            if group.leases:
                # The copy may be gone, and the slow one alone again.
                group.leases[-1].doubled = False
            else:
                # To the front: the consumer takes them in order and may be waiting for these.
                self._again.appendleft(lease.group)
        return lease

    def _failed(self, lease: Lease, times: int, why: str) -> StageError:
        worst = next(shard for shard in lease.shards if shard in self._missing)
        return StageError(
            f"synthesize: shard {worst.name} failed {times} times, the last time: {why}; finished "
            "shards stay, and the same command goes on from them"
        )


def lease_id(shards: Sequence[Shard], attempt: int) -> str:
    """Return the id of a lease: of its shards, and of how often they went out before."""
    return digest_json([[shard.name, shard.size] for shard in shards] + [attempt])[:24]
