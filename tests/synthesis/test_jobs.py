from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from pipeline.device import torch_threads
from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.shards import Shard

SETTINGS = SamplerSettings("dpmsolver++", 3, Guidance(1.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    save_generator(folder, spec, build_unet(8, "L", 2, Preset(8, 1), seed=0))
    return folder


def draw(folder, *shards, seed=0, **changes):
    with torch_threads(1):
        return ShardJob(folder, SETTINGS, seed, "cpu", **changes).start().sample(shards)


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
        job = ShardJob(folder, SETTINGS, 0, "cpu", batch_images=64, shard_images=16)
        assert job.start().at_once == 4
        job = ShardJob(folder, SETTINGS, 0, "cpu", batch_images=16, shard_images=100)
        assert job.start().at_once == 1


def test_a_job_can_be_sent_and_does_shards_where_it_arrives(folder):
    job = ShardJob(folder, SETTINGS, 7, "cpu")
    start = ForkingPickler.loads(ForkingPickler.dumps(job.start))
    (expected,) = draw(folder, Shard(1, 3, 4), seed=7)
    with torch_threads(1):
        assert np.array_equal(start().sample([Shard(1, 3, 4)])[0], expected)


def test_a_job_without_a_generator_says_so_at_its_start(tmp_path):
    with pytest.raises(InputError, match="not a readable generator"):
        ShardJob(tmp_path, SETTINGS, 0, "cpu").start()
