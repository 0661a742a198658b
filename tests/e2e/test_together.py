"""Two processes of `accelerate launch` train as one does, and leave what one leaves."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_store import NETWORK, parts, pool, write_prepare

from pipeline.diffusion.unet import Preset, build_unet
from pipeline.folders import read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WEIGHTS = {
    "train": "generator/diffusion_pytorch_model.safetensors",
    "pretrain": "base/diffusion_pytorch_model.safetensors",
}
PARAMS = {
    "pretrain": {"steps": 6, "sheet_images": 4},
    "train": {
        **NETWORK,
        "batch_images": 9,  # not even: shares of 4 and 5 must still give the mean of 9
        "base_channels": 16,
        "learning_rate": 1.0e-3,
        "warmup_steps": 1,
        "dropout": 0.0,
        "steps": 12,
        "checks": 2,
        "check_images": 8,
        "copy_limit": 1.0,
        "patience_checks": 0,
        "ema_length": 0.1,
        "sheet_images_per_class": 2,
        "checkpoint_every_steps": 2,
    },
}


class Place:
    """A folder with params and, in each artifacts folder, a prepared store."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        (folder / "tmp").mkdir()
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
        self.environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin starve each other
        self.environment.pop("WORLD_SIZE", None)

    def prepare(self, artifacts):
        write_prepare(self.folder / artifacts / "prepare", [*parts(), pool(40)])

    def copy_inputs(self, artifacts):
        """Give an artifacts folder what `train` goes on from."""
        for stage in ("prepare", "pretrain"):
            shutil.copytree(self.folder / "alone" / stage, self.folder / artifacts / stage)

    def alone(self, *arguments):
        return [sys.executable, "-m", "pipeline", *arguments]

    def together(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--main_process_port", str(port)),
            *("-m", "pipeline", *arguments),
        ]

    def run(self, command):
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def stage(self, name, artifacts, how, *more):
        done = self.run(how(name, "--no-mlflow", "--artifacts", artifacts, *more))
        assert done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def both(place):
    """Train alone and together."""
    place.prepare("alone")
    place.stage("pretrain", "alone", place.alone)
    place.copy_inputs("pair")
    for artifacts, how in (("alone", place.alone), ("pair", place.together)):
        place.stage("train", artifacts, how)
    return place.folder / "alone", place.folder / "pair"


def difference(ours, theirs, start):
    """Return how far two networks are apart, over how far they went from the start."""
    # The bias of keys changes no attention: its gradient is rounding alone.
    names = [name for name in ours if not name.endswith("to_k.bias")]
    apart = sum((ours[name] - theirs[name]).square().sum() for name in names)
    way = sum((ours[name] - start[name]).square().sum() for name in names)
    return float((apart / way).sqrt())


def test_two_processes_give_the_weights_of_one(both):
    alone, pair = (load_file(one / "train" / WEIGHTS["train"]) for one in both)
    start = build_unet(8, "L", 2, Preset(16, 1), seed=0).state_dict()
    assert alone.keys() == start.keys()
    assert difference(alone, pair, start) < 1e-3
    assert all(
        torch.allclose(alone[name], pair[name], atol=1e-4)
        for name in alone
        if not name.endswith("to_k.bias")
    )


def test_two_processes_leave_the_files_of_one_and_nothing_else(place, both):
    alone, pair = (read_manifest(one / "train") for one in both)
    assert alone.files.keys() == pair.files.keys()
    assert (alone.key, alone.inputs) == (pair.key, pair.inputs)
    assert alone.files["training_ids.txt"] == pair.files["training_ids.txt"]
    for folder in both:
        left = [path.name for path in (folder / ".work").rglob("*") if path.is_file()]
        assert set(left) <= {"pretrain.lock", "train.lock"}
    assert not list((place.folder / "tmp").glob("replenish-*"))
    # One log of each run: the leader's.
    logs = list((place.folder / "runs").rglob("*-train*"))
    assert len({path.stem for path in logs}) == 2, logs


def test_a_finished_stage_is_up_to_date_for_both(place, both):
    before = read_manifest(both[1] / "train")
    done = place.stage("train", "pair", place.together)
    assert (done.stdout + done.stderr).count("train: up to date") == 1
    assert read_manifest(both[1] / "train") == before


def test_two_processes_killed_resume_to_the_very_same_digest(place, both):
    place.copy_inputs("killed")
    command = place.together("train", "--no-mlflow", "--artifacts", "killed")
    running = subprocess.Popen(
        command,
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    try:
        while not list((place.folder / "killed/.work/train").glob("*/state.safetensors")):
            assert running.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.005)
    finally:
        # The launcher starts each process in a session of its own.
        members = psutil.Process(running.pid).children(recursive=True)
        for member in members:
            member.kill()
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        psutil.wait_procs(members, timeout=60)
    assert len(members) >= 2
    assert read_manifest(place.folder / "killed" / "train") is None
    done = place.stage("train", "killed", place.together)
    assert "train: goes on from step" in done.stdout + done.stderr
    assert read_manifest(place.folder / "killed" / "train") == read_manifest(both[1] / "train")


def test_a_base_is_pretrained_and_adapted_together(place):
    found = []
    for artifacts, how in (("pool-alone", place.alone), ("pool-pair", place.together)):
        place.prepare(artifacts)
        place.stage("pretrain", artifacts, how, "--set", "pretrain.base=pool")
        found.append(load_file(place.folder / artifacts / "pretrain" / WEIGHTS["pretrain"]))
    start = build_unet(8, "L", 0, Preset(16, 1), seed=0).state_dict()
    assert difference(*found, start) < 1e-3
    more = ("--set", "train.trainable=lora", "--set", "train.steps=4")
    place.stage("train", "pool-pair", place.together, *more)
    names = load_file(place.folder / "pool-pair" / "train" / WEIGHTS["train"]).keys()
    assert names == found[0].keys()


def test_a_run_starts_its_processes_itself(place, both):
    place.copy_inputs("launched")
    two = ("--set", "execution.train_processes=2")
    done = place.stage("train", "launched", place.alone, *two)
    said = done.stdout + done.stderr
    assert "train: 2 processes train together" in said
    assert read_manifest(place.folder / "launched" / "train") == read_manifest(both[1] / "train")
    left = [path.name for path in (place.folder / "launched/.work").rglob("*") if path.is_file()]
    assert set(left) <= {"pretrain.lock", "train.lock"}
    again = place.stage("train", "launched", place.alone, *two)
    assert "processes train together" not in again.stdout + again.stderr


def test_an_error_of_launched_processes_is_the_runs_own(place):
    place.prepare("wrong")
    done = place.run(
        [
            *place.alone("train", "--no-mlflow", "--artifacts", "wrong"),
            *("--set", "execution.train_processes=2"),
        ]
    )
    assert done.returncode == 2
    assert "error: train: needs the finished folder of `pretrain`" in done.stderr


def test_launched_processes_end_with_the_run_that_was_killed(place, both):
    place.copy_inputs("orphans")
    running = subprocess.Popen(
        [
            *place.alone("train", "--no-mlflow", "--artifacts", "orphans"),
            *("--set", "execution.train_processes=2", "--set", "train.steps=100000"),
            *("--set", "train.checkpoint_every_steps=2"),
        ],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((place.folder / "orphans/.work/train").glob("*/state.safetensors")):
        assert running.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    members = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.wait()
    assert len(members) >= 3
    _, alive = psutil.wait_procs(members, timeout=60)
    assert alive == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare",), "prepare: one process does this stage; run it without `accelerate launch`"),
        (
            ("train", "--artifacts", "alone", "--set", "train.batch_images=1"),
            "train.batch_images = 1, fewer than the 2 processes that share a batch",
        ),
    ],
)
def test_what_two_processes_cannot_do_is_an_error_with_its_reason(place, both, arguments, message):
    done = place.run(place.together(*arguments, "--no-mlflow"))
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr or message in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (place.folder / "artifacts" / "prepare").exists()
