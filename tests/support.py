"""What several test modules share."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.curation.scores import Scores


def make_scores(**columns):
    """Scores of candidates that pass every rule, but for the given columns."""
    count = len(next(iter(columns.values())))
    values = {
        "predicted": [1] * count,
        "confidence": [0.9] * count,
        "margin": [0.8] * count,
        "nearest_id": ["r"] * count,
        "pixel_distance": [0.2] * count,
        "pixel_ratio": [0.9] * count,
        "feature_nearest_id": ["r"] * count,
        "feature_distance": [1.0] * count,
    }
    arrays = {**values, **columns}
    return Scores(
        **{k: tuple(v) if k.endswith("_id") else np.asarray(v) for k, v in arrays.items()}
    )


def need(path: Path, package: str) -> None:
    """Skip the test where a system package is missing; in CI, fail."""
    if not path.exists():
        message = f"{path} is missing: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
