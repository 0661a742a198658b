"""The weaker network of autoguidance (Karras et al. 2024).

It is to err as the network does, only more (their section 3): this network long before it was kept,
or a narrower one that was trained the same way for a short while. The paper's guides are both, with
a sixteenth of a training that is far longer than ours (section 5.1).
"""

import copy
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.diffusion.augmentation import forget_augmentation
from pipeline.diffusion.base_files import build_network
from pipeline.diffusion.checkpoints import load_snapshot
from pipeline.diffusion.ema import LENGTHS
from pipeline.diffusion.loop import Course, Rows, train_generator
from pipeline.diffusion.objective import Objective
from pipeline.diffusion.stopping import Check
from pipeline.diffusion.trainable import merge_adapters
from pipeline.errors import InputError
from pipeline.params import GeneratorParams
from pipeline.seeds import derive_seed, seeded_initialisers
from pipeline.team import Team
from pipeline.tracking.tracker import Tracker

SHARE = 1 / 4  # of the kept step: how long a weaker network has been trained
_TASK = "guide"
_SEEDS = 2**31  # below this, as `Section.seed` wants


def earlier_step(checks: Sequence[Check], kept_step: int) -> int | None:
    """Return the check before the kept step that is nearest to `SHARE` of it; None: no such."""
    steps = [check.step for check in checks if check.step < kept_step]
    wanted = SHARE * kept_step
    return min(steps, key=lambda step: (abs(step - wanted), step), default=None)


def earlier_network(model: UNet2DModel, work: Path, step: int) -> UNet2DModel:
    """Return a copy of a network with its averaged weights of an earlier check.

    The longer average, which the check looked at: others need more snapshots than lie before it.

    Args:
        model: as `train_generator` returned it, adapters not yet merged.
        work: folder of its snapshots.
        step: of the check.

    Raises:
        StageError: the snapshot is missing or damaged.
    """
    guide = copy.deepcopy(model)
    mark = f"{len(LENGTHS) - 1}."
    own = dict(guide.named_parameters())
    with torch.no_grad():
        for name, weight in load_snapshot(work, step).items():
            if name.startswith(mark):
                own[name.removeprefix(mark)].copy_(weight)
    merge_adapters(guide)
    forget_augmentation(guide)
    return guide


def halve_width(model: UNet2DModel, seed: int) -> UNet2DModel:
    """Return a network of half the width, with seeded weights; the narrowest stay as they are.

    Raises:
        InputError: diffusers cannot build it.
    """
    config = dict(model.config)
    # Groups and heads must still divide each width.
    unit = math.lcm(int(config["norm_num_groups"]), int(config["attention_head_dim"] or 1))
    config["block_out_channels"] = [
        max(min(width, unit), width // 2 // unit * unit) for width in config["block_out_channels"]
    ]
    try:
        with seeded_initialisers(seed, "unet"):
            return build_network(config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"train.guide = smaller: this base's network cannot be halved ({error}); set "
            "train.guide to earlier"
        ) from None


def smaller_network(
    model: UNet2DModel,
    objective: Objective,
    training: Rows,
    heldout: Rows,
    chances: torch.Tensor,
    params: GeneratorParams,
    kept_step: int,
    work: Path,
    tracker: Tracker,
) -> tuple[UNet2DModel, int]:
    """Train a network of half the width for `SHARE` of the kept step; return it and its steps.

    The same loss and rows, draws of its own, no looks at copies. The leader of a team does it
    alone: the network does not depend on the team. A killed training goes on from its checkpoint.

    Args:
        model: the network that it is to be weaker than.
        objective: loss.
        training: rows to train on.
        heldout: rows to look at alone; may be empty.
        chances: (N,) chance of each training row to be drawn.
        params: batch, rate, precision and the like.
        kept_step: step at which `model` was kept.
        work: folder of its checkpoints; removed by `drop_guide_state`.
        tracker: told of progress.

    Raises:
        InputError: the network cannot be halved.
        StageError: the loss is no longer finite.
    """
    steps = max(1, round(SHARE * kept_step))
    own = params.model_copy(
        update={
            "seed": derive_seed(params.seed, _TASK) % _SEEDS,
            # A warm-up of the whole training would be all of this one.
            "warmup_steps": round(SHARE * params.warmup_steps),
        }
    )
    outcome = train_generator(
        halve_width(model, own.seed).to(training.images.device),
        objective,
        training,
        heldout,
        chances,
        own,
        Course(_TASK, steps, checks=1, copy_limit=1.0, patience_checks=0, ema_length=LENGTHS[-1]),
        _folder(work),
        tracker,
        lambda _: (math.nan, math.nan),
        lambda *_: None,
        Team(),
    )
    forget_augmentation(outcome.model)
    return outcome.model, steps


def drop_guide_state(work: Path) -> None:
    """Remove what the training of a smaller network left."""
    shutil.rmtree(_folder(work), ignore_errors=True)


def _folder(work: Path) -> Path:
    return work / _TASK
