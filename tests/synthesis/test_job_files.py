import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError
from pipeline.synthesis.executors import ThreadExecutor
from pipeline.synthesis.job_files import JOB, read_job, write_job
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.lease_worker import do_lease
from pipeline.synthesis.parents import Editing
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard, read_shard
from pipeline.synthesis.spaces import BEATS, FolderSpace

SETTINGS = SamplerSettings("dpmsolver++", 2, Guidance(1.5), times=(900, 1), spacing="karras")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    digest = save_generator(folder, spec, build_unet(8, "L", 2, Preset(8, 1), seed=0))
    return Recipe("as asked", folder, digest, SamplerSettings("ddim", 2, Guidance(1.5)))


def editing(mode="inpaint", mask="user"):
    random = np.random.default_rng(0)
    marked = random.random((3, 8, 8)) > 0.5
    return Editing(
        mode=mode,
        images=random.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8),
        labels=np.asarray([0, 1, 0, 1, 0, 1]),
        ids=tuple("abcdef"),
        classes=("x", "y"),
        strengths=(0.25, 0.5),
        mask=mask,
        mask_share=0.3,
        masks=tuple((f"{i}.png", one) for i, one in enumerate(marked)),
        resample_times=2,
        own={2: marked[0], 3: marked[1]},
    )


def test_a_job_comes_back_as_it_was(tmp_path, recipe):
    recipes = (
        replace(recipe, settings=SETTINGS),
        replace(recipe, name="firm", settings=replace(SETTINGS, guidance=Guidance(3.0, 0.3, 3.0))),
        replace(recipe, editing=editing()),
    )
    job = ShardJob(recipes, 7, "auto", True, 64, 3, 500, 16)
    write_job(tmp_path, job)
    read = read_job(tmp_path)
    assert replace(read, recipes=()) == replace(job, recipes=())
    assert read.recipes[:2] == recipes[:2]
    assert read.recipes[0].settings.guidance.high == float("inf")
    mine, theirs = read.recipes[2].editing, recipes[2].editing
    for index in range(20):
        one, other = mine.origin(3, 0, index), theirs.origin(3, 0, index)
        assert (one.row, one.strength, one.mask_name) == (
            other.row,
            other.strength,
            other.mask_name,
        )
        assert np.array_equal(one.mask, other.mask)
    assert mine.lineage(3, 1, range(4)).columns == theirs.lineage(3, 1, range(4)).columns
    assert {row: mask.sum() for row, mask in mine.own.items()} == {
        row: mask.sum() for row, mask in theirs.own.items()
    }


def test_changed_and_missing_jobs_are_refused(tmp_path, recipe):
    with pytest.raises(InputError, match="no job that can be read .*same shared folder"):
        read_job(tmp_path)
    write_job(tmp_path, ShardJob((replace(recipe, editing=editing()),), 0, "cpu"))
    whole = json.loads((tmp_path / JOB).read_text())
    whole["job"]["seed"] = 1
    (tmp_path / JOB).write_text(json.dumps(whole))
    with pytest.raises(InputError, match="was changed after it was written"):
        read_job(tmp_path)
    (tmp_path / JOB).write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        read_job(tmp_path)
    write_job(tmp_path, ShardJob((replace(recipe, editing=editing()),), 0, "cpu"))
    arrays = tmp_path / "recipe-0.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"recipe-0.safetensors: was changed"):
        read_job(tmp_path)


def test_a_lease_gives_the_bits_of_an_executor_of_this_machine(tmp_path, recipe):
    job = ShardJob((recipe,), 3, "cpu", batch_images=16, shard_images=4)
    shards = [Shard(label, number, 4) for label in (0, 1) for number in range(3)]
    here, there = tmp_path / "here", tmp_path / "there"
    with ThreadExecutor(job.start, here, 2) as executor:
        assert set(executor.run(shards)) == set(shards)
    FolderSpace(there).publish(job)
    do_lease(str(there), shards[:4], "ab12")
    do_lease(str(there), shards[2:], "ab13")
    for shard in shards:
        assert np.array_equal(read_shard(here, shard), read_shard(there, shard))
    assert sorted(path.name for path in (there / BEATS).iterdir()) == ["ab12", "ab13"]


def test_shards_of_another_job_are_refused(tmp_path, recipe):
    write_job(tmp_path, ShardJob((recipe,), 3, "cpu", shard_images=4))
    for shard in (Shard(0, 0, 5), Shard(0, 0, 4, recipe=1)):
        with pytest.raises(InputError, match="is no shard of this job"):
            do_lease(str(tmp_path), [shard], "ab12")


def test_nothing_is_written_where_the_driver_has_cleared_up(tmp_path, recipe):
    gone = tmp_path / "gone"
    with pytest.raises(InputError, match="no job"):
        do_lease(str(gone), [Shard(0, 0, 4)], "ab12")
    assert not gone.exists()
