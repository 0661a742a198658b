import numpy as np

from pipeline.synthesis.shards import Shard, read_shard, write_shard


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
