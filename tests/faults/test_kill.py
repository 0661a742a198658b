"""kill -9 in training and in synthesis, then the same command again: the same digests."""

import os
import signal
import time

import pytest

from pipeline.folders import read_manifest

pytestmark = [pytest.mark.faults, pytest.mark.e2e]
STAGES = ("prepare", "train", "synthesize")


def run_stages(project, artifacts, stages=STAGES):
    for stage in stages:
        project.python("-m", "pipeline", stage, "--no-mlflow", "--artifacts", artifacts)


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
    run_stages(project, "unbroken")
    return {stage: read_manifest(project.folder / "unbroken" / stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("train", ".work/train/*/state.safetensors"),
        ("synthesize", ".work/synthesize/*/shards/*.sha256"),
    ],
)
def test_a_killed_stage_ends_with_the_digest_of_an_unbroken_one(project, unbroken, stage, pattern):
    artifacts = f"killed-{stage}"
    run_stages(project, artifacts, STAGES[: STAGES.index(stage)])
    command = ("-m", "pipeline", stage, "--no-mlflow", "--artifacts", artifacts)
    kill_when(project, command, artifacts, pattern)
    assert read_manifest(project.folder / artifacts / stage) is None
    project.python(*command)
    assert read_manifest(project.folder / artifacts / stage) == unbroken[stage]
    left = [p for p in (project.folder / artifacts / ".work").rglob("*") if p.suffix != ".lock"]
    assert left == []
