"""Which sizes of a batch are used: those of the same bits that fit, the fastest of them."""

import pytest
import torch

from pipeline.errors import StageError
from pipeline.synthesis.batches import (
    REFERENCE_IMAGES,
    activation_bytes,
    choose_batches,
    is_out_of_memory,
    memory_share,
)

CPU = torch.device("cpu")


class Clock:
    """Says what time it is, and goes on only when it is told to."""

    seconds = 0.0

    def perf_counter(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


time = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr("pipeline.synthesis.batches.time", time)


def rows(count):
    return torch.arange(count).float()[:, None, None, None]


def fake(seconds=lambda _: 0.0, odd=(), too_large=10**9):
    def call(count):
        if count > too_large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        time.sleep(seconds(count))
        return rows(count) + (1e-6 if count in odd else 0)

    return call


def test_the_fastest_size_is_taken():
    slow_start = fake(lambda count: 0.02 if count < 64 else 0.001)
    assert choose_batches(slow_start, CPU).images == 64


def test_the_smallest_of_equally_fast_sizes_is_taken():
    assert choose_batches(fake(lambda count: count * 0.001), CPU).images == 8


def test_sizes_that_round_otherwise_are_never_used():
    found = choose_batches(fake(lambda c: 0.02 if c < 64 else 0.001, odd=(64, 8)), CPU)
    assert found.images in (16, 32)
    assert 8 not in found.smaller
    wanted = choose_batches(fake(odd=(50, 8)), CPU, wanted=50)
    assert (wanted.images, wanted.smaller) == (32, (16,))


def test_a_wanted_size_is_used_where_it_has_the_same_bits():
    found = choose_batches(fake(), CPU, wanted=24)
    assert (found.images, found.smaller) == (24, (16, 8))


@pytest.mark.parametrize("wanted", [1, 5])
def test_a_wanted_size_below_all_that_agree_is_rounded_up(wanted):
    assert choose_batches(fake(odd=(1, 5)), CPU, wanted=wanted).images == 8


def test_the_memory_limit_holds():
    slow_start = fake(lambda count: 0.02 if count < 64 else 0.001)
    found = choose_batches(slow_start, CPU, bytes_per_image=1000, memory_bytes=40_000)
    assert found.images == 32
    assert choose_batches(fake(), CPU, 64, 1000, 20_000).images == 16


def test_where_the_reference_does_not_fit_half_of_it_serves():
    found = choose_batches(fake(too_large=20), CPU)
    assert found.images <= 16


def test_a_single_image_that_does_not_fit_is_an_error():
    with pytest.raises(StageError, match="does not hold the network's work on a single image"):
        choose_batches(fake(too_large=0), CPU)


def test_other_errors_are_not_hidden():
    def call(count):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        choose_batches(call, CPU)


def test_large_slow_networks_are_not_timed_at_every_size(monkeypatch):
    monkeypatch.setattr("pipeline.synthesis.batches._SLOW_SECONDS", 0.01)
    calls = []

    def call(count):
        calls.append(count)
        time.sleep(0.02 if count == REFERENCE_IMAGES else 0.002)
        return rows(count)

    choose_batches(call, CPU)
    assert max(calls) == REFERENCE_IMAGES


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_activations_are_counted():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    assert activation_bytes(model, lambda n: model(torch.zeros(n, 4))) == (8 + 2) * 4
    assert not model[0]._forward_hooks


def test_the_memory_is_shared_by_the_workers():
    assert memory_share(CPU, 2, 100) == 100 << 20
    assert memory_share(CPU, 4, None) * 3 < memory_share(CPU, 1, None)
