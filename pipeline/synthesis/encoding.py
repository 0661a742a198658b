"""Which encoder the params ask for, and whether it tells the classes apart."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.data.images import Images
from pipeline.data.store import Samples
from pipeline.errors import InputError, StageError
from pipeline.features.cache import cached
from pipeline.features.encoders import STEPS, Encoder, domain_encoder, make_encoder
from pipeline.features.judge import Ensemble
from pipeline.features.separation import separation
from pipeline.hashing import digest_bytes, digest_file, digest_json
from pipeline.params import SynthesizeParams

FROM_FILES = ("inception", "timm")


def choose_encoder(
    params: SynthesizeParams,
    ensemble: Callable[[], Ensemble],
    training: Samples,
    pool: Images | None,
    device: torch.device,
    on_step: Callable[[int, int], None],
) -> Encoder:
    """Return the encoder of realism, variety and quality.

    Args:
        params: the section.
        ensemble: returns the judges, whose features `domain` is; asked for there alone.
        training: real training rows.
        pool: (N, H, W, C) uint8 unlabelled rows, for `selfsupervised`.
        device: to embed on.
        on_step: told finished and total steps of a training.

    Raises:
        InputError: the weights are missing or cannot be used, or a package is not installed.
    """
    if params.encoder == "domain":
        judges = ensemble()
        # The ensemble averages each map, so these are not the features of `domain_encoder`.
        digest = digest_json(["averaged", domain_encoder(judges.judges).digest])
        width = judges.embed(training.images[:1]).shape[1]
        return Encoder("domain", digest, width, judges.embed)
    hub_id = params.encoder_model if "/" in (params.encoder_model or "") else None
    return make_encoder(
        params.encoder,
        device,
        training=training.images,
        pool=pool,
        seed=params.seed,
        on_step=lambda step: on_step(step, STEPS),
        path=None if hub_id else _weights(params),
        model=None if hub_id else params.encoder_model,
        hub_id=hub_id,
        image_size_px=params.encoder_image_px,
    )


def warn_of_mixed_classes(
    encoder: Encoder, training: Samples, validation: Samples, classes: Sequence[str], seed: int
) -> str | None:
    """Return what to tell the user where held-out rows show that classes are mixed up, or None."""
    try:
        found = separation(
            cached(encoder, training.images),
            training.labels,
            cached(encoder, validation.images),
            validation.labels,
            classes,
            seed,
        )
    except StageError as error:
        return f"whether the encoder {encoder.name} tells the classes apart is not known: {error}"
    return found.warning


def weights_digest(params: SynthesizeParams) -> str:
    """Return a digest of the weights that the section asks for; empty where it asks for none."""
    if params.encoder not in FROM_FILES or "/" in (params.encoder_model or ""):
        return ""
    path = Path(params.encoder_path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [(file.name, digest_file(file)) for file in files if file.is_file()]
    return digest_bytes(repr(parts).encode())


def _weights(params: SynthesizeParams) -> Path | None:
    """Return the file or folder of weights; inception's file may lie alone in the folder."""
    if params.encoder not in FROM_FILES:
        return None
    path = Path(params.encoder_path)
    if params.encoder == "inception" and path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise InputError(
                f"{path}: {len(files)} safetensors files; put the weights of InceptionV3 there, "
                "alone, or name the file in synthesize.encoder_path (see docs/encoders.md)"
            )
        return files[0]
    return path
