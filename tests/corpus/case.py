"""What a malformed input is: something real, damaged in one way, and what must become of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from readers.fixtures import digits

from pipeline.readers.digits import read_digits
from pipeline.readers.source import Pixels

# quarantine: the item is set aside by name, with a reason, and the good rows are kept
# kept: nothing is wrong with the item once it is made harmless, and it is read
# either: the damage may or may not show, as a flipped bit of a pixel
# error: the source as a whole is refused, by one InputError that names the thing
Outcome = Literal["quarantine", "kept", "either", "error"]

FIRST_UNUSED = 100  # of the digits: the good rows are all before it


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        name: unique in the corpus.
        base: the good set that is damaged: a key of `running.BASES`.
        build: damages the set in the folder that it is given; returns the item's name as it would
            stand in the quarantine, or for a set of its own what is to be read (None: the set's
            own path).
        expects: what must become of it.
        says: the reason of the quarantine, or a part of the error.
        rows: rows that are kept beside the good ones; None: one if it is kept, else none.
    """

    name: str
    base: str
    build: Callable[[Path], str | Path | None]
    expects: Outcome
    says: str = ""
    rows: int | None = None

    @property
    def more(self) -> int:
        """Rows beside the good ones; of `either` it cannot be told."""
        return int(self.expects == "kept") if self.rows is None else self.rows

    @property
    def shared(self) -> bool:
        """May other cases lie in the same copy of the set?"""
        return self.base in SHARED


# Sets into which many cases put one bad item each; all others have a copy for each case.
SHARED = frozenset(
    {
        "image folder",
        "odd names",
        "table rows",
        "json rows",
        "image cells",
        "tar members",
        "coco items",
        "voc files",
        "npz rows",
    }
)


def digit(number: int) -> np.ndarray:
    """Return (8, 8) uint8, a real image that is in no good set; the same for the same number."""
    return _digits()[FIRST_UNUSED + number]


@cache
def _digits() -> np.ndarray:
    contents = read_digits().contents
    assert isinstance(contents, Pixels)
    return contents.images[:, :, :, 0]


def picture(seed: int, side_px: int = 24, channels: int = 3) -> Image.Image:
    """Return a real digit, enlarged and with seeded noise, so that its file has a middle."""
    random = np.random.default_rng(seed)
    large = np.kron(digit(seed), np.ones((side_px // 8, side_px // 8)))
    noise = random.integers(-20, 21, (side_px, side_px, channels))
    pixels = (large[:, :, None] + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def put(root: Path, name: str, data: bytes) -> str:
    """Write a file below the set; return its name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file; what JSON does not know (NaN) may be written."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def good_pixels() -> np.ndarray:
    """Return (40, 8, 8, 1) uint8: the rows that must survive every case."""
    return digits()[0]
