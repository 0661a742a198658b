"""Where a driver and its workers elsewhere meet: the job, the beats of leases, finished shards.

That is a folder under one path on all machines, or a URL of a store that all of them reach. At a
URL a worker draws into a folder of its own and hands each shard over, its side-car last; the driver
brings what is new into its own folder. A generator is sent once, under its digest.

    RUN/job.json, recipe-0.safetensors, beats/LEASE, class-0000-shard-000000.safetensors, .sha256
    generators/DIGEST/files.json, ...      of all runs that share the URL
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from filelock import FileLock
from platformdirs import user_cache_path

from pipeline.errors import InputError, StageError
from pipeline.folders import replace_folder, safe_join, write_bytes
from pipeline.hashing import digest_folder, digest_json
from pipeline.storage import transfers
from pipeline.storage.locations import Location, is_url, open_location
from pipeline.storage.shards import SIDE, StoredShards
from pipeline.synthesis.job_files import JOB, read_job, write_job
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.shards import Shard, read_shard, write_shard

BEATS = "beats"

_GENERATORS, _FILES = "generators", "files.json"
_JOB_BYTES = 1 << 26
_ARRAYS_BYTES = 4 << 30
_GENERATOR_FILES = 100
_BEAT_BYTES = 1 << 10


class Space(Protocol):
    """A meeting place of one job."""

    @property
    def where(self) -> str:
        """Return what workers are told: the folder or URL."""
        ...

    def publish(self, job: ShardJob) -> None:
        """Put the job there, for workers to read."""
        ...

    def finished(self) -> set[str]:
        """Return the names of the shards that are there, sound or not."""
        ...

    def bring(self, shard: Shard) -> bool:
        """Bring a finished shard into the driver's folder; say whether it is sound."""
        ...

    def beat(self, lease: str) -> bytes | None:
        """Return the last beat of a lease."""
        ...

    def clear(self) -> None:
        """Leave nothing of the job there."""
        ...

    def is_wanted(self) -> bool:
        """Say whether the driver is still at it."""
        ...

    def give_beat(self, lease: str, number: int) -> None:
        """Say that the worker of a lease lives."""
        ...

    def open_job(self) -> AbstractContextManager[tuple[ShardJob, Path]]:
        """Give the job, and the folder to draw into, to a worker."""
        ...

    def give(self, shard: Shard, folder: Path) -> None:
        """Hand over a shard that a worker has drawn into its folder."""
        ...


def open_space(where: str) -> Space:
    """Return the space at a folder's path or a URL, for a worker.

    Raises:
        InputError: the URL cannot be used.
    """
    if not is_url(where):
        return FolderSpace(Path(where))
    shared, _, run = where.rpartition("/")
    return UrlSpace(open_location(shared), run, Path())


class FolderSpace:
    """A folder that driver and workers share; shards are drawn where the driver wants them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        """Return the folder's path."""
        return str(self._folder)

    def publish(self, job: ShardJob) -> None:
        """See Space."""
        (self._folder / BEATS).mkdir(parents=True, exist_ok=True)  # workers make no folder
        write_job(self._folder, job)

    def finished(self) -> set[str]:
        """See Space."""
        try:
            with os.scandir(self._folder) as listing:
                return {e.name.removesuffix(SIDE) for e in listing if e.name.endswith(SIDE)}
        except OSError:
            return set()  # a share that is away for a moment

    def bring(self, shard: Shard) -> bool:
        """See Space."""
        return read_shard(self._folder, shard) is not None

    def beat(self, lease: str) -> bytes | None:
        """See Space."""
        try:
            return (self._folder / BEATS / lease).read_bytes()
        except OSError:
            return None

    def clear(self) -> None:
        """See Space; the folder is the stage's, which removes it."""

    def is_wanted(self) -> bool:
        """See Space."""
        # A driver that is through has moved the folder: nothing must be written where it was.
        return (self._folder / JOB).exists()

    def give_beat(self, lease: str, number: int) -> None:
        """See Space."""
        write_bytes(self._folder / BEATS / lease, str(number).encode(), make_folder=False)

    @contextmanager
    def open_job(self) -> Iterator[tuple[ShardJob, Path]]:
        """See Space.

        Raises:
            InputError: the job is missing or damaged.
        """
        yield read_job(self._folder), self._folder

    def give(self, shard: Shard, folder: Path) -> None:
        """See Space; it is there already."""


@dataclass
class UrlSpace:
    """A run's part of a URL that several runs may share.

    Attributes:
        shared: the URL.
        run: name of the part.
        folder: the driver's, where shards are brought to; of no use to a worker.
    """

    shared: Location
    run: str
    folder: Path

    @property
    def where(self) -> str:
        """Return the URL of the run's part."""
        return self.shared.shown(self.run)

    def publish(self, job: ShardJob) -> None:
        """See Space.

        Raises:
            InputError: no rights, or no such bucket.
            StageError: the store fails.
        """
        for recipe in job.recipes:
            self._send_generator(recipe.generator, recipe.digest)
        with tempfile.TemporaryDirectory(prefix="replenish-") as name:
            folder = Path(name)
            # Where the generator lies on the driver's machine is nobody else's business.
            recipes = tuple(replace(one, generator=Path(one.digest)) for one in job.recipes)
            write_job(folder, replace(job, recipes=recipes))
            for path in sorted(folder.iterdir(), key=lambda one: one.name == JOB):  # that last
                self._write(path.read_bytes(), path.name)

    def finished(self) -> set[str]:
        """See Space."""
        return self._shards.names()

    def bring(self, shard: Shard) -> bool:
        """See Space."""
        images = self._shards.read(shard.name)
        if images is not None:
            write_shard(self.folder, shard, images)
        return images is not None

    def beat(self, lease: str) -> bytes | None:
        """See Space."""
        return self._read(_BEAT_BYTES, BEATS, lease)

    def clear(self) -> None:
        """See Space; generators stay for the next run."""
        # The job first: workers that are still at it see that nobody wants it any more.
        transfers.remove(self.shared, [self.shared.path(self.run, JOB)])
        for parts in ((self.run, BEATS), (self.run,)):
            names = transfers.listing(self.shared, *parts)
            transfers.remove(self.shared, [self.shared.path(*parts, name) for name in names])

    def is_wanted(self) -> bool:
        """See Space."""
        return self._read(_JOB_BYTES, JOB) is not None

    def give_beat(self, lease: str, number: int) -> None:
        """See Space."""
        self._write(str(number).encode(), BEATS, lease)

    @contextmanager
    def open_job(self) -> Iterator[tuple[ShardJob, Path]]:
        """See Space.

        Raises:
            InputError: the job or its generator is missing, damaged or was changed.
        """
        with tempfile.TemporaryDirectory(prefix="replenish-") as name:
            folder = Path(name)
            for file in transfers.listing(self.shared, self.run):
                if file == JOB or file.startswith("recipe-"):
                    data = self._read(_JOB_BYTES if file == JOB else _ARRAYS_BYTES, file)
                    write_bytes(safe_join(folder, file), data or b"")
            job = read_job(folder)
            recipes = tuple(
                replace(one, generator=self._fetch_generator(one.digest)) for one in job.recipes
            )
            yield replace(job, recipes=recipes), folder

    def give(self, shard: Shard, folder: Path) -> None:
        """See Space."""
        images = read_shard(folder, shard)
        if images is None:
            raise StageError(f"{folder / shard.name}: damaged on this worker's disk")
        self._shards.write(shard.name, images)

    @cached_property
    def _shards(self) -> StoredShards:
        return StoredShards(replace(self.shared, url=self.where, root=self.shared.path(self.run)))

    def _read(self, most_bytes: int, *parts: str) -> bytes | None:
        return transfers.read(self.shared, self.shared.path(self.run, *parts), most_bytes)

    def _write(self, data: bytes, *parts: str) -> None:
        transfers.write(self.shared, self.shared.path(self.run, *parts), data)

    def _send_generator(self, folder: Path, digest: str) -> None:
        base = (_GENERATORS, digest)
        if _FILES in transfers.listing(self.shared, *base):
            return
        files = digest_folder(folder)
        if digest_json(files) != digest:
            raise StageError(f"{folder}: was replaced by another run; run again")
        pairs = [(folder / name, self.shared.path(*base, name)) for name in files]
        transfers.send_files(self.shared, pairs)
        # Last: the list is what says that all of it is there.
        transfers.write(self.shared, self.shared.path(*base, _FILES), json.dumps(files).encode())

    def _fetch_generator(self, digest: str) -> Path:
        target = user_cache_path("replenish") / _GENERATORS / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.is_dir():
                self._download(digest, target)
        return target

    def _download(self, digest: str, target: Path) -> None:
        base = (_GENERATORS, digest)
        listed = transfers.read(self.shared, self.shared.path(*base, _FILES), _JOB_BYTES)
        where = self.shared.shown(*base)
        try:
            files = json.loads(listed or b"null")
            sound = digest_json(files) == digest and 0 < len(files) <= _GENERATOR_FILES
        except (ValueError, TypeError):
            sound = False
        if not sound:
            raise InputError(f"{where}: no whole generator; run the flow again, which sends it")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as name:
            folder = Path(name) / digest
            pairs = [(self.shared.path(*base, file), safe_join(folder, file)) for file in files]
            for _, path in pairs:
                path.parent.mkdir(parents=True, exist_ok=True)
            transfers.fetch_files(self.shared, pairs, [1 << 26] * len(pairs))
            if digest_folder(folder) != files:
                raise InputError(f"{where}: its files are not those it lists; run the flow again")
            replace_folder(folder, target)
