"""Draw images from images: edited at a strength, or with a part drawn anew."""

import torch

from pipeline.diffusion.guidance import Denoiser
from pipeline.diffusion.ladders import Ladder
from pipeline.diffusion.solvers import Draw, Solver, ddim_step


@torch.no_grad()
def edit(
    parents: torch.Tensor, ladder: Ladder, denoise: Denoiser, solve: Solver, draw: Draw
) -> torch.Tensor:
    """Return the images noised to the top of the ladder and stepped down again.

    SDEdit, Meng et al. 2022, algorithm 1. What is coarser than the noise at the top stays the
    parent's, what is finer is drawn for the class that the denoiser is told of.

    Args:
        parents: (N, C, H, W) in [-1, 1].
        ladder: begins at the strength of the edit; without rungs the parents come back.
        denoise: sees the clean image in a noisy one.
        solve: the solver.
        draw: unit noise of the shape of `parents`.
    """
    if not len(ladder):
        return parents
    noisy = ladder.signal[0] * parents + ladder.noise[0] * draw()
    return solve(ladder, noisy, denoise, draw).clamp(-1.0, 1.0)


@torch.no_grad()
def inpaint(
    parents: torch.Tensor,
    mask: torch.Tensor,
    ladder: Ladder,
    denoise: Denoiser,
    draw: Draw,
    times: int,
) -> torch.Tensor:
    """Return the images with the masked part drawn anew, the rest as it is, to the last bit.

    RePaint, Lugmayr et al. 2022, algorithm 1: ancestral steps, in which the part that is kept is
    the parent noised to the level; each step is taken `times` times, with noise put back between
    (j = 1), so that the new part comes to fit the old one. n * times network evaluations.

    Args:
        parents: (N, C, H, W) in [-1, 1].
        mask: (N, 1, H, W), 1 where the image is drawn anew, 0 where it is kept.
        ladder: noise levels, from pure noise down.
        denoise: sees the clean image in a noisy one.
        draw: unit noise of the shape of `parents`.
        times: passes over each step.
    """
    x = draw()
    for rung in range(len(ladder)):
        below = rung + 1
        for turn in range(times):
            drawn = ddim_step(x, denoise(x, rung), ladder, rung, 1.0, draw)
            kept = ladder.signal[below] * parents
            if ladder.noise[below]:
                kept = kept + ladder.noise[below] * draw()
            x = torch.where(mask > 0, drawn, kept)
            if turn + 1 == times or not ladder.noise[below]:
                break
            # q(x_t | x_s) for the step back up, Lugmayr et al. 2022, algorithm 1, line 9.
            share = ladder.signal[rung] / ladder.signal[below]
            x = share * x + (1 - share**2) ** 0.5 * draw()
    return x.clamp(-1.0, 1.0)
