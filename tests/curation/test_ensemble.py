import numpy as np
import pytest
import torch

from pipeline.errors import StageError
from pipeline.features.judge import draw_folds, fit_ensemble, fit_judge

CPU = torch.device("cpu")


def fit(training, folds=3, steps=4, classes=2, seed=0):
    return fit_ensemble(training, classes, steps, folds, seed, CPU, lambda step: None)


def test_folds_are_stratified_and_keep_groups_whole(blobs):
    groups = [f"{i % 3}-{i // 6}" for i in range(60)]
    training = blobs(60, 0, classes=3, groups=groups)
    folds = draw_folds(training, 4, 0)
    for label in range(3):
        sizes = np.bincount(folds[training.labels == label], minlength=4)
        assert sizes.max() - sizes.min() <= 2  # one group of two rows
    for group in set(groups):
        assert len({folds[i] for i in range(60) if groups[i] == group}) == 1
    assert (draw_folds(training, 4, 0) == folds).all()
    assert (draw_folds(training, 4, 1) != folds).any()


def test_classes_of_few_rows_do_not_all_fall_into_the_same_folds(blobs):
    folds = draw_folds(blobs(6, 0, classes=3), 5, 0)
    assert len(set(folds.tolist())) == 5


def test_no_judge_has_seen_the_rows_whose_probabilities_are_out_of_fold(blobs, monkeypatch):
    seen = []

    def note(training, *rest):
        seen.append(training.ids)
        return fit_judge(training, *rest)

    monkeypatch.setattr("pipeline.features.judge.fit_judge", note)
    training = blobs(20, 0)
    ensemble = fit(training)
    for row, fold in enumerate(ensemble.folds):
        assert training.ids[row] not in seen[fold]
        assert sum(training.ids[row] in ids for ids in seen) == 2


def test_the_judges_learn_and_their_mean_is_what_they_predict(fitted):
    training, validation, ensemble = fitted
    looked = ensemble.look(validation.images)
    assert looked.members.shape == (3, 120, 2)
    assert np.allclose(looked.members.mean(axis=0), ensemble.predict(validation.images))
    assert np.allclose(looked.probabilities.sum(axis=1), 1)
    assert (looked.probabilities.argmax(axis=1) == validation.labels).mean() > 0.95
    assert (ensemble.out_of_fold.argmax(axis=1) == training.labels).mean() > 0.9
    assert looked.features.shape == (120, 3 * 128)
    assert (looked.features == ensemble.embed(validation.images)).all()


def test_a_score_does_not_depend_on_its_company(fitted):
    _, validation, ensemble = fitted
    whole = ensemble.look(validation.images[:50])
    for part in (slice(0, 1), slice(3, 40), slice(49, 50)):
        alone = ensemble.look(validation.images[:50][part])
        assert np.allclose(alone.members, whole.members[:, part], atol=1e-6)
        assert np.allclose(alone.features, whole.features[part], atol=1e-5)


def test_the_same_seed_gives_the_same_judges(blobs):
    one, two = fit(blobs(12, 0)), fit(blobs(12, 0))
    assert (one.out_of_fold == two.out_of_fold).all()


def test_a_class_of_one_row_is_seen_by_all_judges(blobs):
    training = blobs(13, 0, classes=2)
    training = training.take(np.flatnonzero((training.labels == 0) | (np.arange(13) == 1)))
    ensemble = fit(training, steps=30)
    lone = int(np.flatnonzero(training.labels == 1)[0])
    assert ensemble.out_of_fold[lone, 1] > 0.5
    assert np.allclose(ensemble.out_of_fold.sum(axis=1), 1)


def test_steps_are_counted_over_all_judges(blobs):
    steps = []
    fit_ensemble(blobs(8, 0), 2, 3, 2, 0, CPU, steps.append)
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("folds", "rows"), [(1, 8), (2, 0)])
def test_too_few_folds_or_rows_are_refused(blobs, folds, rows):
    training = blobs(8, 0).take(np.arange(rows))
    with pytest.raises(StageError, match=f"judge: {folds} folds of {rows} training rows"):
        fit(training, folds=folds)


def test_the_judge_is_the_same_every_time(blobs):
    one, two = (fit_judge(blobs(12, 0), 2, 5, 3, CPU, lambda step: None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
