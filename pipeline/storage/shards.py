"""Sampled shards at a URL, where workers on several machines write them and the driver reads them.

A shard is `<name>.safetensors`, written first, and `<name>.sha256`, the sha256 of its bytes: one
without the side-car is unfinished. The names and bytes are those of shards in a local folder.
"""

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import InputError
from pipeline.hashing import digest_bytes
from pipeline.storage import transfers
from pipeline.storage.locations import Location

Images = npt.NDArray[np.uint8]

DATA, SIDE = ".safetensors", ".sha256"
_SHARD_BYTES = 4 << 30
_SIDE_BYTES = 1 << 10


class StoredShards:
    """Shards at a URL, by name."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def write(self, name: str, images: Images) -> None:
        """Keep a shard's candidates, (size, H, W, C) uint8; a second writer changes nothing.

        Raises:
            InputError: no name of a shard; no rights, or no such bucket.
            StageError: the store fails.
        """
        data = pack_images(images)
        for ending, part in ((DATA, data), (SIDE, digest_bytes(data).encode())):
            transfers.write(self._location, self._path(name, ending), part)

    def read(self, name: str) -> Images | None:
        """Return the candidates, or None where the shard is absent, unfinished or damaged.

        Raises:
            InputError: no name of a shard; no rights.
            StageError: the store fails, or the object is too large for a shard.
        """
        # The side-car first: it is small, and there is none for most of what is asked for.
        stated = transfers.read(self._location, self._path(name, SIDE), _SIDE_BYTES)
        if stated is None:
            return None
        data = transfers.read(self._location, self._path(name, DATA), _SHARD_BYTES)
        return None if data is None else unpack_images(data, stated)

    def names(self) -> set[str]:
        """Return the names of the finished shards, by one listing; `read` tells of damage."""
        files = set(transfers.listing(self._location))
        names = {file.removesuffix(SIDE) for file in files if file.endswith(SIDE)}
        return {name for name in names if f"{name}{DATA}" in files}

    def _path(self, name: str, ending: str) -> str:
        if not name.replace("-", "").isalnum() or not name.isascii():
            raise InputError(f"{name!r}: not the name of a shard; use letters, digits and hyphens")
        return self._location.path(f"{name}{ending}")


def pack_images(images: Images) -> bytes:
    """Return the bytes of a shard's file."""
    return save({"images": np.ascontiguousarray(images)})


def unpack_images(data: bytes, stated: bytes) -> Images | None:
    """Return the images of a shard's bytes; None where their sha256 is not the one `stated`."""
    if digest_bytes(data).encode() != stated:
        return None
    try:
        images: Images = load(data)["images"]
    except (SafetensorError, KeyError):
        return None
    return images
