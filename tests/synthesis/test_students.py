"""Making a student in a team: the leader does it, the others wait and hear from it."""

import pytest
import torch
from tiny_store import stripes, train_params

from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.fitting import to_rows
from pipeline.diffusion.loop import class_chances
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.synthesis import students as module
from pipeline.synthesis.students import make_student
from pipeline.team import Team

SPEC = GeneratorSpec(("rows", "columns"), 8, "L", "cosine", "velocity", False, "", None)
ROWS = stripes([6, 6], "train", 0)


class Heard(Team):
    """A team of two whose leader says what the list holds; what is said goes into it."""

    said: list

    def agree(self, value):
        if self.leads:
            self.said.append(value)
            return value
        return self.said.pop(0)


def make(team, out, tracker, **changes):
    rows = to_rows(ROWS, torch.device("cpu"))
    return make_student(
        train_params(distill_phase_steps=3, checkpoint_every_steps=1, **changes),
        SPEC,
        build_unet(8, "L", 2, Preset(8, 1), 0),
        "digest",
        rows,
        class_chances(rows.labels, 0.5),
        ROWS,
        stripes([4, 4], "validation", 1),
        60,
        "float32",
        out,
        team,
        tracker,
    )


def heard(rank, said):
    team = Heard(rank, 2)
    object.__setattr__(team, "said", said)
    return team


def test_a_follower_waits_until_the_leader_is_done(tmp_path, recording_tracker):
    said = [True, True, False, "next"]
    assert make(heard(1, said), tmp_path, recording_tracker, distill="progressive") is None
    assert said == ["next"]
    assert not list(tmp_path.iterdir())
    assert recording_tracker.notes == []


def test_the_leader_speaks_up_at_every_checkpoint_and_once_at_the_end(
    tmp_path, recording_tracker, monkeypatch
):
    class Account:
        accepted, reason = True, "good"

    def examine(*arguments):
        arguments[-1]()
        return Account()

    monkeypatch.setattr(module, "examine_student", examine)
    said = []
    account = make(
        heard(0, said), tmp_path, recording_tracker, distill="progressive", distill_steps=4
    )
    assert account.reason == "good"
    assert said == [True] * 7 + [False]  # three a phase, and one of the comparison
    assert {path.name for path in tmp_path.iterdir()} == {"student"}
    assert recording_tracker.notes[-1] == "train: the student is accepted: good"


@pytest.mark.parametrize("rank", [0, 1])
def test_without_distillation_nobody_speaks(tmp_path, recording_tracker, rank):
    assert make(heard(rank, []), tmp_path, recording_tracker, distill="none") is None
    assert not list(tmp_path.iterdir())
