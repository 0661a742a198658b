import numpy as np
import pytest
import torch

from pipeline.diffusion.checkpoints import Generator, GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.synthesis.executors import ThreadExecutor
from pipeline.synthesis.shards import Shard, read_shard, sample_shard, write_shard

CPU = torch.device("cpu")
SETTINGS = SamplerSettings("dpmsolver++", 3, Guidance(1.5))


@pytest.fixture(scope="module")
def generator():
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    return Generator(spec, build_unet(8, "L", 2, Preset(8, 1), seed=0).eval(), "digest")


def test_a_shard_names_its_indices():
    assert list(Shard(label=1, number=2, size=4).indices) == [8, 9, 10, 11]


def test_a_shard_comes_back_and_a_damaged_one_does_not(tmp_path):
    shard = Shard(0, 0, 2)
    images = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    assert read_shard(tmp_path, shard) is None
    write_shard(tmp_path, shard, images)
    assert np.array_equal(read_shard(tmp_path, shard), images)
    path = tmp_path / f"{shard.name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read_shard(tmp_path, shard) is None
    write_shard(tmp_path, shard, images)
    (tmp_path / f"{shard.name}.sha256").unlink()
    assert read_shard(tmp_path, shard) is None


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_images_do_not_depend_on_the_workers_or_the_order(tmp_path, generator, workers):
    shards = [Shard(label, number, 4) for label in (0, 1) for number in (0, 1)]
    expected = {shard: sample_shard(shard, generator, SETTINGS, 0, CPU) for shard in shards}

    def work(shard):
        write_shard(tmp_path, shard, sample_shard(shard, generator, SETTINGS, 0, CPU))

    done = set(ThreadExecutor(workers).run(shards[::-1], work))
    assert done == set(shards)
    for shard in shards:
        assert np.array_equal(read_shard(tmp_path, shard), expected[shard])


def test_images_depend_on_seed_class_and_index(generator):
    first = sample_shard(Shard(0, 0, 2), generator, SETTINGS, 0, CPU)
    for other in (
        sample_shard(Shard(0, 0, 2), generator, SETTINGS, 1, CPU),
        sample_shard(Shard(0, 1, 2), generator, SETTINGS, 0, CPU),
        sample_shard(Shard(1, 0, 2), generator, SETTINGS, 0, CPU),
    ):
        assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_an_error_in_a_shard_reaches_the_caller_and_finished_shards_stay(tmp_path):
    shards = [Shard(0, number, 1) for number in range(4)]

    def work(shard):
        if shard.number == 2:
            raise ValueError("broken")
        write_shard(tmp_path, shard, np.zeros((1, 8, 8, 1), dtype=np.uint8))

    with pytest.raises(ValueError, match="broken"):
        list(ThreadExecutor(1).run(shards, work))
    assert read_shard(tmp_path, shards[0]) is not None
