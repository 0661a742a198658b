"""Open a logged model again: `mlflow.pyfunc.load_model` calls `_load_pyfunc` here.

A folder with network.json is a classifier, one with generator.json a generator; weights are
safetensors, nothing is unpickled. Knows nothing of MLflow but this one name. docs/mlflow.md shows
both calls.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.images import CHANNELS, Images, from_model, to_model
from pipeline.device import pick_device
from pipeline.diffusion.checkpoints import Generator, load_generator
from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.sampling import SamplerSettings, sample
from pipeline.diffusion.solvers import SamplerName
from pipeline.errors import InputError
from pipeline.seeds import torch_generator

BATCH_IMAGES = 64
_MOST_IMAGES = 100_000
_DEFAULTS: dict[str, Any] = {
    "sampler": "dpmsolver++",
    "steps": 20,
    "guidance": 1.0,
    "guidance_low": 0.0,
    "guidance_high": math.inf,
    "guide": "null_class",
    "spacing": None,
    "eta": 0.0,
}


class Table(Protocol):
    """A table of columns, such as the data frame that MLflow hands over."""

    def __getitem__(self, name: str) -> Iterable[Any]:
        """Return a column."""
        ...


class ServedClassifier:
    """Class probabilities of images."""

    def __init__(self, network: torch.nn.Module) -> None:
        """Take a network that gives (N, K) logits of (N, C, H, W) images in [-1, 1]."""
        self._network = network.eval()

    def predict(
        self, images: Images, params: Mapping[str, Any] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (N, K) float32 probabilities of (N, H, W, C) uint8 images.

        `params` is MLflow's, and not used.
        """
        parts = []
        with torch.inference_mode():
            for start in range(0, max(1, len(images)), BATCH_IMAGES):
                part = to_model(np.asarray(images[start : start + BATCH_IMAGES], dtype=np.uint8))
                logits = self._network(part).float()
                parts.append(torch.softmax(logits, dim=1).numpy().astype(np.float32))
        return np.concatenate(parts)


class ServedGenerator:
    """Images of classes; the same class and seed give the same image, in any company."""

    def __init__(self, generator: Generator, settings: SamplerSettings) -> None:
        """Take the generator, on the CPU or a GPU, and how it is sampled."""
        self._generator, self._settings = generator, settings
        self._labels = {name: label for label, name in enumerate(generator.spec.classes)}

    def predict(self, table: Table, params: Mapping[str, Any] | None = None) -> Images:
        """Return (N, H, W, C) uint8 images, one for each row of the columns `class` and `seed`.

        `params` is MLflow's, and not used.

        Raises:
            InputError: a class that the generator does not know, or too many rows.
        """
        names, seeds = [str(name) for name in table["class"]], [int(one) for one in table["seed"]]
        unknown = sorted(set(names) - self._labels.keys())
        if unknown:
            raise InputError(
                f"class {unknown[0]!r}: the generator knows {', '.join(list(self._labels)[:10])}"
            )
        if len(names) > _MOST_IMAGES:
            raise InputError(f"{len(names):,} images in one call; ask for at most {_MOST_IMAGES:,}")
        parts: list[Images] = []
        for start in range(0, len(names), BATCH_IMAGES):
            labels = [self._labels[name] for name in names[start : start + BATCH_IMAGES]]
            noise = [
                torch_generator(seed, "served", label)
                for seed, label in zip(seeds[start : start + BATCH_IMAGES], labels, strict=True)
            ]
            model = self._generator.model
            drawn = sample(
                model,
                self._generator.spec,
                torch.tensor(labels),
                noise,
                self._settings,
                model.device,
                self._generator.weaker,
            )
            parts.append(from_model(drawn))
        spec = self._generator.spec
        shape = (0, spec.image_size_px, spec.image_size_px, CHANNELS[spec.image_mode])
        return np.concatenate(parts) if parts else np.zeros(shape, dtype=np.uint8)


def _load_pyfunc(
    data_path: str, model_config: Mapping[str, Any] | None = None
) -> ServedClassifier | ServedGenerator:
    """Open the folder of a logged model; MLflow calls this by its name.

    Args:
        data_path: the folder.
        model_config: of a generator: `sampler`, `steps`, `guidance` (1 is none), `guidance_low`
            and `guidance_high` (sigma), `guide` (null_class or weaker), `spacing`, `eta`; what is
            left out has its default.

    Raises:
        InputError: the folder holds neither, is damaged, or a setting is unknown.
    """
    folder = Path(data_path)
    if (folder / "network.json").is_file():
        from pipeline.features.networks import load_network

        return ServedClassifier(load_network(folder))
    if not (folder / "generator.json").is_file():
        raise InputError(f"{folder}: neither network.json nor generator.json; not a model of ours")
    generator = load_generator(folder, pick_device("auto"))
    return ServedGenerator(generator, _settings(generator, dict(model_config or {})))


def _settings(generator: Generator, asked: dict[str, Any]) -> SamplerSettings:
    if unknown := sorted(asked.keys() - _DEFAULTS.keys()):
        raise InputError(f"model_config: unknown {unknown[0]!r}; known: {', '.join(_DEFAULTS)}")
    config = {**_DEFAULTS, **asked}
    if config["sampler"] not in get_args(SamplerName):
        names = ", ".join(get_args(SamplerName))
        raise InputError(f"model_config: sampler = {config['sampler']!r}; one of {names}")
    if config["guide"] == "weaker" and generator.weaker is None:
        raise InputError("model_config: guide = weaker, but this generator has no weaker network")
    guidance = Guidance(
        float(config["guidance"]),
        float(config["guidance_low"]),
        float(config["guidance_high"]),
        config["guide"],
    )
    settings = SamplerSettings(
        config["sampler"],
        int(config["steps"]),
        guidance,
        spacing=config["spacing"],
        eta=float(config["eta"]),
    )
    settings.ladder(generator.spec.process)  # refuses steps out of range
    return settings
