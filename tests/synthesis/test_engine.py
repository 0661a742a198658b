"""The engine: an image depends on its class and index, not on the batch that it is drawn in."""

import numpy as np
import pytest
import torch

from pipeline.data.images import from_model
from pipeline.device import torch_threads
from pipeline.diffusion.checkpoints import Generator, GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.network import Network
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import InputError, StageError
from pipeline.seeds import torch_generator
from pipeline.synthesis.batches import Batches
from pipeline.synthesis.engine import Candidate, Engine
from pipeline.synthesis.parents import Editing

CPU = torch.device("cpu")
SETTINGS = SamplerSettings("dpmsolver++", 3, Guidance(1.5, 0.0, 5.0))
CANDIDATES = [Candidate(i % 2, i) for i in range(70)]


@pytest.fixture(scope="module")
def generator():
    spec = GeneratorSpec(("a", "b"), 8, "L", "cosine", "velocity", False, "", None)
    model = build_unet(8, "L", 2, Preset(16, 1), seed=0).eval().requires_grad_(False)
    noise = torch_generator(0, "shaken")  # a fresh network predicts nought everywhere
    for weight in model.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=noise)
    return Generator(spec, model, "digest")


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield


def make_editing(**changes):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    values = {
        "mode": "edit",
        "images": images,
        "labels": np.array([0, 0, 0, 1, 1, 1]),
        "ids": tuple("abcdef"),
        "classes": ("a", "b"),
        "strengths": (0.3, 0.8),
        "mask": "box",
        "mask_share": 0.3,
        "masks": (),
        "resample_times": 2,
    }
    return Editing(**{**values, **changes})


@pytest.mark.parametrize("editing", [None, make_editing(), make_editing(mode="inpaint")])
def test_an_image_is_the_same_in_every_batch_and_order(generator, editing):
    whole = Engine(generator, SETTINGS, 0, CPU, editing, batch_images=32).draw(CANDIDATES)
    assert len({image.tobytes() for image in whole}) == len(CANDIDATES)
    order = np.random.default_rng(1).permutation(len(CANDIDATES))
    for size in (16, 64):
        engine = Engine(generator, SETTINGS, 0, CPU, editing, batch_images=size)
        shuffled = engine.draw([CANDIDATES[i] for i in order])
        assert np.array_equal(shuffled, whole[order])
    alone = Engine(generator, SETTINGS, 0, CPU, editing)
    assert np.array_equal(alone.draw([CANDIDATES[13]])[0], whole[13])


def test_it_draws_what_plain_sampling_draws(generator):
    found = Engine(generator, SETTINGS, 0, CPU, batch_images=32).draw(CANDIDATES[:32])
    noise = [
        torch_generator(0, "candidate", "digest", one.label, one.index) for one in CANDIDATES[:32]
    ]
    labels = torch.tensor([one.label for one in CANDIDATES[:32]])
    plain = sample(generator.model, generator.spec, labels, noise, SETTINGS, CPU)
    assert np.array_equal(found, from_model(plain))


def test_memory_that_runs_out_halves_the_batch_and_the_images_stay(generator, monkeypatch):
    whole = Engine(generator, SETTINGS, 0, CPU, batch_images=32).draw(CANDIDATES)
    engine = Engine(generator, SETTINGS, 0, CPU, batch_images=64)
    assert engine.batch_images == 64
    call, forgotten = Network.__call__, []

    def short_of_memory(self, seen, time, labels):
        if len(seen) > 40:  # two halves of 16 fit
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return call(self, seen, time, labels)

    monkeypatch.setattr(Network, "__call__", short_of_memory)
    monkeypatch.setattr(Network, "forget", lambda self: forgotten.append(self))
    assert np.array_equal(engine.draw(CANDIDATES), whole)
    assert engine.batch_images == 16
    assert len(forgotten) == 2


def test_memory_that_does_not_hold_the_smallest_batch_is_an_error(generator, monkeypatch):
    engine = Engine(generator, SETTINGS, 0, CPU)
    engine._batches = Batches(16, ())

    def none_left(self, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Network, "__call__", none_left)
    with pytest.raises(StageError, match="does not hold a batch of 16 images"):
        engine.draw(CANDIDATES)


def test_other_errors_are_not_taken_for_a_lack_of_memory(generator, monkeypatch):
    engine = Engine(generator, SETTINGS, 0, CPU)
    engine._batches = Batches(16, (8,))

    def broken(self, *inputs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Network, "__call__", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.draw(CANDIDATES)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_class_that_the_generator_does_not_know_is_refused(generator, label):
    engine = Engine(generator, SETTINGS, 0, CPU)
    with pytest.raises(InputError, match=rf"class {label}: the generator knows the classes 0 to 1"):
        engine.draw([Candidate(label, 0)])


def test_steps_above_the_levels_are_refused_before_any_work(generator):
    with pytest.raises(InputError, match="use 1 to 1000"):
        Engine(generator, SamplerSettings("ddim", 1001), 0, CPU)


def test_autoguidance_without_a_weaker_network_is_refused_before_any_work(generator):
    settings = SamplerSettings("ddim", 5, Guidance(2.0, guide="weaker"))
    with pytest.raises(InputError, match=r"set train\.guide to earlier or smaller"):
        Engine(generator, settings, 0, CPU)


def test_nothing_asked_for_is_nothing_drawn(generator):
    assert Engine(generator, SETTINGS, 0, CPU).draw([]).shape == (0, 8, 8, 1)


def test_edits_keep_of_the_parent_what_their_strength_leaves(generator):
    weak = make_editing(strengths=(0.05,))
    strong = make_editing(strengths=(1.0,))
    distances = []
    for editing in (weak, strong):
        engine = Engine(generator, SETTINGS, 0, CPU, editing)
        images = engine.draw(CANDIDATES).astype(float)
        rows = [engine.origin(one).row for one in CANDIDATES]
        distances.append(np.abs(images - editing.images[rows]).mean())
    assert distances[0] < 0.5 * distances[1]


def test_inpainting_keeps_all_but_the_mask(generator):
    editing = make_editing(mode="inpaint")
    engine = Engine(generator, SETTINGS, 0, CPU, editing)
    images = engine.draw(CANDIDATES[:10])
    for image, one in zip(images, CANDIDATES, strict=False):
        origin = engine.origin(one)
        parent = editing.images[origin.row]
        assert np.array_equal(image[~origin.mask], parent[~origin.mask])
        assert not np.array_equal(image, parent)
