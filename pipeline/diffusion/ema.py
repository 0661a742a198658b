"""Post-hoc averages of the weights: Karras et al. 2024 (EDM2), section 3.

Two averages with power-function profiles are kept while training, and a snapshot of both at every
check. From the snapshots the average of any length is rebuilt afterwards, so that the length need
not be known before the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Weights = dict[str, torch.Tensor]

LENGTHS = (0.05, 0.10)  # sigma_rel of the two averages; EDM2, section 3.2
CANDIDATE_LENGTHS = (0.03, 0.05, 0.075, 0.10, 0.15, 0.20)
MISFIT = 0.01  # share of a profile's square that a rebuilt one may miss


def power(length: float) -> float:
    """Return gamma of the power function t**gamma whose relative width is `length` (sigma_rel).

    EDM2, equation 126: the positive root of a cubic. `length` is the profile's standard deviation
    over the number of steps so far, in (0, 0.288).
    """
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


class PowerAverages:
    """The running averages of the trained weights, one a length in `LENGTHS`."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Follow these parameters; the averages start as copies, which the first step replaces."""
        self._names = tuple(weights)
        self._sources = [weights[name] for name in self._names]
        self._averages = [[w.detach().clone() for w in self._sources] for _ in LENGTHS]
        self._powers = [power(length) for length in LENGTHS]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after `steps` steps, counted from 1. EDM2, equation 127."""
        for averages, gamma in zip(self._averages, self._powers, strict=True):
            kept = (1 - 1 / steps) ** (gamma + 1)
            torch._foreach_lerp_(averages, self._sources, 1 - kept)

    def weights(self, which: int) -> Weights:
        """Return one average by name: the tensors themselves, no copies."""
        return dict(zip(self._names, self._averages[which], strict=True))

    def tensors(self) -> Weights:
        """Return both averages, named `<number>.<parameter>`, for a snapshot or a checkpoint."""
        return {f"{i}.{k}": v for i in range(len(LENGTHS)) for k, v in self.weights(i).items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` returned."""
        for i in range(len(LENGTHS)):
            for name, average in self.weights(i).items():
                average.copy_(tensors[f"{i}.{name}"])


@dataclass(frozen=True)
class Recipe:
    """How a length is rebuilt from snapshots.

    Attributes:
        shares: factor of each snapshot's averages, (snapshots, lengths); their sum is 1.
        misfit: squared distance to the wanted profile over that profile's square; 0 is exact.
    """

    shares: npt.NDArray[np.float64]
    misfit: float


def find_recipe(steps: Sequence[int], length: float) -> Recipe:
    """Return how the average of `length` at the last of `steps` follows from the snapshots.

    Least squares over the profiles, EDM2, algorithm 3.

    Args:
        steps: steps of the snapshots, rising; the wanted average ends at the last one.
        length: sigma_rel of the wanted average.
    """
    ends = np.repeat(np.asarray(steps, dtype=np.float64), len(LENGTHS))
    powers = np.tile([power(one) for one in LENGTHS], len(steps))
    last, wanted = np.asarray([float(steps[-1])]), np.asarray([power(length)])
    overlaps = _overlap(ends[:, None], powers[:, None], ends[None], powers[None])
    targets = _overlap(ends[:, None], powers[:, None], last[None], wanted[None])[:, 0]
    shares = np.linalg.lstsq(overlaps, targets, rcond=1e-12)[0]
    shares = shares / shares.sum()
    own = _overlap(last, wanted, last, wanted)[0]
    misfit = 1 - 2 * shares @ targets / own + shares @ overlaps @ shares / own
    return Recipe(shares.reshape(len(steps), len(LENGTHS)), float(max(misfit, 0.0)))


def reachable_lengths(steps: Sequence[int]) -> list[float]:
    """Return the candidate lengths that snapshots at these steps rebuild well."""
    return [length for length in CANDIDATE_LENGTHS if find_recipe(steps, length).misfit <= MISFIT]


def rebuild(snapshots: Sequence[Mapping[str, torch.Tensor]], recipe: Recipe) -> Weights:
    """Return the weights that a recipe makes of snapshots (as `PowerAverages.tensors`)."""
    names = [name.partition(".")[2] for name in snapshots[0] if name.startswith("0.")]
    rebuilt = {name: torch.zeros_like(snapshots[0][f"0.{name}"]) for name in names}
    for snapshot, shares in zip(snapshots, recipe.shares, strict=True):
        for i, share in enumerate(shares):
            for name in names:
                rebuilt[name].add_(snapshot[f"{i}.{name}"], alpha=float(share))
    return rebuilt


def _overlap(
    end: npt.NDArray[np.float64],
    gamma: npt.NDArray[np.float64],
    other_end: npt.NDArray[np.float64],
    other_gamma: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return the inner product of two power profiles, EDM2, equation 151."""
    ratio = end / other_end
    exponent = np.where(end < other_end, other_gamma, -gamma)
    product: npt.NDArray[np.float64] = (
        (gamma + 1)
        * (other_gamma + 1)
        * ratio**exponent
        / ((gamma + other_gamma + 1) * np.maximum(end, other_end))
    )
    return product
