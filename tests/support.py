"""What several test modules share."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.curation.curator import Judged
from pipeline.curation.scores import Scores


def make_scores(**columns):
    """Scores of candidates that look like good ones, but for the given columns."""
    count = len(next(iter(columns.values())))
    values = {
        "predicted": [1] * count,
        "confidence": [0.9] * count,
        "margin": [0.8] * count,
        "disagreement": [0.1] * count,
        "nearest_id": ["r"] * count,
        "pixel_distance": [0.2] * count,
        "pixel_ratio": [0.9] * count,
        "near_id": ["r"] * count,
        "near_residual": [0.4] * count,
        "near_closeness": [0.35] * count,
        "spread": [0.3] * count,
        "dark": [0.4] * count,
        "bright": [0.1] * count,
        "rough": [0.1] * count,
        "support_distance": [1.0] * count,
        "class_ratio": [0.8] * count,
        "repeat_closeness": [0.4] * count,
    }
    return Scores({name: np.asarray(column) for name, column in {**values, **columns}.items()})


def make_judged(scores, reasons, features=None, fails=None, rules=()):
    """What a curator would hand over of candidates with the given scores and reasons."""
    count = len(reasons)
    return Judged(
        scores,
        list(reasons),
        np.zeros((count, 1), np.float32) if features is None else features,
        np.zeros((count, len(rules)), dtype=bool) if fails is None else fails,
        tuple(rules),
    )


def need(path: Path, package: str) -> None:
    """Skip the test where a system package is missing; in CI, fail."""
    if not path.exists():
        message = f"{path} is missing: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
