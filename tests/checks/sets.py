"""Small sets to be examined."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.checks.examined import Examined
from pipeline.checks.facts import look, measure
from pipeline.data.images import Images
from pipeline.hashing import digest_pixels


def examined(images: Images, labels: Sequence[int] | None = None, **changes: Any) -> Examined:
    count = len(images)
    given = np.zeros(count, dtype=np.int64) if labels is None else np.asarray(labels, np.int64)
    settings: dict[str, Any] = {
        "names": [f"{row}.png" for row in range(count)],
        "labels": given,
        "classes": tuple("abcdefghij"[: int(given.max(initial=0)) + 1]),
        "splits": (None,) * count,
        "groups": (),
        "ids": [digest_pixels(image) for image in images],
        "facts": measure([look(image) for image in images]),
        "images": lambda rows: images[rows],
        **changes,
    }
    return Examined(**settings)


def blobs(count: int, side: int = 28, seed: int = 0, channels: int = 1) -> Images:
    """Smooth random pictures, each unlike the others."""
    random = np.random.default_rng(seed)
    small = random.random((count, 7, 7, channels))
    grown = small.repeat(side // 7, axis=1).repeat(side // 7, axis=2)
    for axis in (1, 2):
        grown = (np.roll(grown, 1, axis) + 2 * grown + np.roll(grown, -1, axis)) / 4
    return (40 + 180 * grown).astype(np.uint8)
