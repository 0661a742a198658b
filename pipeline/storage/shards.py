"""Sampled shards where workers on several machines write them, and the driver reads them.

A shard is `<name>.safetensors`, written first, and `<name>.sha256`, the sha256 of its bytes: one
without the side-car is unfinished. The names and bytes are those of shards in a local folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import InputError
from pipeline.folders import safe_join, write_bytes
from pipeline.hashing import digest_bytes
from pipeline.storage import transfers
from pipeline.storage.locations import Location, is_url, open_location

Images = npt.NDArray[np.uint8]

_DATA, _SIDE = ".safetensors", ".sha256"
_SHARD_BYTES = 4 << 30
_SIDE_BYTES = 1 << 10


class ShardStore(Protocol):
    """Keeps sampled shards by name."""

    def write(self, name: str, images: Images) -> None:
        """Keep a shard's candidates, (size, H, W, C) uint8; a second writer changes nothing."""
        ...

    def read(self, name: str) -> Images | None:
        """Return the candidates, or None where the shard is absent, unfinished or damaged."""
        ...

    def names(self) -> set[str]:
        """Return the names of the finished shards; whether they are damaged, `read` tells."""
        ...


class FolderShards:
    """Shards in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, images: Images) -> None:
        """Keep a shard's candidates; see `ShardStore`."""
        _write(name, images, lambda file, data: write_bytes(safe_join(self._folder, file), data))

    def read(self, name: str) -> Images | None:
        """Return the candidates, or None; see `ShardStore`."""

        def load_file(file: str, limit_bytes: int) -> bytes | None:
            path = safe_join(self._folder, file)
            if not path.is_file() or path.stat().st_size > limit_bytes:
                return None
            return path.read_bytes()

        return _read(name, load_file)

    def names(self) -> set[str]:
        """Return the names of the finished shards."""
        if not self._folder.is_dir():
            return set()
        return _finished({path.name for path in self._folder.iterdir()})


class StoredShards:
    """Shards at a URL."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def write(self, name: str, images: Images) -> None:
        """Keep a shard's candidates; see `ShardStore`.

        Raises:
            InputError: no rights, or no such bucket.
            StageError: the store fails.
        """
        _write(
            name,
            images,
            lambda file, data: transfers.write(self._location, self._location.path(file), data),
        )

    def read(self, name: str) -> Images | None:
        """Return the candidates, or None; see `ShardStore`.

        Raises:
            InputError: no rights.
            StageError: the store fails, or the object is too large for a shard.
        """
        return _read(
            name,
            lambda file, limit_bytes: transfers.read(
                self._location, self._location.path(file), limit_bytes
            ),
        )

    def names(self) -> set[str]:
        """Return the names of the finished shards, by one listing."""
        return _finished(set(transfers.listing(self._location)))


def open_shards(where: str) -> ShardStore:
    """Return the shards at a folder's path or a URL.

    Raises:
        InputError: the URL cannot be used; see `pipeline.storage.locations.open_location`.
    """
    return StoredShards(open_location(where)) if is_url(where) else FolderShards(Path(where))


def pack_images(images: Images) -> bytes:
    """Return the bytes of a shard's file."""
    return save({"images": np.ascontiguousarray(images)})


def unpack_images(data: bytes, stated: str) -> Images | None:
    """Return the images of a shard's bytes; None where their sha256 is not the one `stated`."""
    if digest_bytes(data) != stated:
        return None
    try:
        images: Images = load(data)["images"]
    except (SafetensorError, KeyError):
        return None
    return images


def _write(name: str, images: Images, put: Callable[[str, bytes], None]) -> None:
    _check(name)
    data = pack_images(images)
    put(f"{name}{_DATA}", data)
    put(f"{name}{_SIDE}", digest_bytes(data).encode())


def _read(name: str, get: Callable[[str, int], bytes | None]) -> Images | None:
    _check(name)
    # The side-car first: it is small, and there is none for most of what is asked for.
    stated = get(f"{name}{_SIDE}", _SIDE_BYTES)
    data = None if stated is None else get(f"{name}{_DATA}", _SHARD_BYTES)
    if stated is None or data is None:
        return None
    return unpack_images(data, stated.decode("ascii", errors="replace"))


def _finished(files: set[str]) -> set[str]:
    names = {file.removesuffix(_SIDE) for file in files if file.endswith(_SIDE)}
    return {name for name in names if f"{name}{_DATA}" in files}


def _check(name: str) -> None:
    if not name.replace("-", "").isalnum() or not name.isascii():
        raise InputError(f"{name!r}: not the name of a shard; use letters, digits and hyphens")
