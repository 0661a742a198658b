import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.data.decoding import Limits, Rejected, decode_image, quiet_pillow
from pipeline.data.images import encode_png

PATH = Path(__file__).parents[2] / "benchmarks" / "planted_faults.py"
LIMITS = Limits(1 << 20, 1 << 20)
NEAR = ("shift", "light", "JPEG", "noise", "crop")
DAMAGES = ("cut short", "zeroed header", "empty", "text", "flipped bytes")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("planted_faults", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_kind_of_fault_is_tested(bench: ModuleType) -> None:
    assert (bench.NEAR, bench.DAMAGES) == (NEAR, DAMAGES)


@pytest.mark.parametrize("how", NEAR)
def test_altered_images_differ_and_have_the_same_shape(bench: ModuleType, how: str) -> None:
    image = bench.read_digits()[0][0]
    changed = bench.alter(image, how, np.random.default_rng(0))
    assert changed.shape == image.shape
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_no_images(bench: ModuleType, how: str) -> None:
    with quiet_pillow():
        data = bench.damage(encode_png(bench.read_digits()[0][0]), how)
        assert isinstance(decode_image(data, LIMITS), Rejected)


def test_no_image_has_two_faults_and_the_shares_are_as_told(bench: ModuleType) -> None:
    images = bench.read_digits()[0][:400]
    files = [encode_png(image) for image in images]
    clean = bench.Planted(files, [0, 1] * 200, ["train", "test"] * 200)
    out = bench.plant(clean, images, np.random.default_rng(0))
    assert (len(out.exact), len(out.near), len(out.wrong), len(out.corrupt)) == (4, 4, 8, 2)
    sources = [*out.exact.values(), *(row for row, _ in out.near.values())]
    touched = [*sources, *out.wrong, *out.corrupt]
    assert len(touched) == len(set(touched))
    assert all(out.splits[row] != out.splits[source] for row, source in out.exact.items())
    assert all(out.labels[row] != clean.labels[row] for row in out.wrong)
    assert clean.files == files


def test_the_table_has_what_was_planted_and_found(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(folder=tmp_path, quick=True, rows=400, seed=0, json_file=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["exact"] == {"planted": 4, "found": 4, "share": 1.0, "false_alarms": 0}
    assert figures["corrupt"] == {"planted": 2, "found": 2, "share": 1.0, "false_alarms": 0}
    assert figures["near"]["false_alarms"] == 0
    assert figures["label"]["found"] >= 3
    assert figures["without_faults"]["near_images"] == 0
    assert "| exact | 4 | 4 | 1.0 | 0 |" in capsys.readouterr().out
