"""Driver and workers that share no folder, but a URL."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.storage.locations import open_location
from pipeline.synthesis.executors import ThreadExecutor
from pipeline.synthesis.job_files import JOB
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.lease_worker import do_lease
from pipeline.synthesis.leasing import LeasingExecutor, Patience, Seen, run_id_of
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard, read_shard
from pipeline.synthesis.spaces import UrlSpace, open_space

SHARDS = [Shard(label, number, 4) for label in (0, 1) for number in range(3)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    digest = save_generator(folder, spec, build_unet(8, "L", 2, Preset(8, 1), seed=0))
    recipe = Recipe("as asked", folder, digest, SamplerSettings("ddim", 2, Guidance(1.5)))
    return ShardJob((recipe,), 3, "cpu", batch_images=16, shard_images=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the worker machine's cache: it never sees the driver's folders."""
    monkeypatch.setattr("pipeline.synthesis.spaces.user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache"


def space_of(tmp_path: Path) -> UrlSpace:
    (tmp_path / "mine").mkdir(exist_ok=True)
    shared = open_location((tmp_path / "shared").as_uri())
    return UrlSpace(shared, run_id_of(tmp_path / "mine"), tmp_path / "mine")


class Workers:
    """A carrier whose leases are threads that know the space's address alone."""

    def __init__(self, where):
        self.where, self.seen, self.threads, self.sent = where, {}, [], []

    def workers(self):
        return 2

    def submit(self, lease, key):
        self.sent.append(lease)
        self.seen[lease.id] = Seen("waiting")
        self.threads.append(Thread(target=self._work, args=(lease,)))
        self.threads[-1].start()
        return True

    def _work(self, lease):
        try:
            do_lease(self.where, lease.shards, lease.id)
            self.seen[lease.id] = Seen("ended")
        except (InputError, StageError) as error:
            self.seen[lease.id] = Seen("failed", str(error))

    def look(self, leases):
        return {lease: self.seen[lease] for lease in leases if lease in self.seen}

    def cancel(self, lease, why):
        pass

    def missing_workers(self, seconds):
        return StageError("nobody is there")

    def close(self):
        for thread in self.threads:
            thread.join()


def run(space: UrlSpace, tmp_path: Path) -> list[Shard]:
    quick = Patience(poll_seconds=0.02)
    carrier = Workers(space.where)
    mine = tmp_path / "mine"
    with LeasingExecutor(carrier, mine, space, lambda _: None, 2, quick) as executor:
        return list(executor.run(SHARDS))


def test_shards_by_url_are_those_of_one_process(tmp_path: Path, job: ShardJob) -> None:
    with ThreadExecutor(job.start, tmp_path / "here", 1) as executor:
        list(executor.run(SHARDS))
    space = space_of(tmp_path)
    space.publish(job)
    assert set(run(space, tmp_path)) == set(SHARDS)
    for shard in SHARDS:
        ours, theirs = (read_shard(tmp_path / name, shard) for name in ("mine", "here"))
        assert np.array_equal(ours, theirs)
    # Nothing of the run stays there; its generator does, for the next one.
    left = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {job.recipes[0].digest}
    assert str(job.recipes[0].generator) not in "".join(
        path.read_text(errors="replace") for path in left
    )


def test_a_damaged_shard_is_drawn_again(tmp_path: Path, job: ShardJob) -> None:
    space = space_of(tmp_path)
    space.publish(job)
    run_folder = tmp_path / "shared" / space.run
    for name, data in (("safetensors", b"no shard"), ("sha256", b"0" * 64)):
        (run_folder / f"{SHARDS[0].name}.{name}").write_bytes(data)
    assert set(run(space, tmp_path)) == set(SHARDS)


def test_a_job_or_generator_that_was_changed_is_refused(tmp_path: Path, job: ShardJob) -> None:
    space = space_of(tmp_path)
    space.publish(job)
    path = tmp_path / "shared" / space.run / JOB
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "job": {**told["job"], "seed": 4}}))
    with (
        pytest.raises(InputError, match="was changed after it was written"),
        open_space(space.where).open_job(),
    ):
        pass
    path.write_text(json.dumps(told))
    generator = tmp_path / "shared" / "generators" / job.recipes[0].digest
    weights = generator / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with (
        pytest.raises(InputError, match="its files are not those it lists"),
        open_space(space.where).open_job(),
    ):
        pass
    (generator / "files.json").write_text(json.dumps({"../../evil": "0" * 64}))
    with pytest.raises(InputError, match="no whole generator"), open_space(space.where).open_job():
        pass


def test_a_generator_that_was_replaced_is_not_sent(tmp_path: Path, job: ShardJob) -> None:
    other = replace(job, recipes=(replace(job.recipes[0], digest="0" * 64),))
    with pytest.raises(StageError, match="was replaced by another run"):
        space_of(tmp_path).publish(other)


def test_the_generator_is_fetched_once(tmp_path: Path, job: ShardJob, cache: Path) -> None:
    space = space_of(tmp_path)
    space.publish(job)
    with open_space(space.where).open_job() as (first, folder):
        assert first.recipes[0].generator == cache / "generators" / job.recipes[0].digest
        assert folder.is_dir()
    assert not folder.exists()
    (tmp_path / "shared" / "generators" / job.recipes[0].digest / "files.json").unlink()
    with open_space(space.where).open_job() as (second, _):
        assert second.recipes == first.recipes
