import numpy as np
import pytest
import torch
from tracking.full_run import CLASSES
from tracking.test_models import write_models

from pipeline.data.images import to_model
from pipeline.errors import InputError
from pipeline.features.networks import load_network
from pipeline.serving import BATCH_IMAGES, _load_pyfunc


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def generator(folders):
    return _load_pyfunc(str(folders / "train" / "generator"), {"sampler": "ddim", "steps": 2})


def test_a_classifier_gives_the_probabilities_of_its_network(folders):
    folder = folders / "evaluate" / "classifiers" / "synthetic"
    images = np.random.default_rng(0).integers(0, 256, (BATCH_IMAGES + 3, 8, 8, 1), np.uint8)
    said = _load_pyfunc(str(folder)).predict(images)
    with torch.inference_mode():
        wanted = torch.softmax(load_network(folder)(to_model(images)), 1).numpy()
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, wanted, atol=1e-6)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
    assert _load_pyfunc(str(folder)).predict(images[:0]).shape == (0, len(CLASSES))


def test_an_image_is_a_function_of_class_and_seed(generator):
    asked = {"class": ["plain", "a|b", "plain", "plain"], "seed": [1, 1, 2, 1]}
    said = generator.predict(asked)
    assert (said.shape, said.dtype) == ((4, 8, 8, 1), np.uint8)
    assert (said[0] == said[3]).all()
    assert (said[0] != said[2]).any()
    alone = generator.predict({"class": ["a|b"], "seed": [1]})
    assert np.abs(alone[0].astype(int) - said[1].astype(int)).max() <= 1  # rounding of the batch
    assert generator.predict({"class": [], "seed": []}).shape == (0, 8, 8, 1)


def test_an_unknown_class_is_named(generator):
    with pytest.raises(InputError, match=r"class 'tiger': the generator knows a\|b, a_b, plain"):
        generator.predict({"class": ["tiger"], "seed": [0]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"step": 3}, "unknown 'step'; known: sampler, steps"),
        ({"sampler": "magic"}, "sampler = 'magic'; one of ddpm"),
        ({"guide": "weaker"}, "this generator has no weaker network"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_that_cannot_be_are_refused(folders, config, message):
    with pytest.raises(InputError, match=message):
        _load_pyfunc(str(folders / "train" / "generator"), config)


def test_a_foreign_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a model of ours"):
        _load_pyfunc(str(tmp_path))
