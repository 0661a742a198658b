from types import SimpleNamespace

import pytest
import torch

from pipeline.diffusion.noise import NoiseLevels
from pipeline.diffusion.objective import Objective

CPU = torch.device("cpu")


class Recorder(torch.nn.Module):
    """Answers zero, and keeps the labels and times that it was asked with."""

    def forward(self, noisy, time, class_labels):
        self.labels, self.time = class_labels, time
        return SimpleNamespace(sample=torch.zeros_like(noisy))


def make(**changes):
    values = {
        "levels": NoiseLevels("cosine", CPU),
        "prediction": "velocity",
        "min_snr_gamma": None,
        "label_dropout": 0.0,
        "null_class": 7,
        "precision": "float32",
    }
    return Objective(**{**values, **changes})


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_labels_are_dropped_at_the_stated_share(share):
    model, images = Recorder(), torch.zeros(4000, 1, 1, 1)
    make(label_dropout=share)(
        model, images, torch.zeros(4000).long(), torch.Generator().manual_seed(0)
    )
    assert (model.labels == 7).float().mean().item() == pytest.approx(share, abs=0.03)
    assert model.time.float().mean().item() == pytest.approx(500, abs=20)


def test_uniform_weighting_of_a_noise_prediction_of_zero_is_the_noise_variance():
    loss = make(prediction="noise")(
        Recorder(),
        torch.zeros(500, 1, 8, 8),
        torch.zeros(500).long(),
        torch.Generator().manual_seed(0),
    )
    assert loss.item() == pytest.approx(1.0, abs=0.03)


def test_min_snr_lowers_the_weight_of_nearly_clean_images():
    images, noise = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    time, labels = torch.tensor([1, 1]), torch.zeros(2).long()
    plain = make(prediction="noise").error(Recorder(), images, labels, time, noise)
    weighted = make(prediction="noise", min_snr_gamma=5.0).error(
        Recorder(), images, labels, time, noise
    )
    assert weighted < 0.01 * plain
