import json
import os

import pytest
import torch

from pipeline import machine
from pipeline.machine import faster_precision, has_bfloat16_instructions, measure

CPU = torch.device("cpu")


class Stub:
    """Stands for `measure`: answers as told, and counts its calls."""

    def __init__(self):
        self.precision, self.calls = "bfloat16", 0

    def __call__(self, device):
        assert device == CPU
        self.calls += 1
        return {"precision": self.precision, "float32_seconds": 2.0, "bfloat16_seconds": 1.0}


@pytest.fixture
def path(tmp_path, monkeypatch):
    found = tmp_path / "cache" / "precision.json"
    monkeypatch.setattr(machine, "cache_file", lambda: found)
    forget()
    yield found
    forget()


@pytest.fixture
def stub(monkeypatch):
    found = Stub()
    monkeypatch.setattr(machine, "measure", found)
    return found


def forget():
    """Do as a new process does."""
    machine._faster_precision.cache_clear()


def test_measured_once_and_kept(path, stub):
    assert faster_precision(CPU) == "bfloat16"
    assert faster_precision(CPU) == "bfloat16"
    assert stub.calls == 1
    forget()
    stub.precision = "float32"
    assert faster_precision(CPU) == "bfloat16"  # what the file says
    assert stub.calls == 1
    (kept,) = json.loads(path.read_text()).values()
    assert (kept["precision"], kept["float32_seconds"]) == ("bfloat16", 2.0)


def test_the_file_is_read_and_not_measured_again(path, stub):
    faster_precision(CPU)
    data = json.loads(path.read_text())
    for kept in data.values():
        kept["precision"] = "float32"
    path.write_text(json.dumps(data))
    forget()
    assert faster_precision(CPU) == "float32"
    path.unlink()
    forget()
    assert faster_precision(CPU) == "bfloat16"
    assert stub.calls == 2


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[1, 2]", b'"bfloat16"'])
def test_a_damaged_file_is_measured_anew_and_mended(path, stub, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert faster_precision(CPU) == "bfloat16"
    assert stub.calls == 1
    forget()
    assert faster_precision(CPU) == "bfloat16"
    assert stub.calls == 1


@pytest.mark.parametrize("entry", ["bfloat16", None, {}, {"precision": "float16"}])
def test_a_damaged_entry_is_measured_anew(path, stub, entry):
    faster_precision(CPU)
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: entry}))
    forget()
    stub.precision = "float32"
    assert faster_precision(CPU) == "float32"
    assert stub.calls == 2


def test_other_machines_in_the_file_are_kept_and_not_believed(path, stub, monkeypatch):
    faster_precision(CPU)
    forget()
    stub.precision = "float32"
    monkeypatch.setattr(machine, "_describe", lambda device: {"device": "another", "torch": "9"})
    assert faster_precision(CPU) == "float32"
    kept = [one["precision"] for one in json.loads(path.read_text()).values()]
    assert sorted(kept) == ["bfloat16", "float32"]


@pytest.mark.parametrize("flags", [True, False])
def test_what_cannot_be_kept_goes_by_the_flags_of_the_hardware(path, stub, monkeypatch, flags):
    path.parent.write_text("a file where the folder would be")
    monkeypatch.setattr(machine, "has_bfloat16_instructions", lambda device: flags)
    for stub.precision in ("float32", "bfloat16"):
        forget()
        assert faster_precision(CPU) == ("bfloat16" if flags else "float32")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_is_not_ours_goes_by_the_flags(path, stub):
    path.parent.mkdir(mode=0o500)
    expected = "bfloat16" if has_bfloat16_instructions(CPU) else "float32"
    assert faster_precision(CPU) == expected
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_whoever_predicts_may_be_the_first_to_ask(mode):
    with mode():
        found = measure(CPU)
        assert not torch.is_grad_enabled()
    assert min(found["float32_seconds"], found["bfloat16_seconds"]) > 0


def test_a_measurement_holds_both_times_and_what_was_measured():
    found = measure(CPU)
    slow, fast = found["float32_seconds"], found["bfloat16_seconds"]
    assert 0 < slow < 60
    assert 0 < fast < 60
    assert found["precision"] == ("bfloat16" if slow >= 1.2 * fast else "float32")
    assert found["torch"] == torch.__version__
    assert found["bfloat16_instructions"] in ("True", "False")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "precision"),
    [
        (0.1, 0.2, "float32"),
        (0.11, 0.1, "float32"),
        (0.13, 0.1, "bfloat16"),
        (0.1, 9.0, "float32"),
    ],
)
def test_bfloat16_must_be_a_fifth_faster(monkeypatch, float32, bfloat16, precision):
    # A clock that each convolution moves by what its precision is said to cost.
    now, passes = [0.0], []

    def convolve(images, weight, padding):
        passes.append(torch.is_autocast_enabled("cpu"))
        now[0] += bfloat16 if torch.is_autocast_enabled("cpu") else float32
        return (images[:1, :1, :1, :1] * weight.sum()).clone()

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(machine.functional, "conv2d", convolve)
    found = measure(CPU)
    assert found["float32_seconds"] == pytest.approx(float32)
    assert found["bfloat16_seconds"] == pytest.approx(bfloat16)
    assert found["precision"] == precision
    # One pass to warm up, then as many as there is time for.
    assert passes == [False, True] * (2 if bfloat16 > 1 else 6)


def test_the_file_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "user_cache_path", lambda name, appauthor: tmp_path / name)
    assert machine.cache_file() == tmp_path / "replenish" / "precision.json"
