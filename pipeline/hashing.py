"""Content digests: bytes, pixels, files, folders, plain data."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK_BYTES = 1 << 20
_SORTED_ROWS = 1 << 10
# Made once: `json.dumps` makes one for each call, which is half of its time.
_PLAIN_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def digest_bytes(*parts: bytes) -> str:
    """Return the sha256 of the parts, each preceded by its length, as 64 hex digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of plain data, whatever the order of its keys."""
    return digest_bytes(_PLAIN_JSON.encode(value).encode())


def digest_lines(lines: Iterable[str]) -> str:
    """Return the digest of a set of lines, whatever their order."""
    return digest_bytes("\n".join(sorted(lines)).encode())


def digest_sorted(digests: bytes) -> str:
    """Return what `digest_lines` makes of the hex digits of many sha256, given 32 bytes each."""
    rows = np.sort(np.frombuffer(digests, dtype="S32"))
    state = hashlib.sha256()
    state.update(max(0, 65 * len(rows) - 1).to_bytes(8, "big"))
    for start in range(0, len(rows), _SORTED_ROWS):
        # numpy drops the zero bytes at the end of a value; the buffer has them.
        part = rows[start : start + _SORTED_ROWS].tobytes()
        lines = "\n".join(part[i : i + 32].hex() for i in range(0, len(part), 32))
        state.update(("\n" + lines if start else lines).encode())
    return state.hexdigest()


def digest_pixels(image: npt.NDArray[np.uint8]) -> str:
    """Return the identity of an image: the digest of its shape and its (H, W, C) uint8 pixels."""
    return digest_bytes(repr(image.shape).encode(), np.ascontiguousarray(image).tobytes())


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, as `sha256sum` prints it."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """Return relative POSIX path -> sha256 for every file below `folder`, in sorted order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}
