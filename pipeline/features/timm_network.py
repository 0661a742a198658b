"""A network of the timm library as a classifier of the comparison, with or without its weights.

Weights are found and read as for encoders (`timm_encoder`): safetensors alone, nothing unpickled.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.features import timm_encoder
from pipeline.features.classifier import Classifier
from pipeline.features.weight_files import shortened
from pipeline.seeds import seeded_initialisers

_LEAST_PX = 32  # most of timm's networks halve the map five times
_LARGEST_PX = 2048


@dataclass(frozen=True)
class Body:
    """All it takes to build the network again, apart from its weights.

    Attributes:
        architecture: timm's name, with its tag if any.
        arguments: further arguments of `timm.create_model`.
        side_px: what images are resized to.
        mean: of each channel, of pixels in [0, 1]; taken off before the network.
        std: of each channel; divided by.
    """

    architecture: str
    arguments: dict[str, Any]
    side_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TimmClassifier(Classifier):
    """A timm network without its own classifier, then a linear head for our classes.

    Images are resized where the network has another size (bicubic, antialiased), grey ones
    repeated to three channels, and normalised as the network expects. A frozen network stays in
    eval mode and takes no gradient: only the head is trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: Body, network: nn.Module, width: int, classes: int, frozen: bool
    ) -> None:
        super().__init__()
        self.body = body
        self.network = network
        self.frozen = frozen
        with torch.device("meta"):  # where drawing weights draws nothing
            head = nn.Linear(width, classes)
        self.head = head.to_empty(device="cpu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for name, values in (("mean", body.mean), ("std", body.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        if frozen:
            network.requires_grad_(False)
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) float32 features of (N, C, H, W) images in [-1, 1]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found: Tensor = self.network(self._prepared(x))
        return found.float()

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen network keeps its statistics, whatever the mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def _prepared(self, x: Tensor) -> Tensor:
        side = self.body.side_px
        if tuple(x.shape[2:]) != (side, side):
            size = (side, side)
            x = functional.interpolate(x.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)
        x = x.expand(-1, 3, -1, -1)  # grey or colour -> (N, 3, side, side)
        return ((x + 1) / 2 - self.mean) / self.std


def build_timm(
    model: str | None,
    pretrained: str | None,
    classes: int,
    image_size_px: int,
    seed: int,
    frozen: bool = False,
) -> TimmClassifier:
    """Return a timm network on the CPU with a head that starts at zero, in eval mode.

    With pretrained weights, images are resized to what the weights were trained on. Without, they
    keep their size where the network takes it, 32 px at the least.

    Args:
        model: timm's name; may be left out where the weights come with a config.json.
        pretrained: path of a safetensors file or of a folder, or a hub id "owner/name@revision".
        classes: number of classes.
        image_size_px: side of the images.
        seed: of the weights, where none are given.
        frozen: train the head alone.

    Raises:
        InputError: timm is not installed, the model is unknown, the files cannot be used.
    """
    if pretrained is not None:
        return _from_weights(model, pretrained, classes, frozen)
    if model is None:
        raise InputError("timm: no model is named; give timm's name, such as resnet18")
    timm = timm_encoder.import_timm()
    fixed, own_px = _default_size(timm, model)
    tried = []
    for side in dict.fromkeys((max(image_size_px, _LEAST_PX), own_px)):
        arguments = {"img_size": side} if fixed and side != own_px else {}
        try:
            network = _create(timm, model, arguments, seed)
            body = _body(timm, model, arguments, network, side)
            return TimmClassifier(body, network, _width(body, network), classes, frozen)
        except InputError as error:  # such as a side that its patches do not divide
            tried.append(error)
    raise tried[-1]


def rebuild_timm(
    body: dict[str, Any], width: int, classes: int, frozen: bool, shown: str
) -> TimmClassifier:
    """Return the network of a saved description, its weights still to be loaded, on the CPU.

    Args:
        body: the fields of a `Body`, read back from a file.
        width: features D of the network, as the file's head has them.
        classes: number of classes.
        frozen: train the head alone.
        shown: name of the file, for messages.

    Raises:
        InputError: timm is not installed, or the description is damaged.
    """
    try:
        known = Body(
            architecture=str(body["architecture"]),
            arguments=dict(body["arguments"]),
            side_px=int(body["side_px"]),
            mean=_three(body["mean"]),
            std=_three(body["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{shown}: damaged ({error!r}); save the network again") from None
    reserved = [name for name in known.arguments if name.startswith(timm_encoder.RESERVED)]
    if reserved or not 1 <= known.side_px <= _LARGEST_PX or min(known.std) <= 0:
        raise InputError(
            f"{shown}: sets {shortened(reserved[0]) if reserved else 'an impossible size or std'}, "
            "which no saved network does; save the network again"
        )
    network = _create(timm_encoder.import_timm(), known.architecture, known.arguments, 0)
    return TimmClassifier(known, network, width, classes, frozen)


def _from_weights(model: str | None, pretrained: str, classes: int, frozen: bool) -> TimmClassifier:
    timm, path = timm_encoder.import_timm(), Path(pretrained)
    # Names on the hub look like relative paths: what exists here, or ends as a file does, is one.
    on_hub = (
        timm_encoder.HUB_ID.fullmatch(pretrained) is not None
        and path.suffix != ".safetensors"
        and not path.exists()
    )
    source = (
        timm_encoder.read_source(None, model, pretrained)
        if on_hub
        else timm_encoder.read_source(path, model, None)
    )
    network = timm_encoder.build_backbone(timm, source, None)
    defaults = timm.data.resolve_model_data_config(network)
    found = timm_encoder.find_preprocessing(source, defaults, None)
    side = found.height_px
    body = Body(source.architecture, source.arguments, side, found.mean, found.std)
    return TimmClassifier(body, network, _width(body, network), classes, frozen)


def _default_size(timm: Any, model: str) -> tuple[bool, int]:
    name = model.partition(".")[0]
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, 3) or [n for n in known if name in n][:3]
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() lists them"
        raise InputError(f"timm has no model {shortened(name)!r}{hint}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return False, 224
    return bool(config.fixed_input_size), int(config.input_size[-1])


def _create(timm: Any, model: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    try:
        with seeded_initialisers(seed, "network"):
            network: nn.Module = timm.create_model(
                model, pretrained=False, num_classes=0, **arguments
            )
    except Exception as error:  # whatever a wrong argument meets first, deep inside timm
        raise InputError(
            f"timm cannot build {shortened(model)} ({type(error).__name__}: {shortened(error)}); "
            "check the name and `pip install -U timm`"
        ) from None
    return network


def _body(
    timm: Any, model: str, arguments: dict[str, Any], network: nn.Module, side_px: int
) -> Body:
    config = timm.data.resolve_model_data_config(network)
    if len(config["mean"]) != 3 or len(config["std"]) != 3:
        raise InputError(f"timm: {model} does not take three channels; use another model")
    return Body(model, arguments, side_px, _three(config["mean"]), _three(config["std"]))


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _width(body: Body, network: nn.Module) -> int:
    """Return D, from a black image; a network that gives no (N, D) floats is refused."""
    network.eval()
    shape = (1, 3, body.side_px, body.side_px)
    try:
        with torch.inference_mode():
            found = network(torch.zeros(shape))
    except Exception as error:  # such as an input size that the architecture does not take
        raise InputError(
            f"timm: {body.architecture} fails on an image of {body.side_px} px "
            f"({type(error).__name__}: {shortened(error)}); use another model"
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(
            f"timm: {body.architecture} gives no vector an image; use a model that pools its "
            "features"
        )
    return found.shape[1]
