"""Shards by workers elsewhere: the driver's side, whoever carries the leases to them.

Workers share a folder or a URL with the driver. What is there decides: a shard whose side-car
stands is done, a lease whose beat changes is alive. What the carrier knows of its runs only makes
it quicker to see that one has ended.
"""

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pipeline.errors import InputError, StageError
from pipeline.folders import write_bytes
from pipeline.synthesis.dispatch import Dispatch, Lease, Rules
from pipeline.synthesis.shards import Shard, read_shard
from pipeline.synthesis.spaces import Space
from pipeline.tracking.shard_log import shard_log

BEAT_SECONDS = 5.0

_RUN_ID = "run-id"
_MOST_SHARDS = 64  # of a lease: what is lost with a worker
_LEASES_EACH = 2  # for each worker: each costs its start, and what hangs is done twice anyway


@dataclass(frozen=True)
class Seen:
    """What a carrier knows of a lease.

    Attributes:
        state: waiting for a worker, running, ended well, failed with an error, or lost with its
            worker.
        message: of the error or loss.
    """

    state: Literal["waiting", "running", "ended", "failed", "lost"]
    message: str = ""


class Carrier(Protocol):
    """Takes leases to workers. A service that does not answer raises `ConnectionError`."""

    def workers(self) -> int:
        """Return how many workers are there to take leases."""
        ...

    def submit(self, lease: Lease, key: str) -> bool:
        """Send a lease, or join the one of an earlier driver that has its key.

        Returns:
            False where that one has ended already, so that nobody is at work on it.
        """
        ...

    def look(self, leases: Iterable[str]) -> Mapping[str, Seen]:
        """Return what is known of some leases, by id."""
        ...

    def cancel(self, lease: str, why: str) -> None:
        """Let a lease go: it is lost, or not needed any more."""
        ...

    def missing_workers(self, seconds: float) -> Exception:
        """Return the error for people when no worker was there for so long."""
        ...

    def close(self) -> None:
        """Let go of what the carrier holds."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long what is waited for.

    Attributes:
        poll_seconds: between two looks.
        silent_seconds: a lease that gives no beat for so long is lost.
        start_seconds: so is one that a worker has taken and that gives its first beat no sooner.
        workers_seconds: with no worker for so long the run ends.
        service_seconds: with the service away for so long, likewise.
    """

    poll_seconds: float = 0.5
    silent_seconds: float = 60.0
    start_seconds: float = 300.0
    workers_seconds: float = 30.0
    service_seconds: float = 600.0


class LeasingExecutor:
    """An executor whose workers are elsewhere; see `pipeline.synthesis.executors.Executor`."""

    def __init__(
        self,
        carrier: Carrier,
        folder: Path,
        space: Space,
        note: Callable[[str], None],
        workers: int = 0,
        patience: Patience | None = None,
    ) -> None:
        """Take what carries.

        Args:
            carrier: of the leases.
            folder: of the shards, for who asked for them.
            space: where the workers find the job and leave the shards.
            note: is told what people should know.
            workers: that leases are cut for; 0 asks the carrier.
            patience: how long what is waited for.
        """
        self._carrier, self._folder, self._note, self._workers = carrier, folder, note, workers
        self._space = space
        self._patience = patience or Patience()
        self._beats: dict[str, bytes] = {}
        self._seen: dict[str, Seen] = {}
        self._starting: dict[str, float] = {}  # leases that were taken, and since when
        self._ended: dict[str, float] = {}  # likewise, that ended with shards not in sight yet
        self._unsent: Lease | None = None
        self._away_since: float | None = None
        self._alone_since: float | None = None
        self._looked = -float("inf")  # for workers

    def run(self, shards: Sequence[Shard]) -> Generator[Shard, None, None]:
        """See Executor.

        Raises:
            InputError: no worker is there, or none can be reached, from the start.
            StageError: a shard failed too often, or the workers or the service went away.
        """
        if not shards:
            return
        run_id = run_id_of(self._folder)
        dispatch = Dispatch(shards, self._rules(len(shards)))
        for shard in shards:
            if read_shard(self._folder, shard) is not None and dispatch.done(shard):
                yield shard
        try:
            while not dispatch.finished:
                now = time.monotonic()
                self._try(self._look, dispatch, now)
                # After the look: what a lease that has ended did is in the folder.
                news = self._news(dispatch, now)
                self._settle(dispatch, now)
                # Before the caller, who may take long: workers should not wait for it.
                self._try(self._hand_out, dispatch, run_id)
                yield from news
                if not dispatch.finished:
                    self._need_workers(dispatch)
                    time.sleep(self._patience.poll_seconds)
        finally:
            # Whatever ends this run: what is still out would only warm the room.
            for lease in list(dispatch.out.values()):
                if not all(dispatch.is_done(shard) for shard in lease.shards):
                    self._cancel(lease.id, "the run that sent it has ended")
            for lease in dispatch.needless():
                self._cancel(lease.id, "its shards are done")
            self._beats.clear()
            self._starting.clear()
            self._ended.clear()
            self._unsent = None

    def close(self) -> None:
        """Let the carrier go."""
        self._carrier.close()

    def __enter__(self) -> Self:
        """Return the executor."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close the executor; what is needed to go on stays where an error ends it."""
        self.close()
        if kind is None:
            try:
                self._space.clear()
            except (InputError, StageError, ConnectionError) as error:
                self._note(f"synthesize: {error}; what is left of the shards there may be deleted")

    def _rules(self, shards: int) -> Rules:
        workers = self._workers or max(1, self._ask_workers())
        group = -(-shards // (_LEASES_EACH * workers))
        return Rules(
            group=min(max(group, 1), _MOST_SHARDS),
            ahead=2 * workers,  # one at work and one that waits beside it
            silent_seconds=self._patience.silent_seconds,
        )

    def _ask_workers(self) -> int:
        try:
            return self._carrier.workers()
        except ConnectionError:
            return 1  # nothing is sent before it answers

    def _news(self, dispatch: Dispatch, now: float) -> list[Shard]:
        """Return the shards that are new in the folder."""
        names = self._space.finished()
        news = []
        for lease in list(dispatch.out.values()):
            for shard in lease.shards:
                if dispatch.is_done(shard) or shard.name not in names:
                    continue
                if self._space.bring(shard):
                    dispatch.heard(lease.id, now)
                    if dispatch.done(shard):
                        news.append(shard)
        return news

    def _look(self, dispatch: Dispatch, now: float) -> None:
        for lease_id in dispatch.out:
            beat = self._space.beat(lease_id)
            if beat is not None and self._beats.get(lease_id) != beat:
                self._beats[lease_id] = beat
                dispatch.heard(lease_id, now)
        self._seen = dict(self._carrier.look(list(dispatch.out))) if dispatch.out else {}

    def _settle(self, dispatch: Dispatch, now: float) -> None:
        """Close the leases that have ended, are silent, or are not needed any more."""
        for lease_id in self._ended:
            if lease_id in dispatch.out:  # a carrier may tell it once
                self._seen.setdefault(lease_id, Seen("ended"))
        for lease_id, seen in self._seen.items():
            if seen.state == "ended" and self._waits_for_files(dispatch, lease_id, now):
                continue
            self._ended.pop(lease_id, None)
            if seen.state == "lost":
                self._lose(dispatch, lease_id, seen.message or "its worker died")
            elif seen.state in ("ended", "failed"):
                self._tell(dispatch, lease_id, seen.message)
                dispatch.ended(lease_id, now, seen.message or None)
            elif seen.state == "running":
                self._starting.setdefault(lease_id, now)
        self._seen = {}
        for lease in dispatch.overdue(now):
            self._lose(dispatch, lease.id, f"silent for {self._patience.silent_seconds:g} s")
        for lease in [one for one in dispatch.out.values() if one.begun is None]:
            if now - self._starting.get(lease.id, now) > self._patience.start_seconds:
                self._lose(dispatch, lease.id, f"silent for {self._patience.start_seconds:g} s")
        for lease in dispatch.needless():
            self._cancel(lease.id, "its shards are done")
            dispatch.ended(lease.id, now)

    def _waits_for_files(self, dispatch: Dispatch, lease_id: str, now: float) -> bool:
        """Say whether shards of a lease that has ended well may still come into sight.

        A network file system may show what is new in a folder a minute late.
        """
        if all(dispatch.is_done(shard) for shard in dispatch.out[lease_id].shards):
            return False
        if now - self._ended.setdefault(lease_id, now) >= self._patience.silent_seconds:
            return False
        dispatch.heard(lease_id, now)
        return True

    def _lose(self, dispatch: Dispatch, lease_id: str, why: str) -> None:
        self._tell(dispatch, lease_id, why)
        if why.startswith("silent"):
            self._cancel(lease_id, why)
        dispatch.give_up(lease_id, why)

    def _cancel(self, lease_id: str, why: str) -> None:
        self._try(self._carrier.cancel, lease_id, why)

    def _hand_out(self, dispatch: Dispatch, run_id: str) -> None:
        while True:
            if self._unsent is None:
                self._unsent = dispatch.hand_out(time.monotonic())
            if self._unsent is None:
                return
            # Where the service is away, this very lease goes first when it is back.
            if not self._carrier.submit(self._unsent, f"{run_id}-{self._unsent.id}"):
                dispatch.used_up(self._unsent.id)
            self._unsent = None

    def _tell(self, dispatch: Dispatch, lease_id: str, why: str) -> None:
        lease = dispatch.out.get(lease_id)
        left = [s for s in lease.shards if not dispatch.is_done(s)] if lease else []
        if left and why:
            log = shard_log()
            for shard in left:
                log.retried(shard.name, why, 2)
            self._note(
                f"synthesize: {len(left)} shards from {left[0].name} on go to another worker: {why}"
            )

    def _need_workers(self, dispatch: Dispatch) -> None:
        """End the run where leases wait, none is at work, and no worker is there to take one."""
        now = time.monotonic()
        leases = dispatch.out.values()
        if any(lease.begun is not None or lease.id in self._starting for lease in leases):
            self._alone_since = None
            return
        if now - self._looked < min(5.0, self._patience.workers_seconds / 3):
            return
        self._looked = now
        there = self._try(self._carrier.workers)
        if there is None or there > 0:
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = now
            self._note("synthesize: no worker is there to draw the shards; waiting for one")
        elif now - self._alone_since >= self._patience.workers_seconds:
            raise self._carrier.missing_workers(now - self._alone_since)

    def _try(self, what: Callable[..., Any], *given: Any) -> Any:
        """Call the service; while it is away, wait for it: the workers may go on meanwhile."""
        try:
            answer = what(*given)
        except ConnectionError as error:
            now = time.monotonic()
            if self._away_since is None:
                self._away_since = now
                self._note(f"synthesize: {error}; waiting for it, finished shards stay")
            elif now - self._away_since > self._patience.service_seconds:
                raise StageError(
                    f"synthesize: {error}, for {now - self._away_since:.0f} s now; finished shards "
                    "stay, run the same flow again"
                ) from None
            return None
        if self._away_since is not None:
            self._note("synthesize: the service is back")
            self._away_since = None
        return answer


def run_id_of(folder: Path) -> str:
    """Return what tells these shards from those of another work folder; made once.

    A driver that goes on after a crash joins the leases that it sent before; one that begins anew,
    with `--force`, must not be told that they have ended.
    """
    path = folder / _RUN_ID
    if not path.exists():
        write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text(encoding="ascii")
