"""What every reader yields: named, labelled items whose images are fetched one at a time.

A reader reads names and labels, and no pixel. The images come from `Contents`, which is small
enough to be sent to a worker process, where they are read and decoded.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import FILE_TOO_LARGE, UNREADABLE, Rejected, read_file
from pipeline.data.images import Images
from pipeline.hashing import digest_pixels
from pipeline.readers.naming import LEADS_OUT

Box = tuple[float, float, float, float]  # left, top, width, height, in px of the decoded image


@dataclass(frozen=True)
class Crop:
    """A part of an image.

    Attributes:
        of: the bytes of the file.
        box: left, top, width, height in px, as the image is stored upright.
    """

    of: bytes
    box: Box


NO_FILE = "no file"
_LINK = "a link that leads elsewhere; put the file itself there"

# The bytes of a file to decode, a part of it, or pixels: (H, W, C) uint8 with C = 1 or 3.
Payload = bytes | Crop | Images


@runtime_checkable
class Contents(Protocol):
    """The images of a source, by row. Picklable; a file is opened in the process that reads."""

    def fetch(self, row: int) -> Payload | Rejected:
        """Return the image of a row, undecoded; what cannot be had is `Rejected`, never raised."""
        ...

    def digest(self, row: int) -> str:
        """Return what identifies the image's content, for the stage's key; cheap, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An item that is set aside.

    Attributes:
        file: name relative to the source, printable.
        reason: stable category, for counting.
        detail: what was found in this very item.
    """

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Source:
    """What a source yields: N items.

    Attributes:
        classes: class names; a label is an index into them. A pool has none.
        names: printable name of each item, relative to the source; each once.
        labels: (N,) int64, `UNLABELLED` in a pool.
        given: split of each item (train, validation, test) where the source decides it, else None.
        contents: the images.
        groups: group of each item (patient, scene) where the source names it, else None; empty
            where no item has one.
        times: time of each item, sortable as text, where the source tells it; else empty.
        masks: image of each item's mask, where the source has masks; else None.
        texts: caption of each item where the source has them; else empty.
        quarantine: what was set aside while listing.
        conversions: what was converted while reading -> number of items.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    given: tuple[str | None, ...]
    contents: Contents
    groups: tuple[str | None, ...] = ()
    times: tuple[str | None, ...] = ()
    masks: Contents | None = None
    texts: tuple[str | None, ...] = ()
    quarantine: tuple[Quarantined, ...] = ()
    conversions: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.names)


@dataclass(frozen=True)
class Files:
    """Contents of image files below one folder.

    Links are followed only to what lies inside the folder, looked at here, where the file is read.

    Attributes:
        root: the folder.
        paths: relative to it, without `..`, of each item; empty where an item has none.
        max_bytes: files above it are not read, and count by their size alone in the digest.
    """

    root: Path
    paths: Sequence[str]
    max_bytes: int
    _folders: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fetch(self, row: int) -> Payload | Rejected:
        """Return the bytes of the file, or why there are none."""
        path = self.paths[row]
        if not path:
            return Rejected(NO_FILE, "the row names none")
        whole = f"{self.root}/{path}"  # a Path for each of a million files takes its time
        return (
            read_file(whole, self.max_bytes)
            if self._inside(path, whole)
            else Rejected(LEADS_OUT, _LINK)
        )

    def digest(self, row: int) -> str:
        """Return the file's sha256, or its size where it is too large to be read."""
        found = self.fetch(row)
        if isinstance(found, bytes):
            return hashlib.sha256(found).hexdigest()
        if isinstance(found, Rejected):
            return found.detail if found.reason == FILE_TOO_LARGE else found.reason
        return UNREADABLE

    def _inside(self, path: str, whole: str) -> bool:
        # The links of a folder are looked at once, those of a file every time.
        folder = path.rpartition("/")[0]
        inside = self._folders.get(folder)
        try:
            if inside is None:
                root = self.root.resolve()
                inside = self._folders[folder] = (root / folder).resolve().is_relative_to(root)
            return inside and (
                not os.path.islink(whole)  # noqa: PTH114
                or Path(whole).resolve().is_relative_to(self.root.resolve())
            )
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a ring of links
            return False


@dataclass(frozen=True)
class Pixels:
    """Contents that lie in memory: (N, H, W, C) uint8."""

    images: Images

    def fetch(self, row: int) -> Payload | Rejected:
        """Return (H, W, C) uint8."""
        image: Images = self.images[row]
        return image

    def digest(self, row: int) -> str:
        """Return the digest of the pixels."""
        return digest_pixels(self.images[row])
