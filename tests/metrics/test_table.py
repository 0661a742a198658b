import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import StageError
from pipeline.metrics import table as module
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.table import (
    LabelledFeatures,
    Measured,
    RowLosses,
    measure_table,
    same_shares,
    write_table,
)

QUALITY = [
    "frechet_distance",
    "kernel_distance",
    "gaussian_distance",
    "class_kernel_distance",
    "sliced_distance",
    "precision",
    "recall",
    "density",
    "coverage",
]
ALONE = ("inception_score", "vendi_score", "class_vendi_score")
COPYING = ["copy_share", "nearest_ratio", "authenticity"]


def draw(seed, counts=(30, 20, 10), width=6):
    """Clusters, one a class, with the probabilities that a good classifier would give."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    centres = 3 * np.eye(len(counts), width)
    features = centres[labels] + random.normal(size=(len(labels), width))
    gaps = ((features[:, None] - centres) ** 2).sum(axis=2) / 2
    powers = np.exp(gaps.min(axis=1, keepdims=True) - gaps)
    return LabelledFeatures(
        features, features / 10, labels, powers / powers.sum(axis=1, keepdims=True)
    )


def by_name(rows):
    return {row.name: row for row in rows}


def measure(training, heldout, fake, **changes):
    return by_name(measure_table(training, heldout, fake, "clusters", 0, **changes))


def test_fresh_images_of_the_same_source_reach_the_ceiling():
    found = measure(draw(1), draw(2), draw(3))
    assert list(found) == [*QUALITY, *ALONE, *COPYING, "closer_to_training"]
    for row in found.values():
        assert row.low <= row.value <= row.high, row.name
        low, high = row.ceiling_low or row.ceiling, row.ceiling_high or row.ceiling
        assert row.low <= high, row.name
        assert low <= row.high, row.name
        assert row.refusal is None
        assert row.n_fake == 60
    assert {found[name].n_real for name in QUALITY} == {60}
    assert {found[name].n_real for name in ALONE} == {0}


def test_the_ceiling_of_quality_is_the_value_of_training_rows():
    training, heldout = draw(1), draw(2)
    found = measure(training, heldout, training)
    for name in QUALITY:
        assert found[name].value == pytest.approx(found[name].ceiling, abs=1e-9), name


def test_the_ceiling_of_copying_and_of_single_sets_is_the_value_of_heldout_rows():
    training, heldout = draw(1), draw(2)
    found = measure(training, heldout, heldout)
    for name in (*ALONE, *COPYING):
        assert found[name].value == pytest.approx(found[name].ceiling), name
    assert found["closer_to_training"].ceiling == 0.5
    assert found["closer_to_training"].ceiling_low is None


def test_a_value_is_the_metric_on_the_rows_that_were_drawn():
    sets = draw(1, (40, 30, 5)), draw(2, (20, 30, 9)), draw(3, (25, 10, 0))
    few_training, few_heldout, few_fake = same_shares(sets, 0)
    found = measure(*sets)["frechet_distance"]
    assert (found.n_real, found.n_fake) == (30, 30)
    expected = frechet_distance(few_heldout.features, few_fake.features)
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    best = frechet_distance(few_heldout.features, few_training.features)
    assert found.ceiling == pytest.approx(best.value)


def test_the_same_number_of_each_class_is_drawn_and_no_row_twice():
    sets = draw(1, (40, 30, 5)), draw(2, (20, 30, 9)), draw(3, (25, 10, 7))
    drawn = same_shares(sets, 0)
    for rows, source in zip(drawn, sets, strict=True):
        assert rows.labels.tolist() == [0] * 20 + [1] * 10 + [2] * 5
        assert len({row.tobytes() for row in rows.features}) == 35
        known = {row.tobytes(): i for i, row in enumerate(source.features)}
        for i, row in enumerate(rows.features):  # pixels and labels go with their features
            j = known[row.tobytes()]
            assert source.labels[j] == rows.labels[i]
            assert np.array_equal(source.pixels[j], rows.pixels[i])
    again, other = same_shares(sets, 0), same_shares(sets, 1)
    assert np.array_equal(drawn[0].features, again[0].features)
    assert not np.array_equal(drawn[0].features, other[0].features)


def test_many_rows_are_cut_to_the_limit_in_the_same_shares():
    sets = draw(1, (60, 31, 9)), draw(2, (70, 40, 10))
    few = same_shares(sets, 0, most=50)
    assert [np.bincount(rows.labels).tolist() for rows in few] == [[30, 16, 4]] * 2


def test_copies_are_looked_for_among_all_training_rows(monkeypatch):
    training, heldout = draw(1, (200, 150, 50), 16), draw(2, (15, 10, 5), 16)
    copied = np.concatenate([np.flatnonzero(training.labels == k)[-5:] for k in range(3)])
    found = measure(training, heldout, training.take(copied))
    for name, value in (("copy_share", 1), ("authenticity", 0), ("nearest_ratio", 0)):
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        assert (found[name].n_real, found[name].n_fake) == (400, 15)
        assert abs(found[name].ceiling - value) > 0.3
    monkeypatch.setattr(module, "MOST_TRAINING_ROWS", 100)
    assert measure(training, heldout, training.take(copied))["copy_share"].n_real == 100


def test_too_few_rows_get_a_refusal_and_no_number():
    found = measure(draw(1, (2, 2)), draw(2, (2, 2)), draw(3, (2, 2)))
    row = found["frechet_distance"]
    assert row.refusal == "frechet_distance: 4 real rows; it needs at least 20"
    assert (row.value, row.low, row.high, row.ceiling, row.ceiling_low) == (None,) * 5
    assert (row.n_real, row.n_fake) == (4, 4)
    assert (
        "4 fake rows" in found["nearest_ratio"].refusal
        or "4 real" in found["nearest_ratio"].refusal
    )
    assert found["kernel_distance"].refusal is None  # four are enough for this one
    for name in ("precision", "recall", "density", "coverage"):
        assert "4 real rows; it needs at least" in found[name].refusal


def test_without_any_fake_image_every_row_is_a_refusal():
    found = measure(draw(1), draw(2), draw(3).take(np.zeros(0, dtype=np.int64)))
    assert all(row.refusal and row.value is None for row in found.values())
    assert "needs at least" in found["copy_share"].refusal


def test_what_was_not_given_is_not_measured():
    training, heldout, fake = (replace(draw(s), probabilities=None) for s in (1, 2, 3))
    found = measure(training, heldout, fake)
    assert "inception_score" not in found
    assert not any(name.startswith("membership") for name in found)


def test_an_attack_stands_beside_chance():
    random = np.random.default_rng(0)
    sets = draw(1), draw(2), draw(3)
    few = measure(*sets, losses=RowLosses(random.normal(size=50) - 2, random.normal(size=60)))
    row = few["membership_auc"]
    assert (row.n_real, row.n_fake, row.ceiling, row.better) == (60, 50, 0.5, "middle")
    assert row.low > 0.5
    assert few["membership_tpr"].refusal == (
        "tpr_at_fpr: 60 non-member losses; it needs at least 1,000"
    )
    many = measure(*sets, losses=RowLosses(random.normal(size=100), random.normal(size=1000)))
    row = many["membership_tpr"]
    assert row.ceiling == 0.01
    assert row.value < 0.1


def test_the_scale_of_the_features_matters_to_the_frechet_distance_alone():
    sets = draw(1), draw(2), draw(3)
    one = measure(*sets)
    large = measure(*(replace(rows, features=1000 * rows.features) for rows in sets))
    assert large["frechet_distance"].value == pytest.approx(1e6 * one["frechet_distance"].value)
    for name in (*QUALITY[1:], *COPYING, "closer_to_training"):
        assert large[name].value == pytest.approx(one[name].value), name


def test_the_same_seed_gives_the_same_table():
    sets = draw(1, (40, 30, 20)), draw(2), draw(3)
    one, same, other = (measure_table(*sets, "clusters", seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_rows_go_to_json_and_back():
    rows = measure_table(draw(1, (4, 4)), draw(2, (4, 4)), draw(3, (4, 4)), "clusters", 0)
    back = [
        Measured.model_validate(one)
        for one in json.loads(json.dumps([r.model_dump() for r in rows]))
    ]
    assert back == rows
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Measured.model_validate({**rows[0].model_dump(), "spread": 1.0})
    with pytest.raises(ValidationError, match="finite number"):
        Measured.model_validate({**rows[1].model_dump(), "value": float("nan")})


def test_the_table_is_a_csv_with_empty_fields_for_what_there_is_not(tmp_path):
    rows = measure_table(draw(1, (6, 6)), draw(2, (6, 6)), draw(3, (6, 6)), "clusters", 0)
    write_table(tmp_path / "quality.csv", rows)
    with (tmp_path / "quality.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(Measured.model_fields)
    assert [one["name"] for one in read] == [row.name for row in rows]
    for one, row in zip(read, rows, strict=True):
        assert one["refusal"] == (row.refusal or "")
        if row.value is None:
            assert one["value"] == one["ceiling"] == ""
        else:
            assert float(one["value"]) == pytest.approx(row.value, rel=1e-5)
    assert {one["value"] == "" for one in read} == {True, False}


def test_sets_that_do_not_fit_are_refused():
    rows = draw(1)
    with pytest.raises(StageError, match="quality: 60 rows of pixels, but 59 labels"):
        LabelledFeatures(rows.features[:59], rows.pixels, rows.labels[:59])
    with pytest.raises(StageError, match="quality: 3 rows of probabilities, but 60 labels"):
        replace(rows, probabilities=np.ones((3, 2)))
    with pytest.raises(StageError, match="not all finite; look for broken images"):
        replace(rows, features=np.where(rows.features > 2, np.nan, rows.features))
    with pytest.raises(StageError, match=r"features of \[6, 7\] columns; take all from one"):
        measure_table(rows, draw(2, width=7), rows, "clusters", 0)
