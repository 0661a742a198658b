"""A small convolutional classifier: the judge of the synthetic images and the arms' measuring rod.

Convolutions with batch normalisation and ReLU, a coarse average over the map and a linear head.
It learns in seconds from a few hundred images of 8 to 128 px on one processor thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.data.images import Images, to_model
from pipeline.device import Precision, autocast, pick_precision
from pipeline.seeds import seeded_globals

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, K) float32 logits, (B,) labels -> (B,) losses

_WARMUP_SHARE = 0.2  # of the steps; the rate then falls along a half cosine to zero
_SMALLEST_MAP_PX = 4  # a map is not halved below this side
_CELLS = 3  # side of the last map


@dataclass(frozen=True)
class FitSettings:
    """How a classifier is trained.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak rate of AdamW.
        weight_decay: decoupled decay of the convolution and head weights.
        seed: of the dropout of networks that have one, and named by the caller in what it draws
            the batches with; `fit_classifier` itself draws nothing.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        images: (B, C, H, W) in [-1, 1].
        labels: (B,) int64.
        mixed_labels: (B,) int64, the second label of each row where two images were mixed.
        mix: (B,) in [0, 1], the weight of the loss at `labels`; that at `mixed_labels` has the
            rest (Zhang et al. 2018, MixUp; Yun et al. 2019, CutMix). Given with `mixed_labels`.
        weights: (B,) >= 0, how much each row counts against the others of its batch.
        targets: (B, K) probabilities that stand in the place of all labels: the loss is then their
            cross entropy (Hinton et al. 2015, with temperature 1).
    """

    images: Tensor
    labels: Tensor
    mixed_labels: Tensor | None = None
    mix: Tensor | None = None
    weights: Tensor | None = None
    targets: Tensor | None = None


NextBatch = Callable[[int], Batch | tuple[Tensor, Tensor]]


class Classifier(nn.Module):
    """What every network of the comparison is: features, then a linear head.

    Takes (N, C, H, W) images in [-1, 1].

    Attributes:
        head: the linear head, from features to logits.
        channels_last: may it be trained in that layout? Not where a 1 x 1 convolution has a
            stride: on fewer than 16 channels, oneDNN then writes past its memory
            (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    head: nn.Linear
    channels_last: ClassVar[bool] = False

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) float32 penultimate features of (N, C, H, W) images in [-1, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K) logits of (N, C, H, W) images in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits


Network = TypeVar("Network", bound=Classifier)


class SmallCNN(Classifier):
    """Three convolutions of `base_channels` x 1, 2 and 4 channels, then a linear head.

    The map is halved after the first two while at least 4 px remain, so that an 8 px image is not
    pooled away; images of 48 px and more are first brought down by a stride. The last map is
    averaged to 3 x 3 cells, not to one: with a few hundred images, knowing where something stands
    is worth more than indifference to it (about 1.5 points on thinned Fashion-MNIST).
    """

    channels_last = True

    def __init__(self, channels: int, classes: int, base_channels: int, image_size_px: int) -> None:
        super().__init__()
        stem_stride = 1 if image_size_px < 48 else 2 if image_size_px < 96 else 4
        side = -(-image_size_px // stem_stride)
        widths = [base_channels, 2 * base_channels, 4 * base_channels]
        blocks: list[nn.Module] = []
        for inside, outside in zip([channels, *widths[:-1]], widths, strict=True):
            halve = outside != widths[-1] and side // 2 >= _SMALLEST_MAP_PX
            side //= 2 if halve else 1
            blocks.append(_block(inside, outside, 1 if blocks else stem_stride, halve))
        stride = side // _CELLS
        cells = nn.AvgPool2d(side - (_CELLS - 1) * stride, stride)
        self.body = nn.Sequential(*blocks, cells)
        self.head = nn.Linear(widths[-1] * _CELLS**2, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) float32 penultimate features of (N, C, H, W) images in [-1, 1]."""
        features: Tensor = self.body(x).float().flatten(1)  # (N, 4 base, 3, 3) -> (N, D)
        return features


def build_classifier(
    channels: int, classes: int, base_channels: int, image_size_px: int, seed: int
) -> SmallCNN:
    """Return a classifier on the CPU whose weights are a function of the arguments alone.

    Convolutions are drawn as He et al. 2015, equation 10; the head starts at zero, so that the
    first predictions are uniform.
    """
    return draw_weights(lambda: SmallCNN(channels, classes, base_channels, image_size_px), seed)


def draw_weights(make: Callable[[], Network], seed: int) -> Network:
    """Return the network that `make` builds, on the CPU, drawn as `build_classifier` says."""
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def fit_classifier(
    model: Classifier,
    next_batch: NextBatch,
    settings: FitSettings,
    on_step: Callable[[int], None] | None = None,
    loss: Loss | None = None,
) -> None:
    """Train `model` in place with AdamW, warm-up and cosine decay, and leave it in eval mode.

    The caller chooses the device (the model's) and the number of threads. bfloat16 autocast is
    used where the hardware has fast instructions for it: same machine, same result. Parameters
    that need no gradient stay as they are.

    Args:
        model: classifier to train.
        next_batch: step -> a `Batch`, or images (B, C, H, W) in [-1, 1] and labels (B,) int64
            alone, on any device.
        settings: steps, peak rate, weight decay.
        on_step: told the number of finished steps after each one.
        loss: of each row (`pipeline.features.losses`); cross entropy where none is given.
    """
    device, precision = _where(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    kept = [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    # 1.2 to 1.5 times as fast in float32 on a processor; no gain was seen in bfloat16.
    fast = model.channels_last and precision == "float32"
    layout = torch.channels_last if fast else torch.contiguous_format
    _lay_out(model, layout)
    model.train()
    with seeded_globals(settings.seed, device, "classifier"):  # of a network's own dropout
        for step in range(settings.steps):
            rate = settings.learning_rate * _rate_share(step, settings.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            given = next_batch(step)
            batch = given if isinstance(given, Batch) else Batch(*given)
            with autocast(device, precision):
                logits = model(batch.images.to(device, memory_format=layout))
            objective = batch_loss(logits.float(), batch, loss)
            optimiser.zero_grad(set_to_none=True)
            objective.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if on_step is not None:
                on_step(step + 1)
    model.eval()
    _lay_out(model, torch.contiguous_format)  # as files and other users expect it


def batch_loss(logits: Tensor, batch: Batch, loss: Loss | None = None) -> Tensor:
    """Return the loss of one step: the mean over the rows, weighted where the batch has weights.

    Args:
        logits: (B, K) float32.
        batch: labels, and what else it holds; its images are not looked at.
        loss: of each row; cross entropy where none is given.

    Raises:
        ValueError: a loss of labels for a batch of probabilities.
    """
    device = logits.device
    labels = batch.labels.to(device)
    if batch.targets is not None:
        if loss is not None:
            raise ValueError("a loss of labels does not take probabilities in their place")
        rows = functional.cross_entropy(logits, batch.targets.to(device), reduction="none")
        return rows.mean() if batch.weights is None else _weighted(rows, batch.weights)
    if loss is None and batch.mix is None and batch.weights is None:
        return functional.cross_entropy(logits, labels)
    row_loss = loss or cross_entropy
    rows = row_loss(logits, labels)
    if batch.mixed_labels is not None and batch.mix is not None:
        mix = batch.mix.to(device)
        rows = mix * rows + (1 - mix) * row_loss(logits, batch.mixed_labels.to(device))
    return rows.mean() if batch.weights is None else _weighted(rows, batch.weights)


def _weighted(rows: Tensor, weights: Tensor) -> Tensor:
    weights = weights.to(rows.device)
    # A batch in which nothing counts teaches nothing: 0, not 0 / 0.
    return (weights * rows).sum() / weights.sum().clamp_min(torch.finfo(rows.dtype).tiny)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the (B,) cross entropies of (B, K) logits at (B,) labels, in nats."""
    return functional.cross_entropy(logits, labels, reduction="none")


def predict(model: Classifier, images: Images, batch_images: int = 512) -> npt.NDArray[np.float32]:
    """Return (N, K) float32 logits of (N, H, W, C) uint8 images; the model is put in eval mode."""
    return _in_batches(model, model.forward, images, batch_images, model.head.out_features)


def embed(model: Classifier, images: Images, batch_images: int = 512) -> npt.NDArray[np.float32]:
    """Return (N, D) float32 penultimate features of (N, H, W, C) uint8 images, in eval mode."""
    return _in_batches(model, model.features, images, batch_images, model.head.in_features)


def _in_batches(
    model: Classifier,
    function: Callable[[Tensor], Tensor],
    images: Images,
    batch_images: int,
    width: int,
) -> npt.NDArray[np.float32]:
    device, precision = _where(model)
    model.eval()
    rows = np.zeros((len(images), width), dtype=np.float32)
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(images), batch_images):
            part = to_model(images[start : start + batch_images]).to(device)
            rows[start : start + len(part)] = function(part).float().cpu().numpy()
    return rows


def _block(inside: int, outside: int, stride: int, halve: bool) -> nn.Sequential:
    # Pooled before it is normalised: a quarter of the work for the same network shape, and a
    # fifth of a training step's time on a processor.
    pool: list[nn.Module] = [nn.MaxPool2d(2)] if halve else []
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
        *pool,
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


def _rate_share(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step`, in (0, 1]."""
    warmup = max(1, round(steps * _WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    done = (step + 1 - warmup) / max(1, steps - warmup + 1)
    return float(0.5 * (1.0 + np.cos(np.pi * done)))


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _where(model: Classifier) -> tuple[torch.device, Precision]:
    device = model.head.weight.device
    return device, pick_precision("auto", device)
