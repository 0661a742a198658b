"""Both forms of the versioning benchmark hold the same images, and its table compares them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.store import read_samples

FILE = Path(__file__).parents[2] / "benchmarks" / "versioning.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("versioning_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_store_and_folder_hold_the_same_images_of_the_same_classes(bench, tmp_path):
    for form in ("store", "folder"):
        bench.write_images(tmp_path / form, form, 23, 8)
    samples = read_samples(tmp_path / "store")
    files = sorted((tmp_path / "folder").rglob("*.png"), key=lambda path: path.stem)
    assert [path.stem for path in files] == [f"{row:06d}" for row in range(23)]
    pictures = np.stack([np.asarray(Image.open(path)) for path in files])
    np.testing.assert_array_equal(samples.images[..., 0], pictures)
    assert [bench.CLASSES[label] for label in samples.labels] == [p.parent.name for p in files]


def test_the_table_says_how_many_times_the_folder_takes(bench):
    numbers = dict.fromkeys(bench.STEPS, 0.5) | {"files": 2, "remote_files": 3, "bytes": 4e6}
    other = {name: 3 * value for name, value in numbers.items()} | {"files": 5000}
    lines = bench.table({"store": numbers, "folder": other})
    assert lines[3] == "| `dvc add`, seconds | 0.5 | 1.5 | 3.0 |"
    assert lines[7] == "| files | 2 | 5,000 | 2500.0 |"
    assert lines[9] == "| MB | 4.0 | 12.0 | 3.0 |"
