"""The artifacts of a run, wherever they are: stages work on a local folder in any case.

With a URL that folder is a mirror in the user's cache: what a stage reads is fetched before it
runs, what it made is sent afterwards. What is interrupted goes on from the mirror.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from pipeline.errors import InputError, StageError
from pipeline.folders import MANIFEST, WORK, write_bytes
from pipeline.hashing import digest_bytes, digest_file
from pipeline.params import SECTIONS
from pipeline.storage.locations import Location, is_url, open_location
from pipeline.storage.locks import RunLock, hold
from pipeline.storage.mirror import fetch_stage, read_record, send_stage

Note = Callable[[str], None]


@dataclass(frozen=True)
class Artifacts:
    """Artifacts that a run works on.

    Attributes:
        folder: local folder of the stages' folders.
        location: what it mirrors; None for a folder that stands for itself.
        lock: of the location, where this process is the one that sends.
    """

    folder: Path
    location: Location | None = None
    lock: RunLock | None = None

    def fetch(self, names: Iterable[str], note: Note) -> None:
        """Bring stage folders down that the location has in another state.

        A folder that was finished here, but not sent because a run was interrupted, is sent
        instead, unless the location's has changed since.

        Raises:
            InputError: no rights.
            StageError: an object is damaged, or the store fails.
        """
        if self.location is None or self.lock is None:
            return
        for name in names:
            stored = read_record(self.location, name)
            here = _digest(self.folder / name)
            known = self._known(name)
            if here is not None and here != known and (stored.digest if stored else "") == known:
                self.send(name, note)
            elif stored is not None and stored.digest != here:
                note(f"{name}: fetching {self.location.shown(name)}")
                self._remember(name, fetch_stage(self.location, name, self.folder / name))
            elif stored is not None:
                fetch_stage(self.location, name, self.folder / name)  # files that were deleted

    def send(self, name: str, note: Note) -> None:
        """Send a finished stage folder, as far as the location lacks it.

        Raises:
            InputError: no rights.
            StageError: another run has taken the location over, or the store fails.
        """
        if self.location is None or self.lock is None:
            return
        if _digest(self.folder / name) != self._known(name):
            note(f"{name}: sending to {self.location.shown(name)}")
        record = send_stage(self.folder / name, self.location, name, self.lock.check)
        self._remember(name, record)

    def _known(self, name: str) -> str:
        """Return the digest of the manifest when folder and location last agreed, or nothing."""
        try:
            return self._mark(name).read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""

    def _remember(self, name: str, record: object) -> None:
        if record is not None:
            digest = _digest(self.folder / name) or ""
            write_bytes(self._mark(name), digest.encode("ascii"))

    def _mark(self, name: str) -> Path:
        return self.folder / WORK / f"{name}.stored"


@contextmanager
def open_artifacts(where: str, cache: Path | None = None) -> Iterator[Artifacts]:
    """Open the artifacts at a folder's path or a URL for a run; a URL is locked meanwhile.

    Of processes that work together (`accelerate launch`) the leader locks, fetches and sends.

    Args:
        where: path or URL.
        cache: folder of the mirrors of URLs; None for the user's cache folder.

    Raises:
        InputError: the URL cannot be used, or another run is at work there; or the processes that
            work together are on several machines.
        StageError: the store fails.
    """
    if not is_url(where):
        yield Artifacts(Path(where))
        return
    location = open_location(where)
    folder = mirror_folder(location, cache)
    if not _leads(location):
        yield Artifacts(folder, location)
        return
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / WORK / "mirror.lock").acquire(timeout=0))
        except Timeout:
            raise InputError(
                f"{location.url}: another run on this machine is at work there; wait for it, or "
                "give this run its own --artifacts"
            ) from None
        yield Artifacts(folder, location, stack.enter_context(hold(location)))


def _leads(location: Location) -> bool:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > int(os.environ.get("LOCAL_WORLD_SIZE", size)):
        raise InputError(
            f"{location.url}: processes on several machines read one local folder; give "
            "--artifacts a folder that they share, then `replenish send` it"
        )
    return size == 1 or os.environ.get("RANK", "0") == "0"


def mirror_folder(location: Location, cache: Path | None = None) -> Path:
    """Return the local folder that mirrors a location."""
    root = cache_root() if cache is None else cache.absolute()
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", location.url)[-60:].strip("-.")
    return root / f"{readable}-{digest_bytes(location.url.encode())[:12]}"


def cache_root() -> Path:
    """Return the user's cache folder of mirrors; it may be deleted when no run is at work."""
    return user_cache_path("replenish", appauthor=False) / "artifacts"


def fetch_all(location: Location, folder: Path) -> tuple[list[str], list[str]]:
    """Fetch all finished stages of a location below `folder`.

    Returns:
        Names of the stages, and one line for each that is damaged.

    Raises:
        InputError: no rights, or no finished stage there.
    """
    fetched: list[str] = []
    problems: list[str] = []
    for name in SECTIONS:
        try:
            if fetch_stage(location, name, folder / name) is not None:
                fetched.append(name)
        except StageError as error:
            problems.append(str(error))
    if not fetched and not problems:
        raise InputError(f"{location.url}: holds no finished stage; give the URL of a run")
    return fetched, problems


def _digest(folder: Path) -> str | None:
    path = folder / MANIFEST
    return digest_file(path) if path.is_file() else None
