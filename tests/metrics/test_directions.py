"""What goes wrong with generators, and which metrics say so: on clusters that stand for images."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.metrics.table import LabelledFeatures, measure_table

COPYING = {"copy_share", "nearest_ratio", "authenticity", "closer_to_training"}
CLASSES, EACH, WIDTH = 3, 50, 8
CENTRES = 4 * np.eye(CLASSES, WIDTH)


def see(features, labels):
    """What a judge who knows the clusters says of these images."""
    gaps = ((features[:, None] - CENTRES) ** 2).sum(axis=2) / 2
    powers = np.exp(gaps.min(axis=1, keepdims=True) - gaps)
    shares = powers / powers.sum(axis=1, keepdims=True)
    return LabelledFeatures(features, features / 20, labels, shares)


def draw(seed):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    return see(CENTRES[labels] + random.normal(size=(len(labels), WIDTH)), labels)


TRAINING, HELDOUT, FRESH = draw(1), draw(2), draw(3)


def measure(fake):
    return {row.name: row for row in measure_table(TRAINING, HELDOUT, fake, "clusters", 0)}


@pytest.fixture(scope="module")
def fresh():
    return measure(FRESH)


def worse(found, fresh):
    """Name the metrics whose interval lies on the bad side of that of fresh images."""
    names = set()
    for name, row in found.items():
        best = fresh[name]
        below, above = row.high < best.low, row.low > best.high
        if {"low": above, "high": below, "middle": below or above}[row.better]:
            names.add(name)
        # No fault makes a metric better: but for what a fault of another kind buys.
        elif {"low": below, "high": above, "middle": False}[row.better]:
            names.add(f"{name} is better")
    return names


def test_fresh_images_reach_the_ceilings(fresh):
    for found in (fresh, measure(draw(4))):
        for row in found.values():
            low = row.ceiling if row.ceiling_low is None else row.ceiling_low
            high = row.ceiling if row.ceiling_high is None else row.ceiling_high
            if row.better != "low":
                assert row.high >= low, row
            if row.better != "high":
                assert row.low <= high, row
    assert {row.refusal for row in fresh.values()} == {None}
    # No copies: nothing in the interval speaks of any.
    assert fresh["copy_share"].value < 0.05
    row = fresh["closer_to_training"]
    assert row.low < 0.5 < row.high


def test_a_collapse_within_each_class_loses_variety_and_keeps_precision(fresh):
    small = CENTRES[FRESH.labels] + 0.3 * (FRESH.features - CENTRES[FRESH.labels])
    found = measure(see(small, FRESH.labels))
    names = worse(found, fresh)
    assert {"frechet_distance", "sliced_distance", "recall", "density", "vendi_score"} <= names
    assert not names & {"precision", "inception_score", "copy_share", "closer_to_training"}
    assert found["precision"].value > 0.95
    assert found["recall"].value < 0.1
    assert found["density"].low > 1  # crowded where real rows are dense
    for name in ("gaussian_distance", "class_kernel_distance"):  # not beyond chance, but upwards
        assert found[name].value > fresh[name].value, name


def test_a_collapse_onto_one_class_is_seen_by_the_inception_score(fresh):
    # The labels are those that were asked for; all images show the first class.
    shown = FRESH.features - CENTRES[FRESH.labels] + CENTRES[0]
    found = measure(see(shown, FRESH.labels))
    names = worse(found, fresh)
    assert {
        "inception_score",
        "vendi_score",
        "recall",
        "coverage",
        "frechet_distance",
        "kernel_distance",
        "class_kernel_distance",
        "sliced_distance",
    } <= names
    assert found["inception_score"].value < 1.2
    assert fresh["inception_score"].value > 2.5
    assert not names & {"precision", "copy_share", "closer_to_training"}


def test_copies_of_training_images_are_seen_by_the_metrics_of_copying_alone(fresh):
    random = np.random.default_rng(5)
    near = TRAINING.features + 0.02 * random.normal(size=TRAINING.features.shape)
    found = measure(see(near, TRAINING.labels))
    assert worse(found, fresh) == COPYING
    assert found["copy_share"].value > 0.99
    assert found["closer_to_training"].low > 0.9
    assert found["authenticity"].value < 0.01
    assert found["nearest_ratio"].high < 0.1
    # By all that is told of quality, copies are as good as it gets.
    for name in ("kernel_distance", "sliced_distance", "frechet_distance"):
        assert found[name].value == pytest.approx(found[name].ceiling, abs=0.1), name


def test_noise_lowers_precision_and_is_no_copying(fresh):
    random = np.random.default_rng(6)
    noisy = FRESH.features + 1.5 * random.normal(size=FRESH.features.shape)
    found = measure(see(noisy, FRESH.labels))
    names = worse(found, fresh)
    assert {
        "frechet_distance",
        "kernel_distance",
        "gaussian_distance",
        "sliced_distance",
        "precision",
        "density",
        "coverage",
        "vendi_score",
        "inception_score",
    } <= names
    assert found["class_kernel_distance"].value > fresh["class_kernel_distance"].value
    assert found["density"].high < 1
    assert not names & {"copy_share", "closer_to_training", "nearest_ratio", "authenticity"}


def test_more_noise_is_worse():
    random = np.random.default_rng(7)
    noise = random.normal(size=FRESH.features.shape)
    found = [measure(see(FRESH.features + sd * noise, FRESH.labels)) for sd in (0.5, 1.0, 2.0)]
    for name in ("frechet_distance", "class_kernel_distance", "sliced_distance"):
        values = [one[name].value for one in found]
        assert values == sorted(values), name
    for name in ("precision", "density", "coverage"):
        values = [one[name].value for one in found]
        assert values == sorted(values, reverse=True), name


def test_swapped_labels_are_seen_by_the_distance_by_class_alone(fresh):
    found = measure(replace(FRESH, labels=(FRESH.labels + 1) % CLASSES))
    assert worse(found, fresh) == {"class_kernel_distance"}
    row = found["class_kernel_distance"]
    assert row.low > row.ceiling_high
    # All that takes no account of labels keeps its value: the same images are there.
    for name in ("frechet_distance", "precision", "recall", "vendi_score", "copy_share"):
        assert found[name].value == pytest.approx(fresh[name].value), name
