import math

import numpy as np
import pytest
import torch

from pipeline.data.images import flat_pixels, to_model
from pipeline.data.store import make_samples
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.errors import StageError
from pipeline.synthesis import measures as module
from pipeline.synthesis.probe import Probe

CPU = torch.device("cpu")
SPEC = GeneratorSpec(("a", "b", "c"), 8, "L", "cosine", "velocity", False, "", None)
SETTINGS = SamplerSettings("dpmsolver++", 2, Guidance(1.5))


def stripes(labels, seed):
    """Images whose direction is their label, each with noise of its own."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8]
    waves = np.stack([np.sin(1.5 * x), np.sin(1.5 * y), np.sin(x + y)])
    noise = random.normal(0, 0.4, (len(labels), 8, 8))
    return ((waves[labels] + noise) * 60 + 128).clip(0, 255).astype(np.uint8)[..., None]


def rows(counts, seed, split="train"):
    labels = np.repeat(np.arange(3), counts)
    return make_samples(stripes(labels, seed), labels, split, "real")


TRAINING, HELDOUT = rows((40, 30, 20), 0), rows((20, 15, 10), 1, "validation")


def make(images=60, heldout=HELDOUT, seed=0, embed=flat_pixels, training=TRAINING):
    return Probe(SPEC, training, heldout, embed, SETTINGS, images, seed, CPU)


@pytest.fixture
def generator(monkeypatch):
    """Let a probe sample from a function labels -> (N, H, W, C) uint8 instead of a network."""

    def become(draw):
        def sample(model, spec, labels, generators, settings, device, weaker):
            assert (spec, settings, device) == (SPEC, SETTINGS, CPU)
            assert len(labels) == len(generators) <= 64
            return to_model(draw(labels.numpy()))

        monkeypatch.setattr(module, "sample", sample)

    return become


def replay(samples, seed=0):
    """Return images of the asked labels from some rows."""
    random = np.random.default_rng(seed)

    def draw(labels):
        return np.stack(
            [samples.images[random.choice(np.flatnonzero(samples.labels == c))] for c in labels]
        )

    return draw


def new(labels):
    return stripes(labels, 77)


def noise(labels):
    return np.random.default_rng(3).integers(0, 256, (len(labels), 8, 8, 1)).astype(np.uint8)


def test_the_same_call_gives_the_same_numbers_and_another_network_others():
    model, other = (build_unet(8, "L", 3, Preset(8, 1), seed).eval() for seed in (0, 1))
    probe = make(images=70)  # more than a batch
    first, images = probe(model), probe.draw(model)
    torch.rand(3)
    assert probe(model) == first
    assert np.array_equal(probe.draw(model), images)
    assert images.shape == (70, 8, 8, 1)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 70
    assert np.array_equal(make(images=70).draw(model), images)
    assert not np.array_equal(make(images=70, seed=1).draw(model), images)
    assert probe(other)[1] != first[1]


def test_the_noise_of_a_sample_does_not_depend_on_how_many_there_are(monkeypatch):
    drawn = []

    def sample(model, spec, labels, generators, settings, device, weaker):
        drawn.extend(torch.rand(1, generator=one).item() for one in generators)
        return torch.zeros(len(labels), 1, 8, 8)

    monkeypatch.setattr(module, "sample", sample)
    make(images=130).draw(None)
    assert len(set(drawn)) == 130
    first, drawn[:] = drawn[:20], []
    make(images=20).draw(None)
    assert drawn == first


def test_training_images_are_copies_and_held_out_ones_are_not(generator):
    probe = make()
    generator(replay(TRAINING))
    assert probe(None)[0] == 1.0
    generator(replay(HELDOUT))
    assert probe(None)[0] == 0.0
    generator(noise)
    assert probe(None)[0] == 0.0


def test_near_copies_are_copies(generator):
    random = np.random.default_rng(0)
    exact = replay(TRAINING)

    def draw(labels):
        images = exact(labels).astype(int)
        return (images + random.integers(-3, 4, images.shape)).clip(0, 255).astype(np.uint8)

    generator(draw)
    assert make()(None)[0] == 1.0


def test_a_thin_class_counts_as_much_as_a_thick_one(generator):
    copy = replay(TRAINING)

    def draw(labels):
        return np.where((labels == 2)[:, None, None, None], copy(labels), new(labels))

    generator(draw)
    thin = rows((30, 30, 4), 1, "validation")
    assert make(images=200, heldout=thin)(None)[0] == pytest.approx(1 / 3)


def test_the_labels_are_those_of_the_held_out_rows_in_turn(generator):
    asked = []

    def draw(labels):
        asked.extend(labels.tolist())
        return new(labels)

    generator(draw)
    make(images=90)(None)
    assert np.bincount(asked).tolist() == [40, 30, 20]
    assert sorted(asked[:45]) == sorted(HELDOUT.labels.tolist())
    assert asked[:45] != HELDOUT.labels.tolist()


def quality(generator, draw, **changes):
    generator(draw)
    return make(images=200, **changes)(None)[1]


def test_new_draws_are_nearer_to_held_out_images_than_worse_ones(generator):
    good = quality(generator, new)
    assert quality(generator, noise) > good + 0.1
    assert quality(generator, lambda labels: np.zeros((len(labels), 8, 8, 1), np.uint8)) > good
    # One image a class, over and over: no copy of the held-out rows' spread.
    assert quality(generator, lambda labels: TRAINING.images[[0, 40, 70]][labels]) > good + 0.01


def test_images_of_another_class_than_asked_for_count_as_wrong(generator):
    # The images as a set are just as good, but for the labels.
    even = rows((15, 15, 15), 1, "validation")
    right = quality(generator, new, heldout=even)
    wrong = quality(generator, lambda labels: new((labels + 1) % 3), heldout=even)
    assert wrong > right + 0.1


def test_fresh_draws_are_at_nought_in_the_mean_whatever_the_number_of_held_out_rows(generator):
    def fresh(counts):
        seeds = iter(range(500, 1000))  # each batch has noise of its own
        return [
            quality(
                generator,
                lambda labels: stripes(labels, next(seeds)),
                heldout=rows(counts, 100 + s),
                seed=s,
            )
            for s in range(24)
        ]

    for counts in ((20, 15, 10), (2, 2, 2)):
        found = fresh(counts)
        assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert quality(generator, noise) > 0.5


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_distance_does_not_depend_on_the_scale_of_the_features(generator, scale):
    expected = quality(generator, noise)
    found = quality(generator, noise, embed=lambda images: scale * flat_pixels(images))
    assert found == pytest.approx(expected, rel=1e-4)


def test_too_few_rows_have_no_quality_but_a_share_of_copies(generator):
    generator(replay(TRAINING))
    one_each = HELDOUT.take([0, 20, 35])
    share, distance = make(heldout=one_each)(None)
    assert share == 1.0
    assert math.isnan(distance)
    share, distance = make(images=1)(None)
    assert share == 1.0
    assert math.isnan(distance)
    two_of_one = HELDOUT.take([0, 1, 20, 35])
    assert math.isfinite(make(images=8, heldout=two_of_one)(None)[1])


def test_one_training_row_is_too_few_to_tell_copies():
    with pytest.raises(StageError, match="1 real rows; .* needs at least 2"):
        make(training=TRAINING.take([0]))
