import threading

import pytest
import torch

from pipeline import device
from pipeline.device import (
    autocast,
    pick_device,
    pick_precision,
    torch_threads,
    usable_cores,
)
from pipeline.errors import InputError

CPU = torch.device("cpu")


def test_cuda_that_is_not_there_is_an_input_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(InputError, match="execution.device = cuda: torch sees no CUDA device"):
        pick_device("cuda")


@pytest.mark.parametrize("faster", ["bfloat16", "float32"])
def test_auto_precision_is_the_faster_one_of_this_machine(monkeypatch, faster):
    asked = []
    monkeypatch.setattr(device, "faster_precision", lambda where: asked.append(where) or faster)
    assert pick_precision("auto", CPU) == faster
    assert asked == [CPU]
    assert pick_precision("float32", CPU) == "float32"
    assert pick_precision("bfloat16", CPU) == "bfloat16"
    assert asked == [CPU]  # a stated precision measures nothing


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_autocast_sets_the_type_of_products(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_threads_are_set_for_the_body_of_one_thread_and_denormals_flushed():
    found = []

    def work():
        with torch_threads(1):
            found.append(torch.get_num_threads())
            found.append(float(torch.tensor([1e-40]) * 1.0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1, 0.0]
    assert usable_cores() >= 1
