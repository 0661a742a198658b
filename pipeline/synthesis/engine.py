"""A warm generator: draws any candidates, in batches of a measured size."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.images import Images, from_model, to_model
from pipeline.diffusion.checkpoints import Generator
from pipeline.diffusion.editing import edit, inpaint
from pipeline.diffusion.guidance import Denoiser
from pipeline.diffusion.ladders import Ladder
from pipeline.diffusion.network import Network
from pipeline.diffusion.sampling import SamplerSettings, noise_source
from pipeline.diffusion.solvers import Draw, get_solver
from pipeline.errors import InputError, StageError
from pipeline.seeds import torch_generator
from pipeline.synthesis.batches import (
    Batches,
    Call,
    activation_bytes,
    choose_batches,
    is_out_of_memory,
    memory_share,
)
from pipeline.synthesis.parents import Editing, Origin


@dataclass(frozen=True)
class Candidate:
    """One image to draw: `index` of the class `label`."""

    label: int
    index: int


def refuse_impossible(generator: Generator, settings: SamplerSettings) -> None:
    """Refuse settings that do not go with a generator, before any work.

    Raises:
        InputError: steps out of range, or autoguidance without a weaker network.
    """
    settings.ladder(generator.spec.process)
    guidance = settings.guidance
    if guidance.guide == "weaker" and guidance.weight != 1.0 and generator.weaker is None:
        raise InputError(
            "synthesize.guide = weaker: the generator has no weaker network; set train.guide to "
            "earlier or smaller (earlier needs several train.checks), and run `replenish train`"
        )


class Engine:
    """Draws candidates; what each one becomes depends on neither its batch nor its neighbours."""

    def __init__(
        self,
        generator: Generator,
        settings: SamplerSettings,
        seed: int,
        device: torch.device,
        editing: Editing | None = None,
        *,
        compiled: bool = False,
        batch_images: int | None = None,
        workers: int = 1,
        memory_mib: int | None = None,
    ) -> None:
        """Take the generator, and measure which batches go with it at the first candidate.

        Args:
            generator: on `device`.
            settings: of the sampler.
            seed: root seed.
            device: where the network is.
            editing: training images to start from; None starts from noise.
            compiled: use torch.compile.
            batch_images: of one network call; None measures.
            workers: that share the memory.
            memory_mib: of this worker's batches; None is a share of what is free.

        Raises:
            InputError: steps out of range, or autoguidance without a weaker network.
        """
        refuse_impossible(generator, settings)
        self._generator, self._settings, self._seed = generator, settings, seed
        self._device, self._editing = device, editing
        self._network = Network(generator.model, device, settings.precision, compiled)
        self._weaker = None
        if generator.weaker is not None and settings.guidance.guide == "weaker":
            self._weaker = Network(generator.weaker, device, settings.precision, compiled)
        self._limits = (batch_images, workers, memory_mib)
        self._batches: Batches | None = None
        self._lock = Lock()

    @property
    def batch_images(self) -> int:
        """Return the images of one network call; measured when first asked for."""
        return self._measured().images

    def draw(self, candidates: Sequence[Candidate]) -> Images:
        """Return the candidates, (N, H, W, C) uint8, in their order.

        Raises:
            InputError: a class that the generator does not know.
            StageError: the memory does not hold the smallest batch.
        """
        classes = self._generator.spec.classes
        for one in candidates:
            if not 0 <= one.label < len(classes):
                raise InputError(
                    f"class {one.label}: the generator knows the classes 0 to {len(classes) - 1} "
                    f"({', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''})"
                )
        origins = [self.origin(one) for one in candidates]
        images: list[Images | None] = [None] * len(candidates)
        # Images of one strength step down one ladder, and share a batch.
        for strength in sorted({origin.strength for origin in origins}):
            rows = [i for i, origin in enumerate(origins) if origin.strength == strength]
            start = 0
            while start < len(rows):
                batches = self._measured()
                part = rows[start : start + batches.images]
                drawn = self._try(
                    [candidates[i] for i in part], [origins[i] for i in part], strength, batches
                )
                if drawn is None:
                    continue  # the batch is smaller now
                for row, image in zip(part, drawn, strict=True):
                    images[row] = image
                start += len(part)
        side, channels = self._generator.spec.image_size_px, self._channels
        found = [image for image in images if image is not None]
        return np.stack(found) if found else np.zeros((0, side, side, channels), dtype=np.uint8)

    def origin(self, one: Candidate) -> Origin:
        """Return what a candidate starts from."""
        if self._editing is None:
            return Origin()
        return self._editing.origin(self._seed, one.label, one.index)

    @property
    def _channels(self) -> int:
        return int(self._generator.model.config["in_channels"])

    def _try(
        self,
        candidates: Sequence[Candidate],
        origins: Sequence[Origin],
        strength: float,
        batches: Batches,
    ) -> Images | None:
        """Return the images of a batch; None where the memory ran out and the batch was cut."""
        try:
            return from_model(self._draw_batch(candidates, origins, strength, batches.images))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._network.forget()
        if self._weaker is not None:
            self._weaker.forget()
        if not batches.smaller:
            raise StageError(
                f"synthesize: the memory does not hold a batch of {batches.images} images, and no "
                "smaller one gives the same images here; close other programs, or lower "
                "execution.workers"
            )
        self._batches = Batches(batches.smaller[0], batches.smaller[1:])
        return None

    @torch.no_grad()
    def _draw_batch(
        self,
        candidates: Sequence[Candidate],
        origins: Sequence[Origin],
        strength: float,
        size: int,
    ) -> torch.Tensor:
        spec, device, count = self._generator.spec, self._device, len(candidates)
        # The last rows fill the batch up: the size of a batch is part of how it rounds.
        rows = [min(i, count - 1) for i in range(size)]
        labels = torch.tensor([candidates[i].label for i in rows], device=device)
        ladder = self._settings.ladder(spec.process, strength)
        denoise = self._denoiser(ladder, labels)
        draw = self._noise(candidates, size)
        solve = get_solver(self._settings.sampler, self._settings.eta)
        if self._editing is None:
            return solve(ladder, draw(), denoise, draw)[:count]
        parents = np.stack([self._editing.images[_row(origins[i])] for i in rows])
        start = to_model(parents).to(device)
        if self._editing.mode != "inpaint":
            return edit(start, ladder, denoise, solve, draw)[:count]
        masks = np.stack([_mask(origins[i]) for i in rows])
        mask = torch.from_numpy(masks[:, None]).float().to(device)
        times = self._editing.resample_times
        return inpaint(start, mask, ladder, denoise, draw, times)[:count]

    def _denoiser(self, ladder: Ladder, labels: torch.Tensor) -> Denoiser:
        spec = self._generator.spec
        return Denoiser(
            self._network,
            self._weaker,
            spec.process,
            ladder,
            labels,
            len(spec.classes),
            self._settings.guidance,
        )

    def _noise(self, candidates: Sequence[Candidate], size: int) -> Draw:
        digest, side = self._generator.digest, self._generator.spec.image_size_px
        generators = [
            torch_generator(self._seed, "candidate", digest, one.label, one.index)
            for one in candidates
        ]
        draw = noise_source(generators, (self._channels, side, side), self._device)

        def filled() -> torch.Tensor:
            noise = draw()
            spare = noise[-1:].expand(size - len(noise), *noise.shape[1:])
            return torch.cat([noise, spare]) if len(spare) else noise

        return filled

    def _measured(self) -> Batches:
        with self._lock:  # the threads of a process share the engine; one measures, alone
            if self._batches is None:
                wanted, workers, memory_mib = self._limits
                call = self._probe()
                doubled = 2 if self._settings.guidance.weight != 1.0 else 1
                self._batches = choose_batches(
                    call,
                    self._device,
                    wanted,
                    doubled * activation_bytes(self._generator.model, call),
                    memory_share(self._device, workers, memory_mib),
                )
            return self._batches

    def _probe(self) -> Call:
        """Return what runs the network, with guidance and without, on the first n fixed images."""
        spec, guidance = self._generator.spec, self._settings.guidance
        ladder = self._settings.ladder(spec.process)
        shape = (self._channels, spec.image_size_px, spec.image_size_px)
        # One rung where guidance acts, which doubles the batch, and one where it does not.
        acts = [guidance.acts(ladder.sigma(rung)) for rung in range(len(ladder))]
        chosen = [acts.index(kind) for kind in (True, False) if kind in acts]

        def call(count: int) -> torch.Tensor:
            generators = [torch_generator(self._seed, "batch", i) for i in range(count)]
            noise = noise_source(generators, shape, self._device)()
            labels = torch.arange(count, device=self._device) % max(len(spec.classes), 1)
            denoise = self._denoiser(ladder, labels)
            return torch.cat([denoise(noise, rung) for rung in chosen], dim=1)

        return call


def _row(origin: Origin) -> int:
    if origin.row is None:
        raise ValueError("an edited candidate has a parent")
    return origin.row


def _mask(origin: Origin) -> npt.NDArray[np.bool_]:
    if origin.mask is None:
        raise ValueError("an inpainted candidate has a mask")
    return origin.mask
