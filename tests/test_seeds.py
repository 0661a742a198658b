import numpy as np
import pytest
import torch

from pipeline.seeds import (
    derive_seed,
    numpy_generator,
    seeded_globals,
    seeded_initialisers,
    torch_generator,
)

CPU = torch.device("cpu")


def test_seeds_are_stable_numbers() -> None:
    # Frozen: a change here changes every result for the same params.
    assert derive_seed(0, "split", 0) == 2180045319825170381


def test_root_and_every_name_matter() -> None:
    seeds = {
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a"),
        derive_seed(0, "b"),
        derive_seed(0, "a", 1),
        derive_seed(0, "a", "1"),
        derive_seed(0, "a1"),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_and_leave_the_global_ones_alone() -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = (torch.rand(4, generator=torch_generator(3, "noise")) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(4, generator=torch_generator(4, "noise")))
    c, d = (numpy_generator(3, "x").random(4) for _ in range(2))
    assert np.array_equal(c, d)
    assert torch.equal(torch_before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def drop(root: int, *names: str | int) -> torch.Tensor:
    """Return the mask of a third party's dropout."""
    with seeded_globals(root, CPU, *names):
        return torch.nn.functional.dropout(torch.ones(200), 0.5)


def fail_half_way() -> None:
    with seeded_globals(0, CPU, "x"):
        torch.rand(1)
        raise RuntimeError("half way")


def test_seeded_globals_give_the_same_dropout_for_the_same_names() -> None:
    one = drop(0, "dropout", 3)
    torch.rand(5)
    assert torch.equal(drop(0, "dropout", 3), one)
    for other in (drop(1, "dropout", 3), drop(0, "dropout", 4), drop(0, "dropout", 3, 1)):
        assert not torch.equal(other, one)


def test_seeded_globals_restore_the_state_even_after_an_error() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    expected = torch.rand(3)
    torch.random.set_rng_state(before)
    drop(0, "dropout")
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert torch.equal(torch.rand(3), expected)


def test_seeded_initialisers_are_the_named_seed_of_the_global_generator() -> None:
    with seeded_initialisers(3, "unet"):
        first = torch.rand(4)
        with seeded_initialisers(3, "inner"):
            torch.rand(2)
        second = torch.rand(4)
    named = torch_generator(3, "unet")
    assert torch.equal(first, torch.rand(4, generator=named))
    assert torch.equal(second, torch.rand(4, generator=named))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_seeded_globals_seed_and_restore_cuda_as_well() -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    found = []
    for _ in range(2):
        with seeded_globals(0, device, "dropout"):
            found.append(torch.nn.functional.dropout(torch.ones(200, device=device), 0.5))
    assert torch.equal(found[0], found[1])
    assert torch.equal(torch.cuda.get_rng_state(device), before)
