import numpy as np
import pytest
import torch

from pipeline.curation.scores import Scorer
from pipeline.data.store import make_samples
from pipeline.features.judge import fit_judge

CPU = torch.device("cpu")


def halves(count, seed, noise=40):
    """Class 0 is bright on the left, class 1 on the right."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = random.integers(0, noise, (count, 8, 8, 1))
    images[labels == 0, :, :4] += 180
    images[labels == 1, :, 4:] += 180
    return make_samples(images.astype(np.uint8), labels, "train", "real")


@pytest.fixture(scope="module")
def scorer():
    training = halves(24, seed=0)
    return Scorer(fit_judge(training, 2, 40, 0, CPU, lambda step: None), training), training


def test_the_judge_tells_the_classes_and_doubts_swapped_labels(scorer):
    fresh = halves(20, seed=1)
    right = scorer[0].score(fresh.images, fresh.labels)
    wrong = scorer[0].score(fresh.images, 1 - fresh.labels)
    assert (right.predicted == fresh.labels).all()
    assert right.confidence.min() > 0.5 > wrong.confidence.max()
    assert np.allclose(right.margin, -wrong.margin)


def test_copies_lie_nearer_than_fresh_draws_and_are_named(scorer):
    training = scorer[1]
    copies = scorer[0].score(training.images[:5], training.labels[:5])
    fresh = scorer[0].score(halves(10, seed=2).images, halves(10, seed=2).labels)
    assert copies.nearest_id == training.ids[:5]
    assert copies.feature_nearest_id == training.ids[:5]
    assert copies.pixel_ratio.max() < 1e-3 < 1 / 3 < fresh.pixel_ratio.min()
    assert copies.pixel_distance.max() < fresh.pixel_distance.min()


def test_columns_are_plain_values_of_equal_length(scorer):
    columns = scorer[0].score(scorer[1].images[:3], scorer[1].labels[:3]).columns()
    assert {len(values) for values in columns.values()} == {3}
    assert all(isinstance(v, int | float | str) for values in columns.values() for v in values)


def test_an_edit_is_measured_against_its_parent_and_against_the_others(scorer):
    training, parents = scorer[1], np.arange(5)
    edits = (training.images[:5] // 2).astype(np.uint8)
    found = scorer[0].score(edits, training.labels[:5], parents)
    assert all(
        found.nearest_id[i] != training.ids[i] and found.feature_nearest_id[i] != training.ids[i]
        for i in range(5)
    )
    unchanged = scorer[0].score(training.images[:5], training.labels[:5], parents)
    assert unchanged.parent_distance.max() == 0
    assert unchanged.pixel_ratio.min() > 1 / 3  # no copy of another row
    assert "parent_distance" in found.columns()
    assert "parent_distance" not in scorer[0].score(edits, training.labels[:5]).columns()


def test_the_judge_is_the_same_every_time():
    training = halves(12, seed=0)
    one, two = (fit_judge(training, 2, 5, 3, CPU, lambda step: None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
