"""Any network of the timm library as an encoder, with its own preprocessing.

The weights come from a folder, from a file beside a model name, or from the Hugging Face hub, and
in each case as safetensors. A path never touches the network, and nothing is unpickled: timm only
builds the layers, and its own loaders, which do both, are not called.
"""

import difflib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.images import Images
from pipeline.errors import InputError
from pipeline.features.frozen import Encoder, Features, run_frozen
from pipeline.features.weight_files import (
    CONVERT,
    MISSING_PACKAGES,
    PICKLES,
    Tensors,
    digest_tensors,
    load_strictly,
    read_json_object,
    read_tensors,
    shortened,
)
from pipeline.folders import safe_join
from pipeline.hashing import digest_json
from pipeline.seeds import seeded_initialisers

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# Arguments of `timm.create_model` by which a stranger's config could open other files or undo ours.
RESERVED = ("pretrained", "checkpoint", "cache_dir", "num_classes", "features_only", "scriptable")
_LARGEST_PX = 2048


@dataclass(frozen=True)
class _Source:
    """A model as a user names it: architecture, weights, what else its config says."""

    shown: str
    architecture: str
    tensors: Tensors
    arguments: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class _Preprocessing:
    height_px: int
    width_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def timm_encoder(
    device: torch.device,
    *,
    path: Path | None = None,
    model: str | None = None,
    hub_id: str | None = None,
    image_size_px: int | None = None,
    batch_images: int = 64,
) -> Encoder:
    """Return a timm network without its classifier as an encoder.

    Images are resized whole to the network's input size (bicubic, antialiased, clipped to
    [0, 1]) and normalised with its mean and deviation. Nothing is cropped away, as timm's own
    evaluation does: what tells the classes of small images apart may stand at their edge.

    Args:
        device: where to compute.
        path: folder with config.json and model.safetensors, or a .safetensors file.
        model: timm's name of the architecture; needed where there is no config.json.
        hub_id: "owner/name" or "owner/name@revision", instead of a path; kept in the hub's cache.
        image_size_px: side to resize to instead of the network's own; a transformer's grid of
            positions is resampled for it. Smaller is much faster, and another encoder.
        batch_images: images at a time.

    Raises:
        InputError: timm is not installed, the model is unknown, or the files cannot be used.
    """
    timm = import_timm()
    source = read_source(path, model, hub_id)
    network = build_backbone(timm, source, image_size_px)
    defaults = timm.data.resolve_model_data_config(network)
    preprocessing = find_preprocessing(source, defaults, image_size_px)
    network.to(device).eval()
    forward = _forward(network, preprocessing, device)
    width = _width(source, forward, preprocessing, device)

    def embed(images: Images) -> Features:
        return run_frozen(forward, images, width, device, batch_images)

    identity = [
        source.architecture,
        source.arguments,
        repr(preprocessing),
        digest_tensors(source.tensors),
    ]
    return Encoder(f"timm {source.architecture}", digest_json(["timm", *identity]), width, embed)


def import_timm() -> Any:
    """Return the module timm.

    Raises:
        InputError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise InputError(f"timm: the package is not installed; {MISSING_PACKAGES}") from None
    return timm


def read_source(path: Path | None, model: str | None, hub_id: str | None) -> _Source:
    """Return the weights and settings in a folder, a safetensors file or a hub repository.

    Raises:
        InputError: both or none of path and hub id are given, or the files cannot be used.
    """
    if path is not None and hub_id is None:
        return _from_folder(path, model) if path.is_dir() else _from_file(path, model)
    if hub_id is not None and path is None:
        return _from_hub(hub_id)
    raise InputError("timm: give either a path or a hub id of the weights")


def _from_folder(folder: Path, model: str | None) -> _Source:
    names = sorted(one.name for one in folder.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    if _WEIGHTS in weights:
        weights = [_WEIGHTS]
    pickles = [name for name in names if name.endswith(PICKLES)]
    if not weights and pickles:
        raise InputError(f"{folder / pickles[0]}: {CONVERT}, as {_WEIGHTS} in the folder")
    if len(weights) != 1:
        raise InputError(
            f"{folder}: {len(weights)} *.safetensors files and none is {_WEIGHTS}; give a folder "
            "that timm saved for the hub, or one with the file to use alone"
        )
    file = safe_join(folder, weights[0])
    if _CONFIG not in names:
        if model is None:
            raise InputError(f"{folder}: no {_CONFIG}; fetch it too, or name the model")
        return _from_file(file, model)
    source = _from_files(str(folder), safe_join(folder, _CONFIG), file)
    if model is not None and model.partition(".")[0] != source.architecture.partition(".")[0]:
        raise InputError(
            f"{folder}: the model named is {shortened(model)} and that of its {_CONFIG} is "
            f"{shortened(source.architecture)}; name none, or give the other's folder"
        )
    return source


def _from_file(path: Path, model: str | None) -> _Source:
    tensors = read_tensors(path)
    if model is None:
        raise InputError(f"{path}: no model is named; say which timm architecture it is of")
    return _Source(str(path), model, tensors, {}, {})


def _from_hub(hub_id: str) -> _Source:
    found = HUB_ID.fullmatch(hub_id)
    if found is None or ".." in hub_id:
        raise InputError(f"{hub_id!r}: not a hub id; write owner/name or owner/name@revision")
    from huggingface_hub import hf_hub_download  # slow, and seldom needed

    try:
        files = [Path(hf_hub_download(found[1], n, revision=found[2])) for n in (_CONFIG, _WEIGHTS)]
    except Exception as error:  # the client's HTTP library, and so its errors, vary by version
        raise InputError(
            f"{hub_id}: {_CONFIG} and {_WEIGHTS} cannot be downloaded ({type(error).__name__}: "
            f"{shortened(error)}); download them on a connected machine "
            "(`hf download ID --local-dir FOLDER`) and give the folder"
        ) from None
    return _from_files(hub_id, *files)


def _from_files(shown: str, config_file: Path, weights_file: Path) -> _Source:
    config = read_json_object(config_file)
    # Before timm 0.9 the settings stood beside the architecture.
    settings = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not all(
        isinstance(one, dict) for one in (settings, arguments)
    ):
        raise InputError(f"{shown}: {_CONFIG} names no timm architecture; fetch the file again")
    reserved = [name for name in arguments if name.startswith(RESERVED)]
    if reserved:
        raise InputError(
            f"{shown}: {_CONFIG} sets {shortened(reserved[0])} in model_args, which must not be "
            "set; remove it"
        )
    return _Source(shown, architecture, read_tensors(weights_file), arguments, settings)


def build_backbone(timm: Any, source: _Source, image_size_px: int | None) -> nn.Module:
    """Return the network with its weights; those of the classifier are dropped."""
    # With its tag, such as ".lvd142m", which tells the mean and the deviation.
    full, name = source.architecture, source.architecture.partition(".")[0]
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, 3) or [n for n in known if name in n][:3]
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists them"
        raise InputError(f"{source.shown}: timm has no model {shortened(name)!r}{hint}")
    try:
        with seeded_initialisers(0, "timm"):  # drawn in vain, but from no global generator
            arguments = dict(source.arguments)
            if image_size_px is not None and timm.get_pretrained_cfg(name).fixed_input_size:
                arguments["img_size"] = image_size_px
            network: nn.Module = timm.create_model(full, num_classes=0, **arguments)
        tensors = _fitted(network, source)
    except InputError:
        raise
    except Exception as error:  # whatever a wrong argument meets first, deep inside timm
        raise InputError(
            f"{source.shown}: timm cannot build {shortened(full)} ({type(error).__name__}: "
            f"{shortened(error)}); check the files and `pip install -U timm`"
        ) from None
    load_strictly(network, tensors, source.shown)
    return network


def _fitted(network: nn.Module, source: _Source) -> Tensors:
    """Return the weights by the network's names, without those of the classifier."""
    tensors = source.tensors
    wanted = network.state_dict()
    if any(name not in tensors or tensors[name].shape != wanted[name].shape for name in wanted):
        # By timm's convention a model's module has a filter for files of other sizes or names.
        adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            tensors = adapt(dict(tensors), network)
    classifier = network.pretrained_cfg.get("classifier") or ()  # type: ignore[operator, union-attr]
    heads = [classifier] if isinstance(classifier, str) else list(classifier)
    tops = tuple(f"{head.partition('.')[0]}." for head in heads)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in wanted or not name.startswith(tops or ("\0",))
    }


def find_preprocessing(
    source: _Source, defaults: dict[str, Any], image_size_px: int | None
) -> _Preprocessing:
    """Return what the network wants done to its images: their size, the mean and the deviation.

    Args:
        source: of the weights; its settings go before timm's.
        defaults: timm's settings of the network.
        image_size_px: side of the images, in place of the network's own.
    """
    settings = {**defaults, **{k: v for k, v in source.settings.items() if v is not None}}
    if image_size_px is not None:
        settings["input_size"] = (3, image_size_px, image_size_px)
    size, mean, std = (settings.get(key) for key in ("input_size", "mean", "std"))
    try:
        channels, height, width = (int(value) for value in size)  # type: ignore[union-attr]
        means = tuple(float(value) for value in mean)  # type: ignore[union-attr]
        deviations = tuple(float(value) for value in std)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        channels, height, width, means, deviations = 0, 0, 0, (), ()
    if (
        (channels, len(means), len(deviations)) != (3, 3, 3)
        or not all(1 <= side <= _LARGEST_PX for side in (height, width))
        or not all(value > 0 for value in deviations)
    ):
        raise InputError(
            f"{source.shown}: input_size {shortened(size)}, mean {shortened(mean)}, std "
            f"{shortened(std)}: only networks of 3 channels and 1 to {_LARGEST_PX} px; check "
            f"{_CONFIG}"
        )
    return _Preprocessing(height, width, means, deviations)  # type: ignore[arg-type]


def _forward(
    network: nn.Module, preprocessing: _Preprocessing, device: torch.device
) -> Callable[[Tensor], Tensor]:
    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
    size = (preprocessing.height_px, preprocessing.width_px)

    def forward(pixels: Tensor) -> Tensor:
        x = pixels.float().div(255)  # (B, 3, h, w) in [0, 1]
        if x.shape[2:] != size:
            x = functional.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = network((x - mean) / std)
        return features

    return forward


def _width(
    source: _Source,
    forward: Callable[[Tensor], Tensor],
    preprocessing: _Preprocessing,
    device: torch.device,
) -> int:
    """Return D, from a black image; a network that gives no (N, D) floats is refused."""
    size = (1, 3, preprocessing.height_px, preprocessing.width_px)
    try:
        with torch.inference_mode():
            found = forward(torch.zeros(size, dtype=torch.uint8, device=device))
    except Exception as error:  # such as an input size that the architecture does not take
        raise InputError(
            f"{source.shown}: {source.architecture} fails on an image of {size[2]} x {size[3]} px "
            f"({type(error).__name__}: {shortened(error)}); check input_size in {_CONFIG}"
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(
            f"{source.shown}: {source.architecture} gives no vector an image; use a model that "
            "pools its features"
        )
    return found.shape[1]
