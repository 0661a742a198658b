"""What the section `synthesize` says of the sampler."""

import math

from pipeline.device import Precision
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings
from pipeline.params import SynthesizeParams


def settings_of(
    params: SynthesizeParams, precision: Precision, guidance: Guidance | None = None
) -> SamplerSettings:
    """Return the sampler settings.

    Args:
        params: the section; its guidance must be a number, unless `guidance` is given.
        precision: of the network's arithmetic.
        guidance: what a search found.
    """
    if guidance is None:
        if params.guidance == "auto":
            raise ValueError("guidance = auto is to be searched for first")
        high = math.inf if params.guidance_high is None else params.guidance_high
        guidance = Guidance(params.guidance, params.guidance_low, high, params.guide)
    return SamplerSettings(
        params.sampler,
        params.sampler_steps,
        guidance,
        precision,
        None if params.sampler_spacing == "auto" else params.sampler_spacing,
        params.sampler_eta,
    )
