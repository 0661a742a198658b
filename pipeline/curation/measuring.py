"""What is measured of an image against the real rows: every score but the one of repeats.

Real rows are laid out once. A candidate is compared with all of them; a training row, which judges
and indexes know, with all but its own group and by the judge that has not seen it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.curation.artefacts import Texture, measure_texture
from pipeline.curation.copies import Near, NearIndex
from pipeline.curation.realism import RealSupport, Support
from pipeline.data.images import Images, flat_pixels
from pipeline.data.store import Samples
from pipeline.features.judge import Ensemble
from pipeline.metrics.memorization import Nearest, RealIndex

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[Any]]
Embed = Callable[[Images], Features]


class RealRows:
    """The training rows as pixels, as aligned thumbs and as features, beside their judges."""

    def __init__(self, training: Samples, ensemble: Ensemble, embed: Embed | None) -> None:
        """Lay out the rows.

        Args:
            training: two rows at least.
            ensemble: of judges, cross-fitted on them.
            embed: encoder of realism, (N, H, W, C) uint8 -> (N, D); None: the ensemble's own.

        Raises:
            StageError: fewer than 2 rows, or features that are not finite.
        """
        self._training = training
        self._ensemble = ensemble
        self._embed = embed
        # Objects: a score refers to the one string that there is of each id, 8 bytes for 256.
        self._ids = np.asarray(training.ids, dtype=object)
        number = {group: i for i, group in enumerate(dict.fromkeys(training.groups))}
        self._groups = np.asarray([number[group] for group in training.groups], dtype=np.int64)
        self._pixels = RealIndex(flat_pixels(training.images))
        self._near = NearIndex(training.images, self._groups)
        images = training.images
        features = ensemble.embed(images) if embed is None else embed(images)
        self._support = RealSupport(features, training.labels)

    def measure(
        self, images: Images, labels: Labels, parents: Labels | None
    ) -> tuple[Columns, Features]:
        """Return all scores but repeat_closeness, (N,) each, and (N, D) features.

        Args:
            images: (N, H, W, C) uint8.
            labels: (N,) that they are meant to show.
            parents: (N,) training rows that they were made from, if any; nearest rows are then of
                other groups.

        Raises:
            StageError: features are not finite.
        """
        looked = self._ensemble.look(images)
        features = looked.features if self._embed is None else self._embed(images)
        pixels = _flat(images)
        columns = self._columns(
            labels,
            looked.probabilities,
            looked.members,
            self._pixels.nearest(pixels, parents),
            self._near.search(images, None if parents is None else self._groups[parents]),
            measure_texture(images),
            self._support.place(features, labels),
        )
        if parents is not None:
            columns["parent_distance"] = self._pixels.distance_to(pixels, parents).round(6)
        return columns, features

    def measure_training(self, rows: Labels) -> Columns:
        """Return the scores of the given training rows, each without itself."""
        images, labels = self._training.images[rows], self._training.labels[rows]
        chances = self._ensemble.out_of_fold[rows]
        return self._columns(
            labels,
            chances,
            chances[None],
            self._pixels.nearest(flat_pixels(images), rows),
            self._near.search(images, self._groups[rows]),
            measure_texture(images),
            self._support.place_own(rows),
        )

    def _columns(
        self,
        labels: Labels,
        chances: Floats,
        members: Floats,
        pixel: Nearest,
        near: Near,
        texture: Texture,
        support: Support,
    ) -> Columns:
        rows = np.arange(len(labels))
        confidence = chances[rows, labels]
        others = chances.copy()
        others[rows, labels] = -np.inf
        return {
            "predicted": chances.argmax(axis=1),
            "confidence": confidence.round(6),
            "margin": (confidence - others.max(axis=1)).round(6),
            "disagreement": _disagreement(chances, members).round(6),
            "nearest_id": self._ids[pixel.index],
            "pixel_distance": pixel.distance.round(6),
            "pixel_ratio": pixel.ratio.round(6),
            "near_id": np.where(near.index < 0, "", self._ids[near.index]),
            "near_residual": near.residual,
            "near_closeness": near.closeness.round(6),
            "spread": texture.spread.round(6),
            "dark": texture.dark.round(6),
            "bright": texture.bright.round(6),
            "rough": texture.rough.round(6),
            "support_distance": support.distance,
            "class_ratio": support.ratio,
        }


def _disagreement(chances: Floats, members: Floats) -> Floats:
    """Return mutual information over entropy, in [0, 1], (N,).

    The mutual information of the label and the judge is the entropy of the judges' mean minus the
    mean of their entropies (Houlsby et al. 2011, "Bayesian active learning for classification and
    preference learning").
    """
    total = _entropy(chances)
    own = _entropy(members).mean(axis=0)
    share: Floats = np.clip((total - own) / np.maximum(total, 1e-6), 0.0, 1.0)
    return share


def _entropy(chances: Floats) -> Floats:
    entropy: Floats = -(chances * np.log(np.maximum(chances, 1e-12))).sum(axis=-1)
    return entropy


def _flat(images: Images) -> Features:
    width = int(np.prod(images.shape[1:]))
    return flat_pixels(images) if len(images) else np.zeros((0, width), dtype=np.float32)
