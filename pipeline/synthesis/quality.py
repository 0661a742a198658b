"""How good the kept images are, and whether they copy: every metric beside its ceiling."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.images import Images, flat_pixels
from pipeline.data.store import Samples
from pipeline.device import Precision
from pipeline.diffusion.checkpoints import load_generator
from pipeline.diffusion.reconstruction import reconstruction_losses
from pipeline.features.cache import cached
from pipeline.features.encoders import Encoder
from pipeline.features.judge import Ensemble
from pipeline.metrics.table import LabelledFeatures, Measured, RowLosses, measure_table
from pipeline.seeds import numpy_generator

# 16 network evaluations each; the area under the curve is known to 0.04 then.
_ATTACKED_ROWS = 128


def measure_quality(
    images: Images,
    labels: npt.NDArray[np.int64],
    training: Samples,
    validation: Samples,
    ensemble: Ensemble,
    encoder: Encoder,
    generator: Path,
    seed: int,
    device: torch.device,
    precision: Precision,
    on_done: Callable[[int, int], None],
) -> list[Measured]:
    """Measure kept images against real ones; no test row is among them.

    Args:
        images: (N, H, W, C) uint8 kept images.
        labels: (N,) that they are meant to show.
        training: rows that the generator was trained on.
        validation: real rows that it was not.
        ensemble: for class probabilities.
        encoder: for features.
        generator: folder of the network that a membership attack is tried on.
        seed: root seed.
        device: of the network.
        precision: of its arithmetic.
        on_done: told finished and total steps.

    Returns:
        A row a metric; none where there are no images or no validation rows.
    """
    if not len(images) or not len(validation):
        return []
    on_done(0, 3)

    def features(images: Images, labels: npt.NDArray[np.int64], known: bool) -> LabelledFeatures:
        return LabelledFeatures(
            # Fake images are new in every run: they would only fill the cache.
            cached(encoder, images) if known else encoder.embed(images),
            flat_pixels(images),
            labels,
            ensemble.predict(images),
        )

    real = [features(rows.images, rows.labels, True) for rows in (training, validation)]
    fake = features(images, labels, False)
    on_done(1, 3)
    losses = _losses(training, validation, generator, seed, device, precision)
    on_done(2, 3)
    table = measure_table(real[0], real[1], fake, encoder.name, seed, losses)
    on_done(3, 3)
    return table


def _losses(
    training: Samples,
    validation: Samples,
    folder: Path,
    seed: int,
    device: torch.device,
    precision: Precision,
) -> RowLosses:
    generator = load_generator(folder, device)

    def losses(rows: Samples, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        part = rows.take(chosen)
        return reconstruction_losses(generator, part.images, part.labels, seed, device, precision)

    drawn = attacked_rows((training.labels, validation.labels), seed)
    return RowLosses(losses(training, drawn[0]), losses(validation, drawn[1]))


def attacked_rows(
    sides: Sequence[npt.NDArray[np.int64]], seed: int, most: int = _ATTACKED_ROWS
) -> list[npt.NDArray[np.int64]]:
    """Return rows of two sets, as many of each class in both, at most `most` a set.

    Classes differ in how hard they are to denoise: unequal shares alone would move the attack.
    """
    classes = max((int(labels.max()) for labels in sides if len(labels)), default=-1) + 1
    each = np.min([np.bincount(labels, minlength=classes) for labels in sides], axis=0)
    # One after the other from each class, until there are enough.
    turns = sorted((turn, label) for label in range(classes) for turn in range(each[label]))
    taken = np.bincount([label for _, label in turns[:most]], minlength=classes)
    drawn = []
    for which, labels in enumerate(sides):
        own = [
            numpy_generator(seed, "attack", which, label).permutation(
                np.flatnonzero(labels == label)
            )[: taken[label]]
            for label in range(classes)
        ]
        drawn.append(np.sort(np.concatenate([np.zeros(0, np.int64), *own])))
    return drawn
