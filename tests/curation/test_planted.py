"""Bad candidates planted among real images that nobody has seen: what is caught, and at what cost.

Limits and designs were settled on other seeds than those that are asserted here. A repeat counts
where what it repeats was kept: else it is the first of its kind.
"""

from functools import cache

import numpy as np
import pytest
import torch
from curation.planted import FASHION, KINDS, digits, fashion
from support import need

from pipeline.curation.curator import Curator
from pipeline.data.store import make_samples
from pipeline.features.judge import fit_ensemble
from pipeline.params import DEFAULT_FILTERS

STEPS = 250
FOLDS = 3

pytestmark = pytest.mark.slow

SETS = {"digits": digits, "fashion": fashion}
SEEDS = (40, 41)


def rejected(name, seed):
    """Return the share of each kind that the default rules reject."""
    planted = SETS[name](seed)
    ensemble = fit_ensemble(
        planted.training, 10, STEPS, FOLDS, seed, torch.device("cpu"), lambda step: None
    )
    real_ids = planted.training.ids + planted.validation.ids
    curator = Curator(
        planted.training, planted.validation, ensemble, rules=DEFAULT_FILTERS, real_ids=real_ids
    )
    ids = make_samples(planted.images, planted.labels, "train", "synthetic").ids
    judged = curator.judge(
        planted.images, planted.labels, [bytes.fromhex(identity) for identity in ids]
    )
    gone = np.asarray([reason != "accepted" for reason in judged.reasons])
    counted = (planted.sources < 0) | ~gone[planted.sources]
    return {
        kind: gone[(planted.kinds == number) & counted].mean() for number, kind in enumerate(KINDS)
    }


@pytest.fixture(scope="module")
def shares():
    """Judges each set and seed once, and returns what was rejected."""
    return cache(rejected)


@pytest.fixture(params=SETS)
def name(request):
    if request.param == "fashion":
        need(FASHION, "dataset-fashion-mnist")
    return request.param


@pytest.mark.parametrize("seed", SEEDS)
def test_no_copy_and_no_noise_ever_passes(shares, name, seed):
    found = shares(name, seed)
    assert found["copy"] == 1
    assert found["noise"] == 1


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("near", {"digits": 0.95, "fashion": 0.95}),
        ("repeat", {"digits": 0.95, "fashion": 0.95}),
        # The goal is 0.9 on both. Judges of 409 pieces of clothing, 10 of the rarest class, are as
        # unsure of some real pullovers as of a shirt that is given as one: about a sixth passes.
        ("other", {"digits": 0.9, "fashion": 0.8}),
    ],
)
def test_most_of_what_was_planted_is_caught(shares, name, kind, least):
    assert np.mean([shares(name, seed)[kind] for seed in SEEDS]) >= least[name]


def test_good_images_stay(shares, name):
    assert np.mean([shares(name, seed)["good"] for seed in SEEDS]) <= 0.05
