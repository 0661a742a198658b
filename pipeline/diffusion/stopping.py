"""Memorisation-aware stopping: which checkpoint to keep, when to stop, how long n images last.

Small sets are learnt by heart sooner or later. At every check the averaged network is looked at
from three sides (`Check`); what is kept is the best one that does not copy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What was seen of the averaged network at one step.

    Attributes:
        step: optimiser steps so far.
        ema_length: sigma_rel of the average that was looked at.
        training_loss: denoising loss of training rows on fixed noise, without augmentation.
        heldout_loss: the same of held-out rows; NaN where there are none. The gap between the two
            grows as the training rows are learnt by heart.
        copy_share: share of samples that fail the copy test, in [0, 1], mean over classes; NaN
            where it was not measured.
        quality: kernel distance of samples to the held-out rows, low is good; NaN where there are
            too few of them.
    """

    step: int
    ema_length: float
    training_loss: float
    heldout_loss: float
    copy_share: float
    quality: float

    @property
    def score(self) -> float:
        """Return what is to be low: the quality, or the held-out loss where there is none."""
        if math.isfinite(self.quality):
            return self.quality
        return self.heldout_loss if math.isfinite(self.heldout_loss) else self.training_loss


def copies(check: Check, limit: float) -> bool:
    """Say whether more samples than the limit are copies; what was not measured does not copy."""
    return check.copy_share > limit


def choose(checks: Sequence[Check], limit: float) -> Check:
    """Return the best check among those that do not copy; where all copy, the one that does least.

    Of equal ones the earlier is taken.
    """
    honest = [check for check in checks if not copies(check, limit)]
    if honest:
        return min(honest, key=lambda check: (check.score, check.step))
    return min(checks, key=lambda check: (check.copy_share, check.step))


def should_stop(checks: Sequence[Check], limit: float, patience: int) -> bool:
    """Say whether the last `patience` checks brought nothing that could be kept.

    A check brings something where it does not copy and has a lower score, or a lower held-out loss,
    than all before it. `patience` 0 never stops.
    """
    if not patience or len(checks) <= patience:
        return False
    before, late = checks[:-patience], checks[-patience:]
    honest = [check for check in before if not copies(check, limit)]
    best_score = min((check.score for check in honest), default=math.inf)
    best_loss = min((check.heldout_loss for check in honest), default=math.inf)
    return not any(
        not copies(check, limit) and (check.score < best_score or check.heldout_loss < best_loss)
        for check in late
    )


def copying_starts(checks: Sequence[Check], limit: float) -> int | None:
    """Return the first step from which every check copies; None where the last one does not."""
    first = None
    for check in reversed(checks):
        if not copies(check, limit):
            break
        first = check.step
    return first


def describe(checks: Sequence[Check], kept: Check, images: int, limit: float) -> str:
    """Say how long the images last: "with 140 images, best at step 1,900, copies from step 6,000".

    Args:
        checks: all of a training, in order.
        kept: the one that was kept.
        images: training images.
        limit: largest share of copies.
    """
    text = f"with {images:,} images, best at step {kept.step:,}"
    start = copying_starts(checks, limit)
    if start is not None:
        return f"{text}, copies from step {start:,}"
    if all(math.isnan(check.copy_share) for check in checks):
        return text
    return f"{text}, no copying up to step {checks[-1].step:,}, where training ended"
