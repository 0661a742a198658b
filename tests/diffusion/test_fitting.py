import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.images import from_model
from pipeline.data.store import make_samples
from pipeline.diffusion import fitting
from pipeline.diffusion.augmentation import Augmentation
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.fitting import (
    class_labels,
    make_objective,
    pick_dropout,
    pick_preset,
    sheet_drawer,
    to_rows,
)
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.unet import PRESETS, Preset
from pipeline.params import TrainParams

CPU = torch.device("cpu")


def test_the_size_of_the_network_is_told_with_its_reason():
    preset, told = pick_preset(TrainParams(), 28, 500)
    assert preset == PRESETS["small"]
    assert told == "small network (500 images of 28 px: up to 32 px, below 100,000 images)"
    preset, told = pick_preset(TrainParams(preset="large"), 28, 500)
    assert preset == PRESETS["large"]
    assert told == "large network (as train.preset says)"
    preset, told = pick_preset(TrainParams(preset="large", base_channels=16), 28, 500)
    assert preset == Preset(16, PRESETS["large"].layers)
    assert told == "large network of width 16 (train.base_channels)"


def test_dropout_follows_the_images_unless_it_is_stated():
    assert pick_dropout(TrainParams(), 500) == 0.1
    assert pick_dropout(TrainParams(dropout=0.0), 500) == 0.0
    assert pick_dropout(TrainParams(dropout=0.3), 1_000_000) == 0.3


def test_the_objective_is_that_of_the_params():
    params = TrainParams(
        schedule="lognormal",
        prediction="edm",
        weighting="edm",
        min_snr_gamma=3.0,
        augment=("flip", "rotate"),
        augment_probability=0.4,
    )
    objective = make_objective(params, "bfloat16", 4, label_dropout=0.2, class_balance=0.1)
    assert objective.process == NoiseProcess("lognormal", "edm", False)
    assert (objective.weighting, objective.min_snr_gamma) == ("edm", 3.0)
    assert objective.augmentation == Augmentation(("flip", "rotate"), 0.4)
    assert (objective.null_class, objective.precision) == (4, "bfloat16")
    assert (objective.label_dropout, objective.class_balance) == (0.2, 0.1)


@pytest.mark.parametrize("changes", [{}, {"augment": ("flip",), "augment_probability": 0.0}])
def test_no_augmentation_where_nothing_would_be_drawn(changes):
    assert make_objective(TrainParams(**changes), "float32", 2).augmentation is None


def test_samples_become_rows_with_their_labels_or_with_one():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    samples = make_samples(images, np.array([0, 1, 1]), "train", "real")
    rows = to_rows(samples, CPU)
    assert rows.images.shape == (3, 1, 8, 8)
    assert np.array_equal(from_model(rows.images), images)
    assert rows.labels.tolist() == [0, 1, 1]
    assert to_rows(samples, CPU, label=5).labels.tolist() == [5, 5, 5]
    assert samples.labels.tolist() == [0, 1, 1]


def test_labels_of_a_sheet_go_class_by_class_up_to_twenty():
    assert class_labels(3, 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert class_labels(30, 1).tolist() == list(range(20))


@pytest.mark.parametrize(("classes", "guidance"), [(("a", "b"), 1.5), ((), 1.0)])
def test_sheets_have_the_same_noise_at_every_step(
    monkeypatch, tmp_path, recording_tracker, classes, guidance
):
    noise = []

    def sample(model, spec, labels, generators, settings, device):
        assert settings.guidance.weight == guidance  # without classes there is nothing to guide by
        drawn = torch.stack([torch.randn((1, 8, 8), generator=one) for one in generators])
        noise.append(drawn)
        return drawn.clamp(-1, 1)

    monkeypatch.setattr(fitting, "sample", sample)
    spec = GeneratorSpec(classes, 8, "L", "cosine", "velocity", False, "", None)
    labels = torch.zeros(6).long()
    draw = sheet_drawer(spec, labels, 2, 0, "float32", CPU, tmp_path, recording_tracker)
    draw(None, 5)
    draw(None, 1000)
    assert torch.equal(noise[0], noise[1])
    assert len({one.numpy().tobytes() for one in noise[0]}) == 6
    names = ["step-000005.png", "step-001000.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == names
    assert [name for _, name in recording_tracker.artifacts] == [f"samples/{n}" for n in names]
    with Image.open(tmp_path / "samples" / names[0]) as sheet:
        assert sheet.size == (2 * (3 * 9 + 1), 2 * (2 * 9 + 1))
