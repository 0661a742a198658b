import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_workers import FakeWorker

from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.hashing import digest_pixels
from pipeline.synthesis import executors as module
from pipeline.synthesis.executors import ProcessExecutor, ThreadExecutor, in_order
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard, read_shard

ROOT = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("kind", [ThreadExecutor, ProcessExecutor])


def plan(count, size=2, label=0):
    return [Shard(label, number, size) for number in range(count)]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(pid):
    """Process ids of the workers that a process spawned."""
    found = [one for one in psutil.Process(pid).children(recursive=True) if lives(one.pid)]
    return [one.pid for one in found if "spawn_main" in " ".join(one.cmdline())]


# ---- the real thing: 512 images of an untrained network ----

CLASSES, SHARDS, SIZE = 2, 16, 16


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    digest = save_generator(folder, spec, build_unet(8, "L", CLASSES, Preset(8, 1), seed=0))
    settings = SamplerSettings("dpmsolver++", 2, Guidance(1.5))
    return ShardJob((Recipe("as asked", folder, digest, settings),), 0, "cpu")


def shards_512():
    return [Shard(label, number, SIZE) for label in range(CLASSES) for number in range(SHARDS)]


def digest(folder):
    images = np.concatenate([read_shard(folder, shard) for shard in shards_512()])
    assert images.shape == (512, 8, 8, 1)
    return digest_pixels(images.reshape(512 * 8, 8, 1))


@pytest.mark.slow
def test_the_same_512_images_whoever_draws_them_and_in_which_order(job, tmp_path):
    shards, digests = shards_512(), {}
    mixed = random.Random(0).sample(shards, len(shards))

    def draw(name, kind, workers, order):
        with kind(job.start, tmp_path / name, workers) as executor:
            assert set(executor.run(order)) == set(shards)
        digests[name] = digest(tmp_path / name)

    draw("one thread", ThreadExecutor, 1, shards)
    draw("two threads", ThreadExecutor, 2, shards)
    draw("another order", ThreadExecutor, 2, mixed)
    # Killed in the middle of its work, a worker process ends the run; the next run goes on.
    folder = tmp_path / "two processes, after a kill"
    with ProcessExecutor(job.start, folder, 1) as executor:
        run = executor.run(mixed)
        next(run)
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
        with pytest.raises(StageError, match="run the same command again"):
            list(run)
    assert 0 < len(list(folder.glob("*.sha256"))) < len(shards)
    draw(folder.name, ProcessExecutor, 2, mixed)

    assert len(digests) == 4
    assert len(set(digests.values())) == 1


# ---- with workers that draw nothing ----


@BOTH
def test_workers_stay_warm_and_do_not_do_a_sound_shard_again(tmp_path, kind):
    fake = FakeWorker(tmp_path / "traces")
    folder = tmp_path / "shards"
    with kind(fake.start, folder, 2) as executor:
        assert list(executor.run([])) == []
        assert fake.starts() == []
        assert set(executor.run(plan(6))) == set(plan(6))
        before = fake.starts()
        (folder / f"{Shard(0, 3, 2).name}.safetensors").write_bytes(b"damaged")
        assert set(executor.run(plan(9))) == set(plan(9))
        assert set(before) <= set(fake.starts())
    assert 1 <= len(fake.starts()) <= (1 if kind is ThreadExecutor else 2)
    assert sorted(set(fake.sampled())) == [shard.name for shard in plan(9)]
    again = FakeWorker(tmp_path / "again")
    with kind(again.start, folder, 1) as executor:
        assert set(executor.run(plan(10))) == set(plan(10))
    assert again.sampled() == [plan(10)[9].name]


@BOTH
def test_images_come_in_order_as_soon_as_they_are_there(tmp_path, kind):
    fake = FakeWorker(tmp_path / "traces")
    shards, done = plan(12)[::-1], []
    with kind(fake.start, tmp_path / "shards", 2) as executor:
        for turn in range(2):  # the second time from disk, with the same workers
            found = list(in_order(executor, shards, tmp_path / "shards", done.append))
            assert [shard for shard, _ in found] == shards
            assert all(images[0, 0, 0, 0] == 2 * shard.number for shard, images in found)
            assert len(done) == 12 * (turn + 1)
    assert 1 <= len(fake.starts()) <= (1 if kind is ThreadExecutor else 2)


def test_a_shard_that_vanished_is_named(tmp_path):
    fake = FakeWorker(tmp_path / "traces")

    def remove(shard):
        (tmp_path / f"{shard.name}.safetensors").unlink()

    with (
        ThreadExecutor(fake.start, tmp_path, 1) as executor,
        pytest.raises(StageError, match="class-0000-shard-000000: not readable after it was wri"),
    ):
        list(in_order(executor, plan(3), tmp_path, remove))


@BOTH
@pytest.mark.parametrize(
    ("trouble", "at", "error", "message"),
    [
        ("input", 4, InputError, "weights.safetensors: damaged"),
        ("stage", -1, StageError, "class a: no image"),
        ("value", 4, ValueError, "('a plain one', 3)"),
    ],
)
def test_an_error_in_a_worker_is_the_callers_and_finished_shards_stay(
    tmp_path, kind, trouble, at, error, message
):
    fake = FakeWorker(tmp_path / "traces", trouble, at)
    with kind(fake.start, tmp_path / "shards", 1) as executor:
        with pytest.raises(error) as caught:
            list(executor.run(plan(8)))
        assert str(caught.value) == message
        # Nothing goes on in the background.
        count = len(fake.sampled())
        assert workers_of(os.getpid()) == []
        time.sleep(0.1)
        assert len(fake.sampled()) == count
    for shard in plan(max(at, 0)):
        assert read_shard(tmp_path / "shards", shard) is not None


def test_an_error_that_cannot_go_through_a_pipe_becomes_its_text(tmp_path):
    fake = FakeWorker(tmp_path / "traces", "foreign")
    with (
        ProcessExecutor(fake.start, tmp_path, 1) as executor,
        pytest.raises(RuntimeError, match="^TwoPartError: one and two") as caught,
    ):
        list(executor.run(plan(2)))
    assert "in _fail" in caught.value.__notes__[0]  # the worker's traceback


@pytest.mark.parametrize(
    ("trouble", "how"),
    [("kill", "by signal 9, most likely for want of memory"), ("exit", "with exit status 3")],
)
def test_a_worker_that_dies_is_noticed_at_once_and_the_remedy_is_named(tmp_path, trouble, how):
    fake = FakeWorker(tmp_path / "traces", trouble, at=3, seconds=0.2)
    died = tmp_path / "traces" / plan(4)[3].name
    with (
        ProcessExecutor(fake.start, tmp_path, 2) as executor,
        pytest.raises(StageError, match=rf"ended {how} \(2 workers\); run the same command again"),
    ):
        list(executor.run(plan(1000)))
    noticed = time.time()
    (trace,) = died.parent.glob(f"{died.name}.*")
    assert noticed - trace.stat().st_mtime < 3
    assert workers_of(os.getpid()) == []


@BOTH
def test_a_run_that_is_given_up_ends_its_work_and_another_may_follow(tmp_path, kind):
    fake = FakeWorker(tmp_path / "traces", seconds=0.02)
    with kind(fake.start, tmp_path / "shards", 1) as executor:
        run = executor.run(plan(500))
        next(run)
        run.close()
        assert len(set(fake.sampled())) < 500
        assert set(executor.run(plan(5))) == set(plan(5))
    assert workers_of(os.getpid()) == []
    assert not [one for one in threading.enumerate() if one.name.startswith("shard-")]


RUN = """
import sys
from pathlib import Path
from fake_workers import FakeWorker
from pipeline.synthesis.executors import ProcessExecutor
from pipeline.synthesis.shards import Shard

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fake = FakeWorker(folder / "traces", seconds=0.02)
    with ProcessExecutor(fake.start, folder / "shards", 2) as executor:
        for _ in executor.run([Shard(0, number, 1) for number in range(100_000)]):
            pass
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_workers_end_with_the_run_that_started_them(tmp_path, name):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    running = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers, errors = [], ""
    try:
        wait_until(lambda: len(set(FakeWorker(tmp_path / "traces").starts())) == 2)
        workers = workers_of(running.pid)
        assert len(workers) == 2
        if name == "SIGINT":  # as a terminal does, to the whole group
            os.killpg(running.pid, signal.SIGINT)
        else:
            running.send_signal(signal.Signals[name])
        _, errors = running.communicate(timeout=60)
        wait_until(lambda: not any(map(lives, workers)), 10)
    finally:
        for pid in (running.pid, *workers):
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        running.communicate()
    assert errors.count("Traceback") == (name == "SIGINT")  # the workers are silent
    assert ("KeyboardInterrupt" in errors) == (name == "SIGINT")


def test_at_most_two_shards_a_worker_wait_for_a_slow_disk(tmp_path, monkeypatch):
    fake, go = FakeWorker(tmp_path / "traces"), threading.Event()
    write = module.write_shard

    def slow(folder, shard, images):
        assert go.wait(30)
        write(folder, shard, images)

    monkeypatch.setattr(module, "write_shard", slow)
    with ThreadExecutor(fake.start, tmp_path / "shards", 1) as executor:
        run = executor.run(plan(20))
        caller = threading.Thread(target=lambda: list(run))
        caller.start()
        wait_until(lambda: len(fake.sampled()) == 3)  # one is written, one waits, one is in hand
        time.sleep(0.2)
        assert len(fake.sampled()) == 3
        go.set()
        caller.join(30)
    assert len(fake.sampled()) == 20


def test_a_full_disk_is_the_callers_error(tmp_path, monkeypatch):
    def full(folder, shard, images):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(module, "write_shard", full)
    fake = FakeWorker(tmp_path / "traces")
    with (
        ThreadExecutor(fake.start, tmp_path, 2) as executor,
        pytest.raises(OSError, match="No space left") as caught,
    ):
        list(executor.run(plan(9)))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


@BOTH
@pytest.mark.parametrize("together", [3, 50])
def test_shards_that_fill_a_batch_together_are_each_done_once(tmp_path, kind, together):
    fake = FakeWorker(tmp_path / "traces", together=together)
    with kind(fake.start, tmp_path / "shards", 2) as executor:
        for count in (10, 11):  # the second time one is new
            assert set(executor.run(plan(count))) == set(plan(count))
    assert fake.sampled() == sorted(shard.name for shard in plan(11))
