"""The team: shares of a batch, and what its members tell each other."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from pipeline.team import Team, join_team


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [7, 8, 64])
def test_shares_are_the_whole_batch_without_overlap(size, count):
    shares = [Team(rank, size).share_of(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


def test_only_process_0_leads():
    assert [Team(rank, 3).leads for rank in range(3)] == [True, False, False]


def test_a_team_of_one_asks_nobody():
    team, value = Team(), torch.tensor([1.0, 2.0])
    team.average([value])
    team.follow([value])
    assert value.tolist() == [1.0, 2.0]
    plain = {"a": [1, None]}
    assert team.agree(plain) is plain


@pytest.mark.parametrize("world", [None, "1", "0"])
def test_without_a_launcher_one_is_alone(monkeypatch, world):
    if world is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert join_team() == Team(0, 1)


_MEMBER = """
import json, sys, torch
from pipeline.team import join_team

team = join_team()
one = torch.full((2, 3), float(team.rank), requires_grad=True)
two = torch.tensor(10.0 + team.rank)
gradient = [one, two]
team.average(gradient)
weight = torch.nn.Parameter(torch.full((2,), 5.0 + team.rank))
moment, total = torch.tensor(team.rank), torch.tensor(0.5 * team.rank, dtype=torch.float64)
team.follow([weight, moment, total])
told = team.agree({"step": 7, "none": None} if team.leads else None)
with open(sys.argv[1] + str(team.rank), "w") as file:
    json.dump({
        "team": [team.rank, team.size], "same": join_team() == team,
        "one": one.tolist(), "two": two.item(), "weight": weight.tolist(),
        "moment": moment.item(), "total": total.item(), "told": told,
    }, file)
"""


@pytest.mark.slow
def test_two_processes_average_follow_and_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    members = [
        subprocess.Popen(
            [sys.executable, "-c", _MEMBER, str(tmp_path / "member-")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for member in members:
        _, errors = member.communicate(timeout=300)
        assert member.returncode == 0, errors
    for rank in range(2):
        found = json.loads((tmp_path / f"member-{rank}").read_text())
        assert found == {
            "team": [rank, 2],
            "same": True,
            "one": [[0.5] * 3] * 2,
            "two": 10.5,
            "weight": [5.0, 5.0],
            "moment": 0,
            "total": 0.0,
            "told": {"step": 7, "none": None},
        }
