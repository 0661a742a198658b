"""The four kinds of encoders, chosen by name; docs/encoders.md says which one when."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.data.images import Images
from pipeline.device import pick_precision
from pipeline.errors import InputError
from pipeline.features.classifier import SmallCNN, embed
from pipeline.features.frozen import Encoder as Encoder
from pipeline.features.frozen import Features as Features
from pipeline.features.inception import inception_encoder
from pipeline.features.selfsupervised import SelfSupervision, selfsupervised_encoder
from pipeline.features.timm_encoder import timm_encoder
from pipeline.features.weight_files import digest_tensors
from pipeline.hashing import digest_json

Kind = Literal["domain", "selfsupervised", "inception", "timm"]

STEPS = 200  # of the self-supervised training


def make_encoder(
    kind: Kind,
    device: torch.device,
    *,
    judges: Sequence[SmallCNN] = (),
    training: Images | None = None,
    pool: Images | None = None,
    seed: int = 0,
    steps: int = STEPS,
    horizontal_flip: bool = False,
    on_step: Callable[[int], None] | None = None,
    path: Path | None = None,
    model: str | None = None,
    hub_id: str | None = None,
    image_size_px: int | None = None,
) -> Encoder:
    """Return an encoder of one kind; only the arguments of that kind are looked at.

    Args:
        kind: domain, the judges' own features; selfsupervised, trained here without labels;
            inception, the network of the Frechet inception distance; timm, any network of timm.
        device: where to train and to embed; the judges stay where they are.
        judges: of domain: classifiers, whose features are put side by side.
        training: of selfsupervised: (N, H, W, C) uint8 training rows.
        pool: of selfsupervised: (M, H, W, C) uint8 unlabelled rows, or None.
        seed: of selfsupervised.
        steps: of selfsupervised.
        horizontal_flip: of selfsupervised: whether mirror images mean the same.
        on_step: of selfsupervised: told the number of finished steps.
        path: of inception: a safetensors file; of timm: such a file or a folder.
        model: of timm: name of the architecture, beside a file.
        hub_id: of timm: "owner/name", instead of a path.
        image_size_px: of timm: side to resize to instead of the network's own.

    Raises:
        InputError: what the kind needs is not given, or cannot be used.
        StageError: the self-supervised training diverged.
    """
    if kind == "domain":
        return domain_encoder(judges)
    if kind == "selfsupervised":
        if training is None:
            raise InputError("selfsupervised: no training rows were given; it is trained on them")
        images = training if pool is None or not len(pool) else np.concatenate([training, pool])
        settings = SelfSupervision(steps, seed, horizontal_flip)
        return selfsupervised_encoder(images, settings, device, on_step)
    if kind == "inception":
        if path is None:
            raise InputError(
                "inception: no path of its weights was given; docs/encoders.md says how to get them"
            )
        return inception_encoder(path, device)
    return timm_encoder(device, path=path, model=model, hub_id=hub_id, image_size_px=image_size_px)


def domain_encoder(judges: Sequence[SmallCNN]) -> Encoder:
    """Return the penultimate features of classifiers of the classes, side by side.

    Raises:
        InputError: no judge.
    """
    if not judges:
        raise InputError("domain: no judge was given; its features are those of trained judges")

    def function(images: Images) -> Features:
        return np.concatenate([embed(judge, images) for judge in judges], axis=1)

    # The precision as well: a judge computes in bfloat16 where the machine is faster with it.
    identity = [
        [digest_tensors(judge.body.state_dict()), pick_precision("auto", judge.head.weight.device)]
        for judge in judges
    ]
    width = sum(judge.head.in_features for judge in judges)
    return Encoder("domain", digest_json(["domain", *identity]), width, function)
