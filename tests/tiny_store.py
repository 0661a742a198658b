"""A prepared store of two kinds of stripes, 8 px, and params that train on it in seconds."""

import numpy as np

from pipeline.data.store import (
    UNLABELLED,
    concatenate,
    make_samples,
    read_samples,
)
from pipeline.data.store_writer import write_store
from pipeline.folders import write_manifest
from pipeline.params import PretrainParams, TrainParams
from pipeline.recipe.settings import Settings, write_settings
from pipeline.stages import pretrain, train
from pipeline.tracking.tracker import NullTracker

NETWORK = {
    "batch_images": 16,
    "base_channels": 8,
    "learning_rate": 3.0e-3,
    "warmup_steps": 5,
    "dropout": 0.1,
    "precision": "float32",
    "checkpoint_every_steps": 20,
}


def stripes(counts, split, seed):
    """Rows that are lit, or columns: one class each; more classes are other rows and columns."""
    labels = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (len(labels), 8, 8, 1))
    for label in range(len(counts)):
        lit = images[labels == label]
        if label % 2:
            lit[:, :, label // 2 :: 2] += 180
        else:
            lit[:, label // 2 :: 2] += 180
        images[labels == label] = lit
    return make_samples(images.astype(np.uint8), labels, split, "real")


def pool(count, seed=9):
    rows = stripes([count // 2, count - count // 2], "pool", seed)
    rows.labels[:] = UNLABELLED
    return rows


def parts():
    return [
        stripes([12, 3], "train", 0),
        stripes([6, 6], "validation", 1),
        stripes([4, 4], "test", 2),
    ]


def write_prepare(folder, rows, classes=("rows", "columns"), settings=None):
    """Write what prepare leaves: the store, the ids that a base may learn from, settings."""
    write_store(folder / "dataset", concatenate(rows), classes, 8, "L")
    known = read_samples(folder / "dataset", ("train", "pool"))
    (folder / "unlabelled_ids.txt").write_text("".join(f"{one}\n" for one in sorted(known.ids)))
    write_settings(folder, settings or Settings())
    write_manifest(folder, "prepare", "key", {}, {})
    return folder


def train_params(**changes):
    values = {
        "steps": 60,
        "checks": 3,
        "check_images": 16,
        "copy_limit": 1.0,
        "patience_checks": 0,
        "sheet_images_per_class": 2,
    }
    return TrainParams(**{**NETWORK, **values, **changes})


def pretrain_params(**changes):
    return PretrainParams(**{**NETWORK, "steps": 20, "sheet_images": 4, **changes})


def run_pretrain(root, tracker=None, out=None, **changes):
    inputs = {"prepare": root / "prepare"}
    params = pretrain_params(**changes)
    return pretrain.run(params, inputs, out or root / "pretrain", tracker or NullTracker())


def run_train(root, tracker=None, out=None, **changes):
    inputs = {"prepare": root / "prepare", "pretrain": root / "pretrain"}
    params = train_params(**changes)
    return train.run(params, inputs, out or root / "train", tracker or NullTracker())


def write_run(root, rows=None, classes=("rows", "columns"), base=None, **changes):
    """Write the folders prepare, pretrain and train of a run; return its folder."""
    write_prepare(root / "prepare", rows or parts(), classes)
    run_pretrain(root, **(base or {}))
    run_train(root, **changes)
    return root
