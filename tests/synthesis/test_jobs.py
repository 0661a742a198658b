from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from pipeline.device import torch_threads
from pipeline.diffusion.checkpoints import GeneratorSpec, load_generator, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.recipes import Recipe
from pipeline.synthesis.shards import Shard

SETTINGS = SamplerSettings("dpmsolver++", 3, Guidance(1.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    save_generator(folder, spec, build_unet(8, "L", 2, Preset(8, 1), seed=0))
    return folder


def recipes(folder):
    written = any(folder.iterdir())
    digest = load_generator(folder, torch.device("cpu")).digest if written else ""
    return (
        Recipe("as asked", folder, digest, SETTINGS),
        Recipe("firmer", folder, digest, replace(SETTINGS, guidance=Guidance(6.0))),
    )


def draw(folder, *shards, seed=0, **changes):
    with torch_threads(1):
        return ShardJob(recipes(folder), seed, "cpu", **changes).start().sample(shards)


def test_images_depend_on_seed_class_and_index(folder):
    (first,) = draw(folder, Shard(0, 0, 2))
    (other_seed,) = draw(folder, Shard(0, 0, 2), seed=1)
    next_ones, other_class = draw(folder, Shard(0, 1, 2), Shard(1, 0, 2))
    for other in (other_seed, next_ones, other_class):
        assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_shards_of_any_size_hold_the_same_candidates(folder):
    (whole,) = draw(folder, Shard(1, 0, 12))
    parts = draw(folder, *(Shard(1, number, 4) for number in range(3)))
    assert [len(part) for part in parts] == [4, 4, 4]
    assert np.array_equal(np.concatenate(parts), whole)


def test_as_many_shards_are_taken_at_once_as_fill_a_batch(folder):
    with torch_threads(1):
        job = ShardJob(recipes(folder), 0, "cpu", batch_images=64, shard_images=16)
        assert job.start().at_once == 4
        job = ShardJob(recipes(folder), 0, "cpu", batch_images=16, shard_images=100)
        assert job.start().at_once == 1


def test_a_job_can_be_sent_and_does_shards_where_it_arrives(folder):
    job = ShardJob(recipes(folder), 7, "cpu")
    start = ForkingPickler.loads(ForkingPickler.dumps(job.start))
    (expected,) = draw(folder, Shard(1, 3, 4), seed=7)
    with torch_threads(1):
        assert np.array_equal(start().sample([Shard(1, 3, 4)])[0], expected)


def test_a_job_without_a_generator_says_so_at_its_start(tmp_path):
    with pytest.raises(InputError, match="not a readable generator"):
        ShardJob(recipes(tmp_path), 0, "cpu").start()


def test_shards_of_several_recipes_are_drawn_each_by_its_own(folder):
    mixed = [Shard(0, 0, 3, recipe=1), Shard(0, 0, 3), Shard(1, 0, 3, recipe=1)]
    firm, plain, other = draw(folder, *mixed)
    assert not np.array_equal(firm, plain)
    for shard, found in zip(mixed, (firm, plain, other), strict=True):
        assert np.array_equal(draw(folder, shard)[0], found)
    assert len({shard.name for shard in mixed}) == 3


def test_an_engine_of_a_recipe_shares_the_network(folder):
    with torch_threads(1):
        worker = ShardJob(recipes(folder), 0, "cpu").start()
        assert worker.engine(0) is worker.engine(0)
        assert worker.engine(0)._generator is worker.engine(1)._generator


def test_a_job_of_another_generator_is_refused(folder):
    asked = replace(recipes(folder)[0], digest="0" * 64)
    with pytest.raises(StageError, match="another generator .* than the one that shards are asked"):
        ShardJob((asked,), 0, "cpu").start()


def test_threads_that_load_at_once_leave_torch_as_it_was(folder):
    device = torch.device("cpu")
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: load_generator(folder, device).digest, range(32)))
    assert len(set(found)) == 1
    assert torch.nn.Linear(2, 2).weight.device == device  # diffusers had put them on `meta`
