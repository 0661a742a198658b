import random
from importlib import metadata

import numpy as np
import pytest

from pipeline.data import augment as module
from pipeline.data.augment import Policy, build_augmentation
from pipeline.errors import InputError


def ramp(n: int, channels: int, side_px: int = 12) -> np.ndarray:
    """Images that grow brighter to the right, all alike."""
    row = np.linspace(20, 220, side_px, dtype=np.uint8)
    return np.broadcast_to(row[None, None, :, None], (n, side_px, side_px, channels)).copy()


@pytest.mark.parametrize("policy", ["light", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_stay_and_the_input_is_not_touched(policy: Policy, channels: int) -> None:
    images = ramp(6, channels)
    before = images.copy()
    result = build_augmentation(policy, horizontal_flip=True)(images, 1)
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    assert (images == before).all()
    assert (result != images).any()


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_the_seed_decides_and_no_global_generator(policy: Policy) -> None:
    images = ramp(8, 1)
    augment = build_augmentation(policy, horizontal_flip=False)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    first = augment(images, 5)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    augment(images, 6)  # what came before must not matter either
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = augment(images, 5)
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert (first == again).all()
    assert (first == build_augmentation(policy, horizontal_flip=False)(images, 5)).all()
    assert (first != augment(images, 7)).any()


def test_images_of_one_batch_are_changed_apart() -> None:
    result = build_augmentation("light", horizontal_flip=False)(ramp(8, 1), 0)
    assert len({image.tobytes() for image in result}) > 4


def test_strong_changes_more_than_light() -> None:
    images = ramp(64, 1).astype(np.int64)
    changed = {
        policy: np.abs(
            build_augmentation(policy, horizontal_flip=False)(images.astype(np.uint8), 0) - images
        ).mean()
        for policy in ("light", "strong")
    }
    assert changed["strong"] > 1.2 * changed["light"] > 0


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_on_demand(flip: bool) -> None:
    result = build_augmentation("light", horizontal_flip=flip)(ramp(40, 1), 3)
    right = result[:, :, 6:].mean(axis=(1, 2, 3)) - result[:, :, :6].mean(axis=(1, 2, 3))
    assert (right < 0).any() == flip
    assert (right > 0).any()


def test_no_augmentation_returns_the_images() -> None:
    images = ramp(2, 3)
    assert build_augmentation("none", horizontal_flip=True)(images, 0) is images


def test_the_successor_under_the_agpl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        version = "2.1.0"

    def distribution(name: str) -> Found:
        assert name == "albumentationsx"
        return Found()

    monkeypatch.setattr(module, "distribution", distribution)
    with pytest.raises(InputError, match=r"albumentationsx 2\.1\.0 .*AGPL.*pip uninstall"):
        build_augmentation("light", horizontal_flip=False)


def test_the_installed_albumentations_is_the_mit_one() -> None:
    module.refuse_successor()
    assert metadata.version("albumentations") == "2.0.8"
