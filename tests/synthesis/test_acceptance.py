"""Is a student as good as its teacher? With planted images instead of networks."""

import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_store import stripes, train_params

from pipeline.diffusion.checkpoints import GeneratorSpec, StudentSpec, save_student
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError
from pipeline.params import EvaluateParams, SynthesizeParams
from pipeline.synthesis import acceptance as module
from pipeline.synthesis.acceptance import decide, examine_student, paired_difference
from pipeline.synthesis.settings import choose_generator
from pipeline.tracking.tracker import NullTracker

CPU = torch.device("cpu")
SPEC = GeneratorSpec(("rows", "columns"), 8, "L", "cosine", "velocity", False, "", None)
TAUGHT = StudentSpec("progressive", "ddim", (999, 249), 1.5, (8, 4), 10, "d")
NEAR = (0.2, 0.2)  # kernel distances of a student that is as good as its teacher
TRAINING, VALIDATION = stripes([20, 4], "train", 0), stripes([10, 10], "validation", 1)


def good(labels):
    counts = np.bincount(labels, minlength=2)
    made = stripes(counts, "train", 5)
    assert np.array_equal(made.labels, labels)
    return made.images


def wrong(labels):
    """Images of the other class."""
    return good(labels)[::-1]


def copies(labels):
    """Training images over and over."""
    return np.concatenate(
        [
            np.resize(TRAINING.images[TRAINING.labels == label], ((labels == label).sum(), 8, 8, 1))
            for label in (0, 1)
        ]
    )


@pytest.fixture
def compare(monkeypatch):
    """Return `compare(teacher, student)`: the account of two functions labels -> images."""
    asked = []

    def draw(model, weaker, spec, labels, settings, seed, purpose, device):
        asked.append((settings.sampler, settings.steps, settings.guidance.weight, seed, purpose))
        return model(labels)

    monkeypatch.setattr(module, "draw_samples", draw)
    small = functools.partial(EvaluateParams, steps=30, batch_images=16, base_channels=8)
    monkeypatch.setattr(module, "EvaluateParams", small)
    monkeypatch.setattr(module, "_ENCODER_STEPS", 3)

    def run(teacher, student, validation=VALIDATION, tracker=None, **changes):
        params = train_params(**{"distill": "progressive", "distill_seeds": 2, **changes})
        asked.clear()
        beats = []
        account = examine_student(
            teacher,
            student,
            SPEC,
            TAUGHT,
            "digest",
            TRAINING,
            validation,
            params,
            "float32",
            CPU,
            tracker or NullTracker(),
            lambda: beats.append(1),
        )
        assert len(beats) == 1 + len(account.student_accuracy) + len(account.teacher_accuracy)
        # The same noise for both.
        assert [(seed, purpose) for *_, seed, purpose in asked] == [(0, "acceptance")] * 2
        assert asked[0][:3] == ("ddim", 2, 1.0)
        # The teacher as synthesize samples it by default, not with the student's guidance of 1.5.
        usual = SynthesizeParams()
        assert asked[1][:3] == (usual.sampler, usual.sampler_steps, usual.guidance)
        assert asked[1][:3] == ("dpmsolver++", 20, 1.0)
        return account

    return run


def test_a_student_with_its_teachers_images_is_accepted(compare, recording_tracker):
    account = compare(good, good, tracker=recording_tracker, distill_margin_points=0.0)
    assert account.accepted
    assert account.student_accuracy == account.teacher_accuracy
    assert len(account.student_accuracy) == 2
    assert (account.difference_points, account.standard_error_points) == (0, 0)
    assert (account.validation_images, account.images_per_class) == (20, 20)
    assert account.student_copy_share == account.teacher_copy_share
    assert account.student_kernel_distance == account.teacher_kernel_distance
    assert "+0.00 points of balanced accuracy on validation" in account.reason
    assert recording_tracker.progress_calls[-1] == ("compare", 4, 4, "classifiers")
    assert account == compare(good, good, distill_margin_points=0.0)


def test_a_planted_bad_student_is_refused(compare):
    account = compare(good, wrong, distill_margin_points=5.0)
    assert not account.accepted
    assert account.difference_points < -5
    assert account.student_kernel_distance > account.teacher_kernel_distance + 0.1
    gaps = 100 * (np.array(account.student_accuracy) - account.teacher_accuracy)
    assert account.difference_points == pytest.approx(gaps.mean())
    assert account.standard_error_points == pytest.approx(gaps.std(ddof=1) / math.sqrt(2))
    assert "a loss of 5 is allowed" in account.reason


def test_a_student_that_copies_where_its_teacher_does_not_is_refused(compare):
    account = compare(good, copies, copy_limit=0.5, distill_margin_points=100.0)
    assert account.student_copy_share == 1
    assert account.teacher_copy_share < 0.5
    assert not account.accepted
    assert "100.0% of its images are copies" in account.reason
    assert compare(copies, copies, copy_limit=0.5, distill_margin_points=100.0).accepted


def test_repeated_validation_rows_count_once(compare):
    twice = VALIDATION.take([*range(20), *range(20)])
    assert compare(good, good, twice) == compare(good, good)


def test_without_validation_rows_it_is_refused(compare):
    account = compare(good, good, VALIDATION.take([]))
    assert not account.accepted
    assert account.reason == "there are no validation images to compare it with its teacher by"
    assert (account.difference_points, account.student_kernel_distance) == (None, None)
    assert (account.student_accuracy, account.teacher_accuracy) == ([], [])


def test_classifiers_are_handed_no_test_row(compare, monkeypatch):
    benches = []

    def train_pair(bench, params, pair, device):
        benches.append(bench)
        return SimpleNamespace(validation=np.zeros(20, np.int64))

    monkeypatch.setattr(module, "train_pair", train_pair)
    compare(good, good)
    assert all(len(bench.test) == 0 for bench in benches)
    assert all(len(bench.images) == 24 + 40 for bench in benches)
    assert [len(rows) for rows in benches[0].pools.real] == [20, 4]
    assert [len(rows) for rows in benches[0].pools.added["synthetic"]] == [20, 20]


@pytest.mark.parametrize(
    ("mean", "accepted"), [(0.5, True), (0.0, True), (-1.0, True), (-1.001, False), (None, False)]
)
def test_the_rule(mean, accepted):
    params = train_params(distill_margin_points=1.0, copy_limit=0.01)
    error = None if mean is None else 0.3
    assert decide(mean, error, 0.0, 0.0, NEAR, params)[0] == accepted
    assert decide(mean, error, 0.01, 0.0, NEAR, params)[0] == accepted  # at the limit
    assert decide(mean, error, 0.5, 0.02, NEAR, params)[0] == accepted  # its teacher copies too
    assert not decide(mean, error, 0.02, 0.01, NEAR, params)[0]


@pytest.mark.parametrize(
    ("distances", "accepted"),
    [
        ((0.4, 0.2), True),
        ((0.41, 0.2), False),
        ((0.09, 0.01), True),  # near nought a ratio says nothing
        ((0.11, -0.01), False),
        ((None, 0.2), True),
    ],
)
def test_images_that_only_easy_classes_forgive_are_refused(distances, accepted):
    decision, reason = decide(0.0, 0.3, 0.0, 0.0, distances, train_params())
    assert decision == accepted
    assert ("more than 2 times its teacher's" in reason) != accepted


def test_a_difference_is_paired_by_seed():
    assert paired_difference([0.5, 0.7], [0.4, 0.8]) == pytest.approx((0.0, 10.0))
    assert paired_difference([], []) == (None, None)


# Whose images are drawn


@pytest.fixture
def train(tmp_path):
    """Return `train(account)`: a folder of train's with a student."""

    def write(account):
        save_student(tmp_path / "student", SPEC, TAUGHT, build_unet(8, "L", 2, Preset(8, 1), 0))
        (tmp_path / "summary.json").write_text(json.dumps({"student": account}))
        return tmp_path

    return write


ACCEPTED = {"accepted": True, "reason": "good"}
REFUSED = {"accepted": False, "reason": "2 points worse"}


def choose(folder, **changes):
    return choose_generator(SynthesizeParams(**changes), folder, "bfloat16")


@pytest.mark.parametrize(
    ("account", "changes", "folder", "note"),
    [
        (None, {}, "generator", None),
        (None, {"generator": "teacher"}, "generator", None),
        (ACCEPTED, {"generator": "teacher"}, "generator", None),
        (ACCEPTED, {}, "student", "the student draws the images in 2 steps, with guidance 1.5"),
        (ACCEPTED, {"generator": "student"}, "student", "the student draws the images"),
        (ACCEPTED, {"mode": "edit"}, "generator", "mode edit is the teacher's"),
        (REFUSED, {}, "generator", "its student was refused: 2 points worse"),
        (REFUSED, {"generator": "student"}, "student", "It was refused: 2 points worse"),
    ],
)
def test_whose_images_are_drawn(train, account, changes, folder, note):
    root = train(account)
    choice = choose(root, **changes)
    assert choice.folder == root / folder
    assert (choice.note is None) == (note is None)
    assert note is None or note in choice.note
    if folder == "generator":
        assert choice.settings is None
    else:
        settings = choice.settings
        assert (settings.sampler, settings.steps, settings.times) == ("ddim", 2, (999, 249))
        assert (settings.guidance.weight, settings.precision) == (1.0, "bfloat16")
        assert settings.ladder(SPEC.process).times == (999, 249)


def test_a_student_that_is_not_there_cannot_draw(train):
    with pytest.raises(InputError, match=r"generator = student: train has made none; set train\."):
        choose(train(None), generator="student")


def test_a_damaged_summary_is_named(train):
    folder = train(ACCEPTED)
    for text in ("[]", "{", '{"student": {"accepted": true}}'):
        (folder / "summary.json").write_text(text)
        with pytest.raises(InputError, match=r"summary\.json: not readable"):
            choose(folder)
