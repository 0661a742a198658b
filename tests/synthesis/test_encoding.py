import numpy as np
import pytest
import torch
from tiny_store import stripes

from pipeline.errors import InputError
from pipeline.features.frozen import Encoder
from pipeline.features.judge import fit_ensemble
from pipeline.params import SynthesizeParams
from pipeline.synthesis.encoding import choose_encoder, warn_of_mixed_classes, weights_digest

CPU = torch.device("cpu")
NAMES = ("rows", "columns")


@pytest.fixture(scope="module")
def training():
    return stripes([40, 40], "train", 0)


@pytest.fixture(scope="module")
def ensemble(training):
    return fit_ensemble(training, 2, 10, 2, 0, CPU, lambda step: None)


def choose(training, ensemble, **params):
    told = []
    found = choose_encoder(
        SynthesizeParams(**params),
        lambda: ensemble,
        training,
        None,
        CPU,
        lambda *step: told.append(step),
    )
    return found, told


def test_the_default_features_are_those_that_candidates_are_judged_by(training, ensemble):
    found, _ = choose(training, ensemble)
    assert np.array_equal(found.embed(training.images), ensemble.embed(training.images))
    assert found.width == found.embed(training.images).shape[1]
    again, _ = choose(training, fit_ensemble(training, 2, 10, 2, 1, CPU, lambda step: None))
    assert again.digest != found.digest


@pytest.mark.slow
def test_an_encoder_is_trained_without_labels_and_tells_how_far_it_is(training, ensemble):
    found, told = choose(training, ensemble, encoder="selfsupervised")
    assert told[-1][0] == told[-1][1] == len(told)
    assert found.embed(training.images[:3]).shape == (3, found.width)


@pytest.mark.parametrize("encoder", ["inception", "timm"])
def test_missing_weights_name_the_path(training, ensemble, tmp_path, encoder):
    folder = tmp_path / "nowhere"
    with pytest.raises(InputError, match="nowhere"):
        choose(training, ensemble, encoder=encoder, encoder_path=str(folder))
    folder.mkdir()
    with pytest.raises(InputError, match="nowhere"):
        choose(training, ensemble, encoder=encoder, encoder_path=str(folder))


def test_other_weights_are_other_work(tmp_path):
    params = SynthesizeParams(encoder="timm", encoder_path=str(tmp_path))
    digests = {weights_digest(params)}
    (tmp_path / "model.safetensors").write_bytes(b"a")
    digests.add(weights_digest(params))
    (tmp_path / "model.safetensors").write_bytes(b"b")
    digests.add(weights_digest(params))
    assert len(digests) == 3
    assert weights_digest(SynthesizeParams(encoder_path=str(tmp_path))) == ""
    hub = SynthesizeParams(encoder="timm", encoder_model="timm/some", encoder_path=str(tmp_path))
    assert weights_digest(hub) == ""


def constant(width):
    return Encoder(
        f"blind {width}", f"{width}", width, lambda images: np.ones((len(images), width))
    )


def test_classes_that_the_encoder_mixes_up_are_named(training, ensemble):
    validation = stripes([10, 10], "validation", 1)
    good, _ = choose(training, ensemble)
    assert warn_of_mixed_classes(good, training, validation, NAMES, 0) is None
    warning = warn_of_mixed_classes(constant(3), training, validation, NAMES, 0)
    assert "the encoder gives every image the same features" in warning
    lone = stripes([10, 0], "validation", 1)
    assert "is not known" in (warn_of_mixed_classes(good, training, lone, NAMES, 0) or "")
