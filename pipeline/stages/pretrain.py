"""Stage pretrain: the base that the class-conditional model is fine-tuned from, if any.

Leaves `base/`, in one layout whatever it came from: a network trained here on unlabelled images, a
diffusers folder or hub id, or an earlier run; and `base_images/`, the labelled images of that run
where its whole folder is given, for a baseline. It depends on the images of train and pool alone,
not on their labels, so that new labels reuse a base, unless the recipe (`base: auto`) changes its
mind.
"""

import math
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.data.store import Samples, StoreInfo, read_ids, read_info, read_samples
from pipeline.device import pick_device, pick_precision
from pipeline.diffusion.base_images import images_digest, write_base_images
from pipeline.diffusion.base_sources import files_digest, import_folder, import_hub, import_run
from pipeline.diffusion.bases import Base, pool_base, save_base
from pipeline.diffusion.checkpoints import GeneratorSpec, drop_state
from pipeline.diffusion.fitting import (
    make_objective,
    pick_dropout,
    pick_preset,
    sheet_drawer,
    to_rows,
)
from pipeline.diffusion.loop import Course, train_generator
from pipeline.diffusion.unet import build_unet
from pipeline.errors import InputError, StageError
from pipeline.hashing import digest_lines
from pipeline.params import PretrainParams
from pipeline.recipe.settings import read_settings
from pipeline.stages.contract import Inputs, Summary, stage
from pipeline.team import join_team
from pipeline.tracking.tracker import Tracker

MINIMUM_POOL_IMAGES = 32
_CHECKS = 10
_PATIENCE_CHECKS = 4


class PretrainSummary(Summary):
    """What the base is.

    Attributes:
        base: where it comes from.
        source: for people: a folder's name, a hub id, a number of images; None without a base.
        base_digest: digest of its config and weights; None without a base.
        images: images that it was trained on here; 0 where it was not.
        steps: optimiser steps made here.
        parameters: weights of its network.
        labelled_images: images that it was trained on elsewhere and that are at hand with labels.
        heldout_loss: denoising loss of validation images; None where it was not trained here.
    """

    base: Literal["none", "pool", "folder", "hub", "run"]
    source: str | None
    base_digest: str | None
    images: int
    steps: int
    parameters: int
    labelled_images: int
    heldout_loss: float | None


def base_files_digest(params: PretrainParams) -> str:
    """Return the digest of the files of a base that is imported, part of the stage's key."""
    if params.base not in ("folder", "run"):
        return ""
    path = Path(params.path)
    digest = files_digest(params.base, path)
    return f"{digest} {images_digest(path)}" if params.base == "run" else digest


@stage("pretrain", PretrainSummary, extra_key=base_files_digest, together=True)
def run(params: PretrainParams, inputs: Inputs, out: Path, tracker: Tracker) -> PretrainSummary:
    """Write `base/`, unless no base is wanted, and `base_images/`, which may be empty.

    Raises:
        InputError: the base cannot be read, or there are too few unlabelled images; or the
            recipe is asked for and prepare's folder has none.
        StageError: the pool holds test or validation images, or the loss is no longer finite.
    """
    base_kind = read_settings(inputs["prepare"]).base if params.base == "auto" else params.base
    store = inputs["prepare"] / "dataset"
    info = read_info(store)
    if base_kind in ("none", "pool"):
        _write_images(params, None, info, out)
    if base_kind == "none":
        return PretrainSummary(
            base="none",
            source=None,
            base_digest=None,
            images=0,
            steps=0,
            parameters=0,
            labelled_images=0,
            heldout_loss=None,
        )
    if base_kind == "pool":
        return _pretrain(params, store, out, tracker)
    if base_kind == "hub":
        base = import_hub(params.hub_id or "")
    elif base_kind == "folder":
        base = import_folder(Path(params.path))
    else:
        base = import_run(Path(params.path))
    tracker.note(f"pretrain: base {base.source} ({base_kind}), {_size(base) / 1e6:.2f} M weights")
    save_base(out / "base", base)
    labelled = _write_images(params, base, info, out)
    if labelled:
        tracker.note(
            f"pretrain: {labelled:,} labelled images of that run are at hand, for the baseline "
            "`base_images`"
        )
    return _summary(base, images=0, steps=0, labelled=labelled, heldout_loss=None)


def _write_images(params: PretrainParams, base: Base | None, info: StoreInfo, out: Path) -> int:
    path = Path(params.path) if params.base == "run" else None
    side, mode = info.image_size_px, info.image_mode
    return write_base_images(out / "base_images", base, path, side, mode, params.seed)


def _pretrain(params: PretrainParams, store: Path, out: Path, tracker: Tracker) -> PretrainSummary:
    info = read_info(store)
    pool = _unlabelled(store)
    if len(pool) < MINIMUM_POOL_IMAGES:
        raise InputError(
            f"pretrain: {len(pool)} images to learn from, and a base needs at least "
            f"{MINIMUM_POOL_IMAGES}; put unlabelled images into prepare.pool_path, or set "
            "pretrain.base = auto"
        )
    device, team = pick_device(params.execution.device), join_team()
    precision = pick_precision(params.precision, device)
    preset, reason = pick_preset(params, info.image_size_px, len(pool))
    dropout = pick_dropout(params, len(pool))
    model = build_unet(info.image_size_px, info.image_mode, 0, preset, params.seed, dropout).to(
        device
    )
    spec = GeneratorSpec(
        classes=(),
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
        schedule=params.schedule,
        prediction=params.prediction,
        zero_terminal_snr=params.zero_terminal_snr,
        training_rows_digest=digest_lines(pool.ids),
        base_digest=None,
    )
    count = sum(weight.numel() for weight in model.parameters())
    steps = params.steps or auto_pool_steps(len(pool))
    tracker.note(
        f"pretrain: {len(pool):,} unlabelled images, {reason}, {count / 1e6:.2f} M weights, "
        f"dropout {dropout:g}, at most {steps:,} steps, {precision} on {device.type}"
    )
    rows = math.isqrt(params.sheet_images)
    labels = torch.zeros(rows * rows, dtype=torch.int64)
    heldout = read_samples(store, ("validation",))
    outcome = train_generator(
        model,
        make_objective(params, precision, null_class=0),
        to_rows(pool, device, label=0),
        to_rows(heldout, device, label=0),
        torch.full((len(pool),), 1 / len(pool), dtype=torch.float64),
        params,
        Course(
            "pretrain",
            steps,
            _CHECKS,
            copy_limit=1.0,
            patience_checks=_PATIENCE_CHECKS,
            ema_length=None,
        ),
        out,
        tracker,
        _unexamined,
        sheet_drawer(spec, labels, rows, params.seed, precision, device, out, tracker),
        team,
    )
    drop_state(out)
    base = pool_base(
        outcome.model,
        source=f"{len(pool):,} unlabelled images",
        schedule=params.schedule,
        prediction=params.prediction,
        training_ids=pool.ids,
    )
    shutil.rmtree(out / "base", ignore_errors=True)
    save_base(out / "base", base)
    loss = outcome.kept.heldout_loss
    return _summary(base, len(pool), outcome.steps, 0, loss if math.isfinite(loss) else None)


def auto_pool_steps(images: int) -> int:
    """Return the most optimiser steps for a number of unlabelled images: 0.4 each, 400 to 2,000."""
    return min(max(round(0.4 * images), 400), 2000)


def _unlabelled(store: Path) -> Samples:
    """Return the images of train and pool, sorted by id, so that no label decides their order."""
    samples = read_samples(store, ("train", "pool"))
    held = set(read_ids(store, ("test", "validation")))
    leaked = sorted(held & set(samples.ids))
    if leaked:
        raise StageError(
            f"pretrain: {len(leaked)} test or validation images among the unlabelled ones "
            f"({leaked[0][:12]}...); run `replenish prepare --force`"
        )
    ids, first = np.unique(np.asarray(samples.ids, dtype=object), return_index=True)
    return samples.take(first) if len(ids) else samples


def _unexamined(_model: UNet2DModel) -> tuple[float, float]:
    # Without classes there is nothing to sample for: the held-out loss decides.
    return math.nan, math.nan


def _size(base: Base) -> int:
    return sum(tensor.numel() for tensor in base.tensors.values())


def _summary(
    base: Base, images: int, steps: int, labelled: int, heldout_loss: float | None
) -> PretrainSummary:
    return PretrainSummary(
        base=base.kind,
        source=base.source,
        base_digest=base.digest,
        images=images,
        steps=steps,
        parameters=_size(base),
        labelled_images=labelled,
        heldout_loss=heldout_loss,
    )
