"""Bad candidates planted among real images that nobody has seen: what is caught, and at what cost.

Limits and designs were settled on other seeds than those that are asserted here. A repeat counts
where what it repeats was kept: else it is the first of its kind.
"""

import numpy as np
import pytest
import torch
from curation.planted import FASHION, KINDS, digits, fashion
from support import need

from pipeline.curation.curator import Curator
from pipeline.data.store import make_samples
from pipeline.features.judge import fit_ensemble

STEPS = 250
FOLDS = 3


def rejected(planted, seed):
    """Return the share of each kind that the default rules reject."""
    ensemble = fit_ensemble(
        planted.training, 10, STEPS, FOLDS, seed, torch.device("cpu"), lambda step: None
    )
    real_ids = planted.training.ids + planted.validation.ids
    curator = Curator(planted.training, planted.validation, ensemble, real_ids=real_ids)
    ids = make_samples(planted.images, planted.labels, "train", "synthetic").ids
    judged = curator.judge(
        planted.images, planted.labels, [bytes.fromhex(identity) for identity in ids]
    )
    gone = np.asarray([reason != "accepted" for reason in judged.reasons])
    counted = (planted.sources < 0) | ~gone[planted.sources]
    return {
        kind: gone[(planted.kinds == number) & counted].mean() for number, kind in enumerate(KINDS)
    }


@pytest.mark.slow
def test_on_thinned_digits():
    shares = [rejected(digits(seed), seed) for seed in (20, 21, 22)]
    mean = {kind: np.mean([share[kind] for share in shares]) for kind in KINDS}
    assert mean["copy"] == 1
    assert mean["noise"] == 1
    assert mean["near"] >= 0.95
    assert mean["repeat"] >= 0.95
    assert mean["other"] >= 0.9
    assert mean["good"] <= 0.05


@pytest.mark.slow
def test_on_thinned_fashion_mnist():
    need(FASHION, "dataset-fashion-mnist")
    share = rejected(fashion(20), 20)
    assert share["copy"] == 1
    assert share["noise"] == 1
    assert share["near"] >= 0.95
    assert share["repeat"] >= 0.95
    assert share["good"] <= 0.05
    # Judges of 409 rows are right on four of five images: a shirt given as a pullover passes.
    assert share["other"] >= 0.7
