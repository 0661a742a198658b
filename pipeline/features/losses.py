"""Losses for uneven class counts, as baselines that the synthetic images must beat.

Each function returns a `Loss`: (B, K) float32 logits and (B,) labels to (B,) losses in nats. All
leave prediction as it is: the largest plain logit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.features.classifier import Loss, cross_entropy


def class_weighted(counts: Sequence[int]) -> Loss:
    """Return cross entropy weighted by the inverse of the class's training rows.

    The weights have mean 1 over the rows, w_k = N / (K n_k): drawn as they are, the rows of every
    class together weigh the same, and the step size means what it means without weights. A class
    without rows takes no part in the mean and weighs nothing.

    Args:
        counts: (K,) training rows of each class, not all 0.

    Raises:
        ValueError: no counts, a negative one, or zeros alone.
    """
    rows = _counts(counts)
    present = rows > 0
    weights = torch.where(present, rows.sum() / (present.sum() * rows.clamp_min(1)), 0.0).float()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return weights.to(logits.device)[labels] * cross_entropy(logits, labels)

    return loss


def logit_adjusted(counts: Sequence[int], tau: float = 1.0) -> Loss:
    """Return the logit-adjusted cross entropy of Menon et al. 2021, equation 10.

    log(1 + sum over y' != y of (pi_y' / pi_y)^tau exp(f_y' - f_y)): cross entropy of the logits
    plus tau times the log of the class priors pi. Consistent for the balanced error at tau = 1.
    A class without rows counts as one of half a row, so that its prior has a logarithm.

    Args:
        counts: (K,) training rows of each class, not all 0.
        tau: strength, >= 0; 0 is plain cross entropy.

    Raises:
        ValueError: unusable counts, or a tau that is negative or not finite.
    """
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau is {tau}; give a finite number of at least 0")
    rows = _counts(counts).clamp_min(0.5)
    shift = (tau * (rows / rows.sum()).log()).float()  # tau log pi

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits + shift.to(logits.device), labels)

    return loss


def focal(gamma: float = 2.0) -> Loss:
    """Return the focal loss of Lin et al. 2017, equation 4: -(1 - p_t)^gamma log p_t.

    Over softmax probabilities, where the paper has sigmoid ones; p_t is that of the row's class.

    Args:
        gamma: how fast rows that are already right lose weight, >= 0; 0 is plain cross entropy.

    Raises:
        ValueError: gamma is negative or not finite.
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma is {gamma}; give a finite number of at least 0")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        log_p = functional.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
        # 1 - p_t as -expm1(log p_t), kept off 0: below gamma = 1 the power has no slope there.
        missed = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(missed**gamma) * log_p

    return loss


def _counts(counts: Sequence[int]) -> Tensor:
    rows = torch.tensor(list(counts), dtype=torch.float64)
    if rows.ndim != 1 or not len(rows) or bool((rows < 0).any()) or not bool(rows.sum() > 0):
        raise ValueError(f"counts are {list(counts)}; give the training rows of each class")
    return rows
