"""Boxes in images: each becomes an item, cut out when it is decoded; its group is the image."""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.decoding import Rejected
from pipeline.hashing import digest_json
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import LEADS_OUT, clean_path, path_fault
from pipeline.readers.rows import Kept, Rows
from pipeline.readers.source import Box, Crop, Files, Payload, Source

DEGENERATE = "box without area"
OUTSIDE = "box outside the image"
CROWD = "box around a crowd"
NO_BOX = "image without a box"
NO_CATEGORY = "unknown label"

_SLACK_PX = 1.0  # annotation tools round; what is further out is wrong


@dataclass(frozen=True)
class Boxes:
    """Contents that are parts of image files.

    Attributes:
        files: the image files.
        file_of: (N,) index into them.
        boxes: (N, 4) left, top, width, height in px; NaN where the whole image is the item.
    """

    files: Files
    file_of: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    _digests: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fetch(self, row: int) -> Payload | Rejected:
        """Return the file and the box, or the file alone."""
        found = self.files.fetch(int(self.file_of[row]))
        box = self._box(row)
        if box is None or not isinstance(found, bytes):
            return found
        return Crop(found, box)

    def digest(self, row: int) -> str:
        """Return what identifies file and box."""
        file = int(self.file_of[row])
        if file not in self._digests:
            self._digests.clear()  # the boxes of one image follow each other
            self._digests[file] = self.files.digest(file)
        return digest_json([self._digests[file], self._box(row)])

    def _box(self, row: int) -> Box | None:
        left, top, width, height = self.boxes[row].tolist()
        return None if math.isnan(left) else (left, top, width, height)


class BoxRows:
    """Grows the items of a source of boxes.

    Attributes:
        rows: receives them.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._paths: list[str] = []
        self._file_of = array("q")
        self._boxes = array("d")

    def file(self, path: str) -> int | None:
        """Return the number of an image file, or None and set it aside if its path leads out."""
        path = clean_path(path)
        fault = path_fault(path)
        if fault is not None:
            self.rows.count()
            self.rows.set_aside(path[:200], LEADS_OUT, fault)
            return None
        self._paths.append(path)
        return len(self._paths) - 1

    def add(
        self,
        file: int,
        mark: str,
        label: str | None,
        box: Box | None,
        size: tuple[float, float] | None,
        split: str | None,
        origin: str | None = None,
    ) -> None:
        """Keep a box, or set it aside.

        Args:
            file: number of its image.
            mark: what tells the boxes of the image apart; empty for the whole image.
            label: name of its class.
            box: None for the whole image.
            size: declared width and height of the image in px, if they are known.
            split: of the image.
            origin: of the image, see `Rows.add`.
        """
        path = self._paths[file]
        name = f"{path}#{mark}" if mark else path
        kept: Box | None = None
        if box is not None:
            clipped, reason = fit_box(box, size)
            if clipped is None:
                self.rows.count()
                shown = ", ".join(f"{value:g}" for value in box)
                sides = "" if size is None else f" in an image of {size[0]:g} x {size[1]:g}"
                self.rows.set_aside(name, reason, f"left, top, width, height {shown}{sides}")
                return
            kept = clipped
        if self.rows.add(name, label, split, group=path, origin=origin):
            self._file_of.append(file)
            self._boxes.extend(kept or (math.nan,) * 4)

    def source(self, root: Path, limits: ReadLimits) -> Source:
        """Return the source, its image files below `root`.

        Raises:
            InputError: see `Rows.source`.
        """
        files = Files(root, self._paths, limits.max_file_bytes)
        file_of = np.asarray(self._file_of, dtype=np.int64)
        boxes = np.asarray(self._boxes, dtype=np.float64).reshape(-1, 4)

        def contents(kept: Kept) -> Boxes:
            return Boxes(files, file_of[kept], boxes[kept])

        return self.rows.source(contents)


def fit_box(box: Box, size: tuple[float, float] | None) -> tuple[Box | None, str]:
    """Return the box within the image, or None and the reason.

    Up to one pixel over an edge is cut off; a side below one pixel is no box.
    """
    left, top, width, height = box
    if not all(map(math.isfinite, box)) or width < 1 or height < 1:
        return None, DEGENERATE
    right, bottom = left + width, top + height
    if left < -_SLACK_PX or top < -_SLACK_PX:
        return None, OUTSIDE
    left, top = max(0.0, left), max(0.0, top)
    if size is not None:
        if right > size[0] + _SLACK_PX or bottom > size[1] + _SLACK_PX:
            return None, OUTSIDE
        right, bottom = min(right, size[0]), min(bottom, size[1])
    if right - left < 1 or bottom - top < 1:
        return None, DEGENERATE
    return (left, top, right - left, bottom - top), ""
