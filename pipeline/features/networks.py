"""The classifiers of the comparison: built by a specification, saved and loaded.

    small_cnn   three convolutions (`classifier.SmallCNN`), for few and small images
    resnet      a small residual network
    timm        any network of the timm library, from scratch or with pretrained weights
    linear      a linear probe: on a timm network's frozen features, or on the pixels

A saved network is a folder with network.safetensors and network.json.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.features.classifier import Classifier, SmallCNN, build_classifier, draw_weights
from pipeline.features.timm_network import TimmClassifier, build_timm, rebuild_timm
from pipeline.features.weight_files import load_strictly, read_json_object, read_tensors, shortened
from pipeline.folders import safe_join, write_bytes, write_json

WEIGHTS = "network.safetensors"
DESCRIPTION = "network.json"
NETWORK_FILES = (WEIGHTS, DESCRIPTION)
_FORMAT = "replenish-network-1"
_OWN_KEYS = {"format", "spec", "timm"}

Kind = Literal["small_cnn", "resnet", "linear", "timm"]

_STAGES = 3
_SMALLEST_MAP_PX = 4  # a map is not halved below this side
_MOST = {"channels": 3, "classes": 100_000, "image_size_px": 2048, "base_channels": 1024}


@dataclass(frozen=True)
class NetworkSpec:
    """What a classifier is, apart from its weights.

    Attributes:
        kind: which family.
        model: timm's name of the network, for `timm` and `linear`; may be left out where the
            pretrained weights come with a config.json.
        pretrained: weights for `timm` and `linear`: a hub id "owner/name" or
            "owner/name@revision", or the path of a safetensors file or of a folder with one.
        channels: of the images, 1 or 3.
        classes: number of classes, at least 2.
        image_size_px: side of the images.
        base_channels: width of `small_cnn` and `resnet`; the others do not look at it.
    """

    kind: Kind
    model: str | None
    pretrained: str | None
    channels: int
    classes: int
    image_size_px: int
    base_channels: int


class SmallResNet(Classifier):
    """A residual network for small images: a stem, three stages of one basic block, a mean.

    As ResNet-8 for CIFAR (He et al. 2016, "Deep residual learning for image recognition",
    section 4.2), with `base_channels` x 1, 2 and 4 channels. The stem keeps the size below 48 px
    and divides it by 2 below 96 px, else by 4. The second and the third stage halve the map while
    at least 4 px remain.
    """

    channels_last = True

    def __init__(self, channels: int, classes: int, base_channels: int, image_size_px: int) -> None:
        super().__init__()
        stem_stride = 1 if image_size_px < 48 else 2
        stem: list[nn.Module] = [
            nn.Conv2d(channels, base_channels, 3, stride=stem_stride, padding=1, bias=False),
            nn.BatchNorm2d(base_channels),
            nn.ReLU(inplace=True),
        ]
        side = -(-image_size_px // stem_stride)
        if image_size_px >= 96:
            stem.append(nn.MaxPool2d(2))
            side //= 2
        blocks: list[nn.Module] = []
        inside = base_channels
        for stage in range(_STAGES):
            halve = stage > 0 and side // 2 >= _SMALLEST_MAP_PX
            outside = base_channels << stage
            blocks.append(_BasicBlock(inside, outside, 2 if halve else 1))
            side = -(-side // 2) if halve else side
            inside = outside
        self.body = nn.Sequential(*stem, *blocks)
        self.head = nn.Linear(inside, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (N, 4 base) float32 features of (N, C, H, W) images in [-1, 1]."""
        features: Tensor = self.body(x).float().mean((2, 3))
        return features


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside an identity, or a 1 x 1 convolution where the shape changes.

    The shortcut is averaged before its convolution, not strided (He et al. 2019, "Bag of tricks
    for image classification with convolutional neural networks", ResNet-D). Nor may it be
    strided: see `classifier.Classifier`.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut = (
            nn.Identity()
            if inside == outside and stride == 1
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inside, outside, 1, bias=False),
                nn.BatchNorm2d(outside),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x), inplace=True)


class PixelProbe(Classifier):
    """Multinomial logistic regression on the pixels: the floor that any network should beat."""

    def __init__(self, channels: int, classes: int, image_size_px: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels * image_size_px**2, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the (N, C H W) float32 pixels of (N, C, H, W) images in [-1, 1]."""
        return x.float().flatten(1)


def build_network(spec: NetworkSpec, seed: int) -> Classifier:
    """Return the classifier of a specification on the CPU, before training.

    The weights are a function of the arguments (and of the pretrained files) alone: convolutions
    as He et al. 2015, equation 10, timm's own way for timm's, each head at zero. The last batch
    norm of a residual block starts at zero, so that a block starts as its shortcut (Goyal et al.
    2017, section 5.1).

    Raises:
        InputError: the specification is impossible, timm is missing, or its files cannot be used.
    """
    _check(spec)
    if spec.kind == "timm" or (spec.kind == "linear" and spec.pretrained is not None):
        return build_timm(
            spec.model,
            spec.pretrained,
            spec.classes,
            spec.image_size_px,
            seed,
            frozen=spec.kind == "linear",
        )
    return _build_own(spec, seed)


def save_network(
    model: Classifier, spec: NetworkSpec, folder: Path, extra: Mapping[str, Any]
) -> None:
    """Write network.safetensors and, last, network.json.

    Args:
        model: made by `build_network(spec, ...)`, trained or not.
        spec: what it was built by.
        folder: made where there is none.
        extra: further keys of network.json, plain data, such as the class names.

    Raises:
        ValueError: `extra` has a key of the format's own.
    """
    _refuse_own_keys(extra)
    own: dict[str, Any] = {"format": _FORMAT, "spec": asdict(spec)}
    if isinstance(model, TimmClassifier):
        own["timm"] = asdict(model.body)
    # Copies: safetensors refuses weights that share memory.
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    write_bytes(folder / WEIGHTS, save(tensors))
    write_json(folder / DESCRIPTION, {**extra, **own})


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add keys to the network.json of a saved network, such as the class names.

    Raises:
        InputError: the folder holds no saved network, or a damaged one.
        ValueError: `facts` has a key of the format's own.
    """
    _refuse_own_keys(facts)
    write_json(folder / DESCRIPTION, {**_description(folder), **facts})


def read_spec(folder: Path) -> NetworkSpec:
    """Return the specification in a saved network's folder.

    Raises:
        InputError: it is missing, damaged, or not of a network that Replenish saved.
    """
    return _spec(folder, _description(folder))


def load_network(folder: Path) -> Classifier:
    """Return the network that `save_network` wrote, on the CPU and in eval mode.

    Neither the pretrained files it came from nor the hub are needed.

    Raises:
        InputError: a file is missing, damaged or foreign, or timm is needed and not installed.
    """
    description = _description(folder)
    spec = _spec(folder, description)
    weights = safe_join(folder, WEIGHTS)
    tensors = read_tensors(weights)
    shown = str(weights)
    model: Classifier
    if spec.kind == "timm" or (spec.kind == "linear" and spec.pretrained is not None):
        head = tensors.get("head.weight")
        body = description.get("timm")
        if head is None or head.ndim != 2 or not isinstance(body, dict):
            raise InputError(
                f"{folder}: no weights and description of a timm network; save it again"
            )
        model = rebuild_timm(
            body,
            head.shape[1],
            spec.classes,
            spec.kind == "linear",
            str(folder / DESCRIPTION),
        )
    else:
        with torch.device("meta"):  # a foreign file must not decide how much memory is taken
            wanted = sum(weight.numel() for weight in _make(spec).parameters())
        if wanted > sum(tensor.numel() for tensor in tensors.values()):
            raise InputError(
                f"{shown}: too few weights for the network of {DESCRIPTION}; save the network again"
            )
        model = _build_own(spec, 0)
    load_strictly(model, tensors, shown)
    return model.eval()


def _build_own(spec: NetworkSpec, seed: int) -> Classifier:
    if spec.kind == "small_cnn":
        return build_classifier(
            spec.channels, spec.classes, spec.base_channels, spec.image_size_px, seed
        )
    model = draw_weights(lambda: _make(spec), seed)
    for module in model.modules():
        if isinstance(module, _BasicBlock):
            nn.init.zeros_(module.norm2.weight)
    return model


def _make(spec: NetworkSpec) -> Classifier:
    if spec.kind == "small_cnn":
        return SmallCNN(spec.channels, spec.classes, spec.base_channels, spec.image_size_px)
    if spec.kind == "resnet":
        return SmallResNet(spec.channels, spec.classes, spec.base_channels, spec.image_size_px)
    return PixelProbe(spec.channels, spec.classes, spec.image_size_px)


def _refuse_own_keys(extra: Mapping[str, Any]) -> None:
    taken = sorted(_OWN_KEYS & set(extra))
    if taken:
        raise ValueError(f"{taken[0]} is a key of {DESCRIPTION} already; use another name")


def _description(folder: Path) -> dict[str, Any]:
    path = safe_join(folder, DESCRIPTION)
    if not path.is_file():
        raise InputError(f"{folder}: no saved network (it has no {DESCRIPTION}); check the folder")
    found = read_json_object(path)
    if found.get("format") != _FORMAT:
        raise InputError(
            f"{path}: format {shortened(found.get('format'))!r}; this Replenish reads {_FORMAT!r}"
        )
    return found


def _spec(folder: Path, description: Mapping[str, Any]) -> NetworkSpec:
    path = folder / DESCRIPTION
    try:
        spec = NetworkSpec(**description["spec"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({shortened(error)}); save the network again") from None
    try:
        _check(spec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return spec


def _check(spec: NetworkSpec) -> None:
    """Refuse what no network can be built of, in a file above all."""
    if spec.kind not in get_args(Kind):
        raise InputError(
            f"network: kind {shortened(spec.kind)!r} is unknown; use one of "
            f"{', '.join(get_args(Kind))}"
        )
    for name, most in _MOST.items():
        value, least = getattr(spec, name), 2 if name == "classes" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(
                f"network: {name} is {shortened(value)}; give a whole number from {least} to {most}"
            )
    if spec.channels == 2:
        raise InputError("network: channels is 2; images are grey (1) or colour (3)")
    for name in ("model", "pretrained"):
        value = getattr(spec, name)
        if value is not None and (not isinstance(value, str) or not value):
            raise InputError(f"network: {name} is {shortened(value)!r}; give a text, or leave it")
        if value is not None and spec.kind not in ("timm", "linear"):
            raise InputError(
                f"network: {name} = {shortened(value)} says nothing to kind {spec.kind}; use kind "
                "timm or linear, or leave it out"
            )
    if spec.kind == "linear" and spec.model is not None and spec.pretrained is None:
        raise InputError(
            f"network: a linear probe on {shortened(spec.model)} without weights; give its "
            "pretrained weights, or leave the model out to probe the pixels"
        )
    if spec.kind == "small_cnn" and spec.image_size_px < 3:
        raise InputError(f"network: small_cnn takes 3 px and more, not {spec.image_size_px}")
