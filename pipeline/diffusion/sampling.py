"""Draw images from a generator: a solver on a ladder of noise levels, with guidance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from pipeline.device import Precision
from pipeline.diffusion.checkpoints import GeneratorSpec
from pipeline.diffusion.guidance import Denoiser, Guidance
from pipeline.diffusion.ladders import Ladder, Spacing, ladder_of, make_ladder
from pipeline.diffusion.network import Network
from pipeline.diffusion.noise import NoiseProcess
from pipeline.diffusion.solvers import (
    SamplerName,
    count_rungs,
    default_spacing,
    get_solver,
)


@dataclass(frozen=True)
class SamplerSettings:
    """What, with the generator, the class and the index, decides an image.

    Attributes:
        sampler: solver by name.
        steps: network evaluations an image, guidance not counted, at most T.
        guidance: how much, by what, and where.
        precision: of the network's arithmetic.
        spacing: of the noise levels; None is the sampler's own.
        eta: of ddim, 0 (no noise) to 1 (DDPM).
        times: the time steps themselves, falling; None is by `steps` and `spacing`. A distilled
            network knows no others.
    """

    sampler: SamplerName
    steps: int
    guidance: Guidance = field(default_factory=Guidance)
    precision: Precision = "float32"
    spacing: Spacing | None = None
    eta: float = 0.0
    times: tuple[int, ...] | None = None

    def ladder(self, process: NoiseProcess, strength: float = 1.0) -> Ladder:
        """Return the noise levels to step over; see `make_ladder`.

        Raises:
            InputError: steps or strength out of range.
        """
        if self.times is not None:
            return ladder_of(process, self.times)
        spacing = self.spacing or default_spacing(self.sampler)
        return make_ladder(process, count_rungs(self.sampler, self.steps), spacing, strength)

    def evaluations(self, process: NoiseProcess) -> int:
        """Return the network evaluations of an image, those of the guide counted."""
        ladder = self.ladder(process)
        rungs = [*range(len(ladder))]
        if self.sampler == "heun":
            rungs += rungs[1:]  # each step but the last looks below as well
        return sum(2 if self.guidance.acts(ladder.sigma(rung)) else 1 for rung in rungs)


@torch.no_grad()
def sample(
    model: UNet2DModel,
    spec: GeneratorSpec,
    labels: torch.Tensor,
    generators: Sequence[torch.Generator],
    settings: SamplerSettings,
    device: torch.device,
    weaker: UNet2DModel | None = None,
) -> torch.Tensor:
    """Draw one image a label.

    Args:
        model: the network, on `device`.
        spec: the generator's description.
        labels: (N,) int64.
        generators: N CPU generators: all the noise of image i comes from generators[i], whatever
            the batch that it is drawn in.
        settings: solver, steps, guidance, precision.
        device: where the network is.
        weaker: the network of autoguidance.

    Returns:
        (N, C, H, W) float32 on the CPU, in [-1, 1].
    """
    network = Network(model, device, settings.precision)
    guide = None if weaker is None else Network(weaker, device, settings.precision)
    ladder = settings.ladder(spec.process)
    denoise = Denoiser(
        network,
        guide,
        spec.process,
        ladder,
        labels.to(device),
        len(spec.classes),
        settings.guidance,
    )
    shape = (int(model.config["in_channels"]), spec.image_size_px, spec.image_size_px)
    draw = noise_source(generators, shape, device)
    solve = get_solver(settings.sampler, settings.eta)
    return solve(ladder, draw(), denoise, draw).clamp(-1.0, 1.0).cpu()


def noise_source(
    generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device
) -> Callable[[], torch.Tensor]:
    """Return what draws unit noise (N, C, H, W), image i's from generators[i], onto a device."""

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)

    return draw
