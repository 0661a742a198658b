"""Candidates of known quality: real images never seen, and bad ones planted among them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from pipeline.data.images import Images
from pipeline.data.splits import stratified_split, thin_to_long_tail
from pipeline.data.store import Samples, make_samples
from pipeline.readers.idx_files import find_idx, read_idx

FASHION = Path("/usr/share/datasets/fashion-mnist")
KINDS = ("good", "copy", "near", "other", "noise", "repeat")


@dataclass(frozen=True)
class Planted:
    """Rows to fit on, and candidates with what each one is.

    Attributes:
        training: thinned rows.
        validation: held-out rows.
        images: (N, H, W, C) uint8 candidates.
        labels: (N,) that they are meant to show.
        kinds: (N,) index into `KINDS`.
        ways: what was done to each near copy and repeat; empty for the others.
        sources: (N,) candidate that a repeat repeats; -1 for the others.
    """

    training: Samples
    validation: Samples
    images: Images
    labels: np.ndarray
    kinds: np.ndarray
    ways: list[str]
    sources: np.ndarray


def digits(seed: int, good: int = 700) -> Planted:
    found = load_digits()
    images = np.floor(found.images * 255 / 16 + 0.5).astype(np.uint8)[..., None]
    return _plant(images, found.target.astype(np.int64), seed, 0.15, (60, 6), good)


def fashion(seed: int, good: int = 1000) -> Planted:
    images = read_idx(find_idx(FASHION, "train", "images", 3), 3)
    labels = read_idx(find_idx(FASHION, "train", "labels", 1), 1).astype(np.int64)
    rows = np.random.default_rng(seed).permutation(len(labels))[:6000]
    return _plant(images[rows][..., None], labels[rows], seed, 0.1, (100, 10), good)


def _plant(images, labels, seed, validation_share, tail, good_count) -> Planted:
    random = np.random.default_rng([seed, 1])
    samples = make_samples(images, labels, "train", "real")
    sides = np.asarray(stratified_split(labels, samples.groups, 0.25, validation_share, seed))
    rows = np.flatnonzero(sides == "train")
    kept, left = thin_to_long_tail(labels, samples.groups, rows, *tail, seed)
    training, validation = samples.take(kept), samples.take(sides == "validation")
    pool = random.permutation(left)[:good_count]
    good, good_labels = images[pool], labels[pool]
    planted = max(20, round(0.05 * len(pool)))
    parts = [(good, good_labels, "good", [""] * len(pool))]

    rows = random.choice(len(training), planted)
    parts.append((training.images[rows], training.labels[rows], "copy", [""] * planted))

    rows = random.choice(len(training), planted)
    made = [disturb(training.images[row], random, i) for i, row in enumerate(rows)]
    parts.append(
        (np.stack([m[0] for m in made]), training.labels[rows], "near", [m[1] for m in made])
    )

    others = random.permutation(np.setdiff1d(left, pool))
    others = others[:planted] if len(others) >= planted else random.choice(pool, planted)
    wrong = (labels[others] + random.integers(1, labels.max() + 1, planted)) % (labels.max() + 1)
    parts.append((images[others], wrong, "other", [""] * planted))

    noise = random.integers(0, 256, (planted, *images.shape[1:])).astype(np.uint8)
    parts.append((noise, random.integers(0, labels.max() + 1, planted), "noise", [""] * planted))

    rows = random.choice(len(pool), planted, replace=False)
    made = [repeat(good[row], random, i) for i, row in enumerate(rows)]
    parts.append(
        (np.stack([m[0] for m in made]), good_labels[rows], "repeat", [m[1] for m in made])
    )

    kinds = np.concatenate([np.full(len(p[0]), KINDS.index(p[2])) for p in parts])
    # Repeats come after what they repeat; all else is mixed.
    first = random.permutation(np.flatnonzero(kinds != KINDS.index("repeat")))
    order = np.concatenate([first, np.flatnonzero(kinds == KINDS.index("repeat"))])
    ways = [way for part in parts for way in part[3]]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    sources = np.concatenate([np.full(len(order) - planted, -1), place[rows]])
    return Planted(
        training,
        validation,
        np.concatenate([p[0] for p in parts])[order],
        np.concatenate([p[1] for p in parts])[order],
        kinds[order],
        [ways[i] for i in order],
        sources[order],
    )


def shift(image, down, right):
    """Move an image, its border repeated."""
    reach = 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width, _ = image.shape
    return padded[reach - down :, reach - right :][:height, :width]


def disturb(image, random, turn):
    """A near copy: one of shift, noise, flip, intensity and their combinations, in turn."""
    way = ("shift", "noise", "flip", "intensity", "shift+noise", "flip+shift", "flip+noise")[
        turn % 7
    ]
    values = image
    if "flip" in way:
        values = values[:, ::-1]
    if "shift" in way:
        # An eighth of the image is the most: 1 px of 8, 2 px of 28.
        most = 1 if image.shape[0] <= 8 else 2
        steps = [(d, r) for d in range(-most, most + 1) for r in range(-most, most + 1) if d or r]
        values = shift(values, *steps[random.integers(len(steps))])
    values = values.astype(np.float64)
    if "noise" in way:
        values = values + random.normal(0.0, random.uniform(4, 20), values.shape)
    if "intensity" in way:
        values = values * random.uniform(0.7, 1.2) + random.uniform(-20, 20)
    return np.clip(np.round(values), 0, 255).astype(np.uint8), way


def repeat(image, random, turn):
    """A near-identical repeat: faint noise, a little brighter or darker, or moved by 1 px."""
    way = ("noise", "intensity", "shift")[turn % 3]
    values = image.astype(np.float64)
    if way == "noise":
        values = values + random.normal(0.0, 5.0, values.shape)
    if way == "intensity":
        values = values * random.uniform(0.85, 1.1) + random.uniform(-8, 8)
    if way == "shift":
        values = shift(image, *[(0, 1), (1, 0), (0, -1), (-1, 0)][random.integers(4)]).astype(float)
    return np.clip(np.round(values), 0, 255).astype(np.uint8), way
