"""One run at a time at a URL: an object with an owner and an expiry, that its owner renews.

S3 compares and swaps, so that of two runs one gets the lock, whatever the timing. Elsewhere the
first lock is as safe, but two runs that find the same expired one may both take it: the later
one has it then, and the other stops before its next manifest.
"""

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import psutil

from pipeline.errors import InputError, StageError
from pipeline.storage import transfers
from pipeline.storage.locations import Location

LOCK = "run.lock"
LASTS_SECONDS = 600.0
_RENEWALS = 4  # tries before a lock expires
_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: of this one holding.
        host: name of the machine.
        process: id of the process there.
        born: when that process started, seconds since 1970: ids are used again.
        since: when the lock was taken, likewise.
        until: when it expires, likewise.
    """

    token: str
    host: str
    process: int
    born: float
    since: float
    until: float


class RunLock:
    """A lock that is held, and renewed in a thread until it is given back."""

    def __init__(self, location: Location, holder: Holder, lasts_seconds: float) -> None:
        self._location = location
        self._holder = holder
        self._lasts = lasts_seconds
        self._path = location.path(LOCK)
        self._busy = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="replenish-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still this run's, and renew it.

        Raises:
            StageError: another run has taken it.
        """
        if not self._renew():
            raise StageError(
                f"{self._location.url}: another run has taken over, since this one could not "
                "renew its lock in time; run the same command again when the other one is done: it "
                "starts from what that one left"
            )

    def give_back(self) -> None:
        """Remove the lock, unless another run has taken it."""
        self._done.set()
        self._thread.join()
        try:
            found, _ = _read(self._location)
            if found is not None and found.token == self._holder.token:
                transfers.remove(self._location, [self._path])
        except (InputError, StageError):
            return  # it expires; what the run did counts

    def _renew(self) -> bool:
        with self._busy:
            found, tag = _read(self._location)
            if found is None or found.token != self._holder.token:
                return False
            later = replace(self._holder, until=time.time() + self._lasts)
            if transfers.replace(self._location, self._path, _text(later), tag):
                return True
            # An answer that was lost on its way: what was written the first time is refused now.
            again, _ = _read(self._location)
            return again is not None and again.token == self._holder.token

    def _keep(self) -> None:
        while not self._done.wait(self._lasts / _RENEWALS):
            try:
                self._renew()
            except (InputError, StageError):
                continue  # the next one may pass; `check` tells


@contextmanager
def hold(location: Location, lasts_seconds: float = LASTS_SECONDS) -> Iterator[RunLock]:
    """Hold the lock of a location; another run's is taken when it expired or its process died.

    Args:
        location: of the artifacts.
        lasts_seconds: until a lock that is not renewed expires, by the clocks of both machines.

    Raises:
        InputError: another run holds it; or the location cannot be written.
    """
    now = time.time()
    host, process = socket.gethostname(), os.getpid()
    born = psutil.Process().create_time()
    mine = Holder(uuid.uuid4().hex, host, process, born, now, now + lasts_seconds)
    path = location.path(LOCK)
    if not transfers.create(location, path, _text(mine)):
        _take_over(location, path, mine)
    lock = RunLock(location, mine, lasts_seconds)
    try:
        yield lock
    finally:
        lock.give_back()


def _take_over(location: Location, path: str, mine: Holder) -> None:
    found, tag = _read(location)
    if found is not None and found.token == mine.token:
        return  # made by a try whose answer was lost
    if found is not None and found.until > mine.since and not _died(found):
        minutes = math.ceil((found.until - mine.since) / 60)
        raise InputError(
            f"{location.url}: another run is at work there (process {found.process} on "
            f"{found.host}, since {time.strftime('%d %B %H:%M', time.localtime(found.since))}); "
            "wait for it, or give this run its own --artifacts. If that run is dead, its lock "
            f"expires in {minutes} min; or delete {location.shown(LOCK)}"
        )
    if tag is not None:
        taken = transfers.replace(location, path, _text(mine), tag)
    else:
        if found is not None:  # one that is gone may be a third run's by now
            transfers.remove(location, [path])
        taken = transfers.create(location, path, _text(mine))
    if not taken:
        raise InputError(
            f"{location.url}: another run began there at this very moment; wait for it, or give "
            "this run its own --artifacts"
        )


def _died(holder: Holder) -> bool:
    """Say whether the holder was a process of this machine that is no more."""
    if holder.host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(holder.process).create_time() - holder.born) > 1
    except psutil.NoSuchProcess:
        return True


def _read(location: Location) -> tuple[Holder | None, str | None]:
    path = location.path(LOCK)
    try:
        # Before the content: a swap fails when the lock changed between the two.
        tag = transfers.tag_of(location, path)
    except FileNotFoundError:
        return None, None
    data = transfers.read(location, path, _LIMIT_BYTES)
    if data is None:
        return None, None
    try:
        return Holder(**json.loads(data)), tag
    except (ValueError, TypeError):
        raise InputError(
            f"{location.shown(LOCK)}: not a lock that Replenish wrote; delete it if no run is at "
            "work there"
        ) from None


def _text(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=2).encode()
