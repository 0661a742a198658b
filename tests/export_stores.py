"""Small stores with synthetic rows, hostile class names and a pool, to be given away."""

import numpy as np

from pipeline.data.store import UNLABELLED, concatenate, make_samples
from pipeline.data.store_writer import write_store

CLASSES = ("cat", "=HYPERLINK(1)", "con")
SIDE = 8


def rows(count, split, seed, origin="real", channels=1, **extra):
    """Return `count` random images, whose classes alternate."""
    shape = (count, SIDE, SIDE, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(count) % len(CLASSES)
    if split == "pool":
        labels[:] = UNLABELLED
    columns = {
        "generator": ["g" * 64 if origin == "synthetic" else None] * count,
        "index": [i if origin == "synthetic" else None for i in range(count)],
        "parent_id": [None] * (count - 1) + ["p" * 64 if origin == "synthetic" else None],
        "score": [-0.5 if i % 2 else float("nan") for i in range(count)],
        "sampling_weight": [0.25] * count,
    }
    return make_samples(images, labels, split, origin, extra={**columns, **extra})


def parts(channels=1):
    return [
        rows(9, "train", 0, channels=channels),
        rows(5, "train", 1, "synthetic", channels=channels),
        rows(4, "validation", 2, channels=channels),
        rows(5, "test", 3, channels=channels),
        rows(3, "pool", 4, channels=channels),
    ]


def write(folder, some, mode="L", rows_per_shard=6):
    return write_store(folder, concatenate(some), CLASSES, SIDE, mode, rows_per_shard)
