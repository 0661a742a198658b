from dataclasses import replace

import numpy as np
import pytest

from pipeline.curation.curator import Curator
from pipeline.curation.selection import MOST_RULES, REASON_RULES, REASONS, RULES
from pipeline.data.store import concatenate, make_samples
from pipeline.errors import StageError


def short(samples):
    return [bytes.fromhex(identity)[:16] for identity in samples.ids]


def judge(curator, samples, parents=None):
    return curator.judge(samples.images, samples.labels, short(samples), parents)


def changed(samples, change):
    images = np.clip(np.round(change(samples.images.astype(float))), 0, 255).astype(np.uint8)
    return make_samples(images, samples.labels, "train", "synthetic")


@pytest.fixture
def curator(fitted):
    training, validation, ensemble = fitted
    return Curator(training, validation, ensemble, real_ids=training.ids + validation.ids)


def test_good_candidates_stay_and_their_scores_are_whole(curator, blobs):
    judged = judge(curator, blobs(200, 7))
    assert np.mean([reason == "accepted" for reason in judged.reasons]) > 0.88
    columns = judged.scores.columns()
    assert {len(values) for values in columns.values()} == {200}
    assert all(isinstance(v, int | float | str) for values in columns.values() for v in values)
    assert judged.features.shape == (200, 3 * 128)
    assert judged.fails.shape == (200, len(judged.rules))
    assert judged.failed() == dict(zip(judged.rules, judged.fails.sum(axis=0), strict=True))
    accepted = np.asarray([reason == "accepted" for reason in judged.reasons])
    assert (accepted == ~judged.fails.any(axis=1)).all()


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda image: image, {"repeat"}),
        (lambda image: image + 1, {"copy_ratio", "copy_distance", "near_copy"}),
        (lambda image: image[:, :, ::-1] * 0.8 + 20, {"near_copy"}),
        (lambda image: np.roll(image, 1, axis=1), {"near_copy", "copy_distance"}),
    ],
)
def test_copies_of_training_rows_are_told(curator, fitted, change, reasons):
    found = set(judge(curator, changed(fitted[0].take(np.arange(20)), change)).reasons)
    assert found <= reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda image: image / 20 + 100, "blank"),
        (lambda image: image * 40, "saturated"),
        (lambda image: np.random.default_rng(3).integers(0, 256, image.shape), "noisy"),
    ],
)
def test_artefacts_are_named(fitted, blobs, change, reason):
    training, validation, ensemble = fitted
    curator = Curator(training, validation, ensemble, rules=["artefacts"])
    assert set(judge(curator, changed(blobs(10, 8), change)).reasons) == {reason}


def test_another_class_is_seen_by_the_judges_and_in_features(fitted, blobs):
    training, validation, ensemble = fitted
    wrong = replace(blobs(100, 9), labels=1 - blobs(100, 9).labels)
    judged = judge(Curator(training, validation, ensemble), wrong)
    assert judged.reasons.count("disagrees") > 80
    alone = dict(zip(judged.rules, judged.fails.mean(axis=0), strict=True))
    assert alone["off_class"] > 0.5
    only = judge(Curator(training, validation, ensemble, rules=["off_class"]), wrong)
    assert set(only.reasons) <= {"off_class", "accepted"}


def test_near_identical_candidates_are_repeats_of_the_first(curator, blobs):
    first = blobs(40, 10)
    again = changed(first, lambda image: image * 0.95 + 4)
    kept = np.asarray([reason == "accepted" for reason in judge(curator, first).reasons])
    reasons = np.asarray(judge(curator, again).reasons)
    assert (reasons[kept] == "near_repeat").all()


def test_typical_rejects_the_middle_of_a_class_and_is_off_by_default(fitted, blobs):
    training, validation, ensemble = fitted
    assert "typical" not in MOST_RULES
    judged = judge(
        Curator(training, validation, ensemble, rules=["typical"], typical_share=0.3),
        blobs(200, 11),
    )
    gone = np.asarray(judged.reasons) == "typical"
    distance = judged.scores["support_distance"]
    assert 0.1 < gone.mean() < 0.5
    assert distance[gone].max() < distance[~gone].min()


@pytest.mark.parametrize("cut", [1, 13, 64])
def test_how_candidates_are_cut_into_shards_changes_nothing(fitted, blobs, cut):
    training, validation, ensemble = fitted
    fresh = blobs(60, 12)
    samples = concatenate([fresh, changed(fresh.take(np.arange(30)), lambda image: image + 3)])
    samples = samples.take(np.random.default_rng(0).permutation(90))
    whole = judge(Curator(training, validation, ensemble), samples)
    curator = Curator(training, validation, ensemble)
    parts = [
        judge(curator, samples.take(np.arange(i, min(90, i + cut)))) for i in range(0, 90, cut)
    ]
    assert [reason for part in parts for reason in part.reasons] == whole.reasons
    for name, values in whole.scores.values.items():
        found = np.concatenate([part.scores[name] for part in parts])
        if values.dtype.kind == "f":
            assert np.allclose(found, values, atol=2e-5)
        else:
            assert (found == values).all()


def test_an_edit_is_compared_with_the_other_rows_and_with_its_parent(fitted):
    training, validation, ensemble = fitted
    parents = np.arange(10)
    edits = changed(training.take(parents), lambda image: image + 2)
    judged = judge(Curator(training, validation, ensemble, rules=["copies"]), edits, parents)
    assert set(judged.reasons) == {"copy_parent"}
    assert all(
        judged.scores[name][i] != training.ids[i]
        for name in ("near_id", "nearest_id")
        for i in parents
    )
    near = judge(Curator(training, validation, ensemble, rules=["near_copies"]), edits, parents)
    assert near.reasons.count("accepted") >= 9


def test_without_rules_only_the_same_pixels_are_rejected(fitted, blobs):
    training, validation, ensemble = fitted
    curator = Curator(training, validation, ensemble, rules=[], real_ids=training.ids)
    noise = changed(blobs(5, 0), lambda image: np.random.default_rng(0).random(image.shape) * 255)
    samples = concatenate([noise, noise, training.take(np.arange(5))])
    assert judge(curator, samples).reasons == ["accepted"] * 5 + ["repeat"] * 10
    assert curator.rules_on_validation() == {}
    assert curator.real_cost == 0


def test_repeats_are_not_sought_where_nobody_asks(fitted, blobs, monkeypatch):
    training, validation, ensemble = fitted
    rules = MOST_RULES - {"repeats"}
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.curation.curator.Repeats.judge", None)
        curator = Curator(training, validation, ensemble, rules=rules)
        judged = judge(curator, blobs(40, 10))
    assert set(judged.scores["repeat_closeness"]) == {1}
    assert curator.thresholds.near_repeat == 0


def test_scores_of_a_candidate_stay_small_and_keep_six_decimals(curator, fitted, blobs):
    judged = judge(curator, blobs(50, 14))
    columns = judged.scores.values
    assert sum(values.nbytes for values in columns.values()) / 50 <= 80
    # Ids are the training rows' own strings, not copies of them.
    known = {id(one) for one in fitted[0].ids}
    assert {id(one) for one in columns["nearest_id"]} <= known
    plain = judged.scores.columns()
    for name in ("confidence", "pixel_distance", "near_closeness", "support_distance"):
        assert all(value == round(value, 6) for value in plain[name])
        assert plain[name] == pytest.approx(columns[name].tolist(), abs=1e-6)
    failed = np.asarray(plain["near_closeness"]) < curator.thresholds.near_copy
    assert (failed == judged.fails[:, judged.rules.index("near_copies")]).all()


def test_the_cost_in_real_rows_is_told_and_kept(curator, blobs):
    shares = curator.rules_on_validation()
    assert list(shares) == [rule for rule in RULES if rule in MOST_RULES]
    assert max(shares.values()) <= curator.real_cost <= min(sum(shares.values()), 0.03)
    limits = curator.thresholds.as_dict()
    assert {"confidence_0", "confidence_1", "near_copy", "typical_distance"} <= set(limits)
    assert all(isinstance(value, float) for value in limits.values())


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_few_or_no_validation_rows_are_made_up_for_by_training_rows(fitted, blobs, rows):
    training, validation, ensemble = fitted
    curator = Curator(training, validation.take(np.arange(rows)), ensemble)
    judged = judge(curator, blobs(100, 13))
    assert np.mean([reason == "accepted" for reason in judged.reasons]) > 0.6
    shares = curator.rules_on_validation()
    assert shares["realism"] == shares["off_class"] == 0 or rows >= 20
    copies = judge(curator, changed(training.take(np.arange(10)), lambda image: image + 1))
    assert "accepted" not in copies.reasons


def test_an_encoder_of_ones_own_is_used_and_constant_features_reject_nothing(fitted, blobs):
    training, validation, ensemble = fitted
    curator = Curator(
        training,
        validation,
        ensemble,
        lambda images: np.ones((len(images), 3), dtype=np.float32),
        ["realism", "off_class"],
    )
    judged = judge(curator, blobs(20, 14))
    assert judged.features.shape == (20, 3)
    assert set(judged.reasons) == {"accepted"}


def test_bad_input_is_refused_by_name(fitted, blobs):
    training, validation, ensemble = fitted

    def broken(images):
        return np.full((len(images), 3), np.nan, dtype=np.float32)

    with pytest.raises(StageError, match="realism: real features hold values that are not finite"):
        Curator(training, validation, ensemble, broken)
    with pytest.raises(StageError, match="unknown rule 'sharp'; known are copies, near_copies"):
        Curator(training, validation, ensemble, rules=["sharp"])
    with pytest.raises(StageError, match="fitted on 60 rows and there are 59"):
        Curator(training.take(np.arange(59)), validation, ensemble)


def test_an_empty_shard_is_judged(curator, blobs):
    judged = judge(curator, blobs(0, 0))
    assert judged.reasons == []
    assert len(judged.features) == 0


def test_every_reason_has_a_sentence_and_a_rule_or_needs_none():
    assert set(REASONS) == set(REASON_RULES) | {"accepted", "repeat", "surplus"}
    assert set(REASON_RULES.values()) == set(RULES)
