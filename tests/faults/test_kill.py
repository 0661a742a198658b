"""kill -9 in pretraining, training and synthesis, then the same command: the same digests."""

import os
import shutil
import signal
import time

import pytest

from pipeline.folders import read_manifest

pytestmark = [pytest.mark.faults, pytest.mark.e2e]
STAGES = ("prepare", "pretrain", "train", "synthesize")


def kill_when(project, command, artifacts, pattern):
    """Start the command, and kill it when a file that fits the pattern appears."""
    running = project.start(*command)
    deadline = time.monotonic() + 120
    try:
        while not list((project.folder / artifacts).glob(pattern)):
            assert running.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline, f"{pattern} never appeared"
            time.sleep(0.005)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


@pytest.fixture(scope="module")
def unbroken(project):
    for stage in STAGES:
        project.python("-m", "pipeline", stage, "--no-mlflow", "--artifacts", "unbroken")
    return {stage: read_manifest(project.folder / "unbroken" / stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("artifacts", "stage", "pattern"),
    [
        ("killed-base", "pretrain", ".work/pretrain/*/state.safetensors"),
        ("killed-training", "train", ".work/train/*/state.safetensors"),
        # A check of the last step: the search of the best average comes after it.
        ("killed-search", "train", ".work/train/*/snapshots/step-00000024.safetensors"),
        ("killed-synthesis", "synthesize", ".work/synthesize/*/shards/*.sha256"),
    ],
)
def test_a_killed_stage_ends_with_the_digest_of_an_unbroken_one(
    project, unbroken, artifacts, stage, pattern
):
    for done in STAGES[: STAGES.index(stage)]:
        shutil.copytree(project.folder / "unbroken" / done, project.folder / artifacts / done)
    two = ("--set", "execution.workers=2")
    command = ("-m", "pipeline", stage, "--no-mlflow", "--artifacts", artifacts, *two)
    kill_when(project, command, artifacts, pattern)
    assert read_manifest(project.folder / artifacts / stage) is None
    project.python(*command)
    assert read_manifest(project.folder / artifacts / stage) == unbroken[stage]
    left = [p for p in (project.folder / artifacts / ".work").rglob("*") if p.suffix != ".lock"]
    assert left == []
