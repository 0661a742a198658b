"""The stage train where it distils a student: what it leaves, resume, and who is refused."""

import functools

import numpy as np
import pytest
import torch
from tiny_store import parts, run_pretrain, run_train, write_prepare

from pipeline.diffusion.checkpoints import load_student
from pipeline.downstream.training import Predictions
from pipeline.folders import read_manifest
from pipeline.params import EvaluateParams, SynthesizeParams
from pipeline.synthesis import acceptance
from pipeline.synthesis.settings import choose_generator
from pipeline.tracking.tracker import NullTracker
from pipeline.verification import verify

SHORT = {"steps": 6, "checks": 2, "check_images": 0}
DISTILLED = {
    **SHORT,
    "distill": "progressive",
    "distill_steps": 4,
    "distill_phase_steps": 5,
    "distill_seeds": 2,
    "distill_margin_points": 100.0,
    "checkpoint_every_steps": 2,
}
STUDENT = {
    "student/config.json",
    "student/diffusion_pytorch_model.safetensors",
    "student/generator.json",
    "student/student.json",
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    write_prepare(root / "prepare", parts())
    run_pretrain(root)
    return root


@pytest.fixture
def short_comparison(monkeypatch):
    small = functools.partial(EvaluateParams, steps=4, batch_images=8, base_channels=8)
    monkeypatch.setattr(acceptance, "EvaluateParams", small)
    monkeypatch.setattr(acceptance, "_ENCODER_STEPS", 2)


@pytest.mark.usefixtures("short_comparison")
def test_a_student_is_distilled_compared_and_kept(root, recording_tracker):
    plain = run_train(root, out=root / "plain", **SHORT)
    summary = run_train(root, recording_tracker, **DISTILLED)
    account, folder = summary.student, root / "train"
    assert plain.student is None
    assert not (root / "plain" / "student").exists()
    # The teacher is what it is without a student.
    assert summary.generator_digest == plain.generator_digest
    assert {n for n in read_manifest(folder).files if n.startswith("student/")} == STUDENT
    assert not [n for n in read_manifest(folder).files if "distilling" in n or "state" in n]
    student = load_student(folder / "student", torch.device("cpu"))
    assert student.generator.digest == account.digest
    assert student.spec.teacher_digest == summary.generator_digest
    assert (student.spec.sampler, len(student.spec.times)) == ("ddim", 4)
    assert (student.spec.phase_rungs, student.spec.phase_steps) == ((16, 8), 5)
    assert account.accepted
    assert (account.method, account.steps, account.guidance) == ("progressive", 4, 1.5)
    assert (account.validation_images, account.images_per_class) == (12, 12)
    assert len(account.student_accuracy) == len(account.teacher_accuracy) == 2
    choice = choose_generator(SynthesizeParams(), folder, "float32")
    assert choice.folder == folder / "student"
    assert choice.settings.times == student.spec.times
    notes = "\n".join(recording_tracker.notes)
    assert (
        "distils a student of 4 sampling steps (progressive, guidance 1.5 within) in 2 ph" in notes
    )
    assert "train: the student is accepted: with its images classifiers have" in notes
    assert ("distil", 10, 10, "steps") in recording_tracker.progress_calls
    assert recording_tracker.last_metric("distill/loss") > 0
    assert verify(root).problems == []


@pytest.mark.usefixtures("short_comparison")
@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_a_killed_distillation_gives_the_same_folder(root, method):
    class Killer(NullTracker):
        def __init__(self, task, done):
            self.at = (task, done)

        def progress(self, task, done, total, unit):
            if (task, done) == self.at:
                raise KeyboardInterrupt

    params = {**DISTILLED, "distill": method}
    run_train(root, out=root / "one" / "train", **params)
    for at in (("distil", 3), ("distil", 5), ("compare", 3)):
        with pytest.raises(KeyboardInterrupt):
            run_train(root, Killer(*at), out=root / "two" / "train", **params)
    run_train(root, out=root / "two" / "train", **params)
    assert read_manifest(root / "two" / "train") == read_manifest(root / "one" / "train")
    assert not list((root / "two").rglob("state*"))


def test_where_the_student_is_refused_the_teacher_stays(root, recording_tracker, monkeypatch):
    def train_pair(bench, params, pair, device):
        truth = np.repeat([0, 1], 6)
        # The student's classifiers are compared first.
        turn.append(pair)
        guess = truth if len(turn) % 2 == 0 else np.zeros(12, np.int64)
        none = np.zeros((12, 0))
        return Predictions(guess, guess, none, none, np.zeros((0, 0), np.int64))

    turn = []
    monkeypatch.setattr(acceptance, "train_pair", train_pair)
    monkeypatch.setattr(acceptance, "_ENCODER_STEPS", 2)
    changes = {"distill_margin_points": 1.0}
    summary = run_train(root, recording_tracker, **{**DISTILLED, **changes})
    assert not summary.student.accepted
    assert summary.student.difference_points == -50
    assert any(note.startswith("train: the student is refused") for note in recording_tracker.notes)
    folder = root / "train"
    assert choose_generator(SynthesizeParams(), folder, "float32").folder == folder / "generator"
    asked = choose_generator(SynthesizeParams(generator="student"), folder, "float32")
    assert asked.folder == folder / "student"
    assert "It was refused: with its images classifiers have -50.00 points" in asked.note
