"""Augmentation of real images: the cheap rival that synthetic images must beat.

Two albumentations policies on (H, W, C) uint8 images. What a batch becomes is a function of the
images and a seed alone: the transforms draw from generators made for that seed, never from a
global one.
"""

import os
import random
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal

import numpy as np

from pipeline.data.images import Images
from pipeline.errors import InputError

Policy = Literal["none", "light", "strong"]
Augment = Callable[[Images, int], Images]
ImageAugment = Callable[[Images, int], Images]  # of one image, (H, W, C)

_SUCCESSOR = "albumentationsx"


def build_augmentation(policy: Policy, horizontal_flip: bool) -> Augment:
    """Return a function (images (N, H, W, C) uint8, seed) -> augmented images of the same shape.

    light moves, scales and turns a little and varies brightness and contrast; strong moves more
    widely, shears, adds noise or blur, and blanks a patch. `none` returns the images as they are,
    whatever `horizontal_flip` says.

    Raises:
        InputError: the AGPL successor of albumentations is installed under the same import name.
    """
    if policy == "none":
        return lambda images, seed: images
    compose = _compose(policy, horizontal_flip)

    def augment(images: Images, seed: int) -> Images:
        # One pair of generators for all transforms. `set_random_seed` would hand each transform
        # a generator of the same seed, and a shift to the right would always come with a dim one.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.stack([compose(image=image)["image"] for image in images])

    return augment


def build_image_augmentation(policy: Policy, horizontal_flip: bool) -> ImageAugment:
    """Return the same for one image: a function (image (H, W, C) uint8, seed) -> the same shape.

    What becomes of an image does not depend on its neighbours in a batch.
    """
    if policy == "none":
        return lambda image, seed: image
    compose = _compose(policy, horizontal_flip)

    def augment(image: Images, seed: int) -> Images:
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed: Images = compose(image=image)["image"]
        return changed

    return augment


def refuse_successor() -> None:
    """Refuse `albumentationsx`, which installs itself under the import name `albumentations`.

    Raises:
        InputError: it is installed.
    """
    try:
        found = distribution(_SUCCESSOR)
    except PackageNotFoundError:
        return
    raise InputError(
        f"{_SUCCESSOR} {found.version} is installed: it takes the import name of albumentations "
        "and is under the AGPL, which would bind whoever uses Replenish; run "
        f"`pip uninstall {_SUCCESSOR}`, then `pip install --force-reinstall albumentations==2.0.8`"
    )


def _compose(policy: Policy, horizontal_flip: bool) -> Any:
    refuse_successor()
    # At import albumentations asks the network for a newer version of itself unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2

    # Workers are processes with one thread each; more threads inside would only compete.
    cv2.setNumThreads(1)
    light = policy == "light"
    transforms: list[Any] = [albumentations.HorizontalFlip(p=0.5)] if horizontal_flip else []
    transforms += [
        albumentations.Affine(
            translate_percent=(-0.08, 0.08) if light else (-0.12, 0.12),
            scale=(0.9, 1.1) if light else (0.8, 1.2),
            rotate=(-5, 5) if light else (-15, 15),
            shear=(0, 0) if light else (-10, 10),
            border_mode=cv2.BORDER_REPLICATE,
            p=0.9,
        ),
        albumentations.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
    ]
    if not light:
        transforms += [
            albumentations.OneOf(
                [
                    albumentations.GaussNoise(std_range=(0.02, 0.08)),
                    albumentations.GaussianBlur(blur_limit=(3, 3), sigma_limit=(0.3, 0.8)),
                ],
                p=0.3,
            ),
            albumentations.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(0.15, 0.35),
                hole_width_range=(0.15, 0.35),
                p=0.5,
            ),
        ]
    return albumentations.Compose(transforms)
