"""Features that were computed once on this machine are read the next time.

They lie in `features/` beside the machine's own file in the user's cache folder
(`~/.cache/replenish` on Linux), one safetensors file for an encoder and a set of images; delete
them at any time.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.data.images import Images
from pipeline.features.frozen import Encoder, Features
from pipeline.folders import write_bytes
from pipeline.hashing import digest_bytes, digest_pixels
from pipeline.machine import cache_file

LIMIT_BYTES = 2 << 30
_ROWS, _CHECKSUM = "features", "sha256"


def cached(encoder: Encoder, images: Images, limit_bytes: int = LIMIT_BYTES) -> Features:
    """Return (N, D) float32 features of (N, H, W, C) uint8 images, computed only when new.

    The key is the digest of the encoder's digest and of each image's pixels, in order. A file
    that is damaged, or that cannot be written, costs a computation and nothing else.

    Args:
        encoder: what makes the features.
        images: of which.
        limit_bytes: size of the whole folder above which the files that were used longest ago
            are removed.

    Raises:
        InputError: images of another shape or type (`Encoder.embed`).
    """
    path = _folder() / f"{_key(encoder, images)}.safetensors"
    found = _read(path, (len(images), encoder.width))
    if found is not None:
        return found
    features = np.ascontiguousarray(encoder.embed(images), dtype=np.float32)
    if features.nbytes <= limit_bytes:
        try:
            write_bytes(path, save({_ROWS: features}, {_CHECKSUM: _checksum(features)}))
            _shrink(path.parent, limit_bytes)
        except OSError:
            pass  # a full disk or a read-only home: computed again the next time
    return features


def _folder() -> Path:
    return cache_file().parent / "features"


def _key(encoder: Encoder, images: Images) -> str:
    # Image by image: the bytes of all at once would be a second copy of them.
    return digest_bytes(encoder.digest.encode(), *(digest_pixels(one).encode() for one in images))


def _checksum(features: Features) -> str:
    return hashlib.sha256(features.data).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Features | None:
    """Return the features in a file, or None where there are none or they are damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            features: Features = file.get_tensor(_ROWS)
            checksum = (file.metadata() or {}).get(_CHECKSUM)
        if (
            features.shape != shape
            or features.dtype != np.float32
            or checksum != _checksum(features)
        ):
            return None
        os.utime(path)  # used now: the last to be removed
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
    return features


def _shrink(folder: Path, limit_bytes: int) -> None:
    """Remove the files used longest ago until the rest fits; leftovers of killed runs as well."""
    files: list[tuple[int, int, Path]] = []
    for path in folder.iterdir():
        try:
            facts = path.stat()
        except FileNotFoundError:  # another process was faster
            continue
        files.append((facts.st_mtime_ns, facts.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
