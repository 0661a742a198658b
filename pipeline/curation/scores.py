"""What is known of each candidate image before it is accepted or rejected."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from pipeline.data.images import Images, flat_pixels
from pipeline.data.store import Samples
from pipeline.features.classifier import SmallCNN, embed, predict
from pipeline.metrics.memorization import RealIndex

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of N images that are meant to show given labels.

    Attributes:
        predicted: (N,) label that the judge sees.
        confidence: (N,) the judge's probability of the meant label, in [0, 1].
        margin: (N,) confidence minus the largest probability of another label, in [-1, 1].
        nearest_id: id of the nearest training row in pixels.
        pixel_distance: (N,) root mean square difference to it, pixels in [0, 1].
        pixel_ratio: (N,) nearest over second-nearest pixel distance, in [0, 1].
        feature_nearest_id: id of the nearest training row in the judge's features.
        feature_distance: (N,) root mean square difference to it.
        parent_distance: (N,) root mean square difference, in pixels, to the training row that the
            image was made from; None where it was made from none. The nearest rows are then sought
            among the others.
    """

    predicted: npt.NDArray[np.int64]
    confidence: Floats
    margin: Floats
    nearest_id: tuple[str, ...]
    pixel_distance: Floats
    pixel_ratio: Floats
    feature_nearest_id: tuple[str, ...]
    feature_distance: Floats
    parent_distance: Floats | None = None

    def columns(self) -> dict[str, list[Any]]:
        """Return the scores as columns of a sample store."""
        parent = self.parent_distance
        return {
            **({} if parent is None else {"parent_distance": parent.tolist()}),
            "predicted": self.predicted.tolist(),
            "confidence": self.confidence.tolist(),
            "margin": self.margin.tolist(),
            "nearest_id": list(self.nearest_id),
            "pixel_distance": self.pixel_distance.tolist(),
            "pixel_ratio": self.pixel_ratio.tolist(),
            "feature_nearest_id": list(self.feature_nearest_id),
            "feature_distance": self.feature_distance.tolist(),
        }


class Scorer:
    """Scores images against the real training rows, whose features it extracts once."""

    def __init__(self, judge: SmallCNN, training: Samples) -> None:
        self._judge = judge
        self._ids = training.ids
        self._pixels = RealIndex(flat_pixels(training.images))
        self._features = RealIndex(embed(judge, training.images))

    def score(
        self,
        images: Images,
        labels: npt.NDArray[np.int64],
        parents: npt.NDArray[np.int64] | None = None,
    ) -> Scores:
        """Score images.

        Args:
            images: (N, H, W, C) uint8.
            labels: (N,) that they are meant to show.
            parents: (N,) training rows that they were made from, if any.
        """
        chances = softmax(predict(self._judge, images).astype(np.float64), axis=1)
        rows = np.arange(len(labels))
        confidence = chances[rows, labels]
        others = chances.copy()
        others[rows, labels] = -np.inf
        pixels = flat_pixels(images)
        pixel = self._pixels.nearest(pixels, parents)
        feature = self._features.nearest(embed(self._judge, images), parents)
        return Scores(
            predicted=chances.argmax(axis=1),
            confidence=confidence,
            margin=confidence - others.max(axis=1),
            nearest_id=tuple(self._ids[i] for i in pixel.index),
            pixel_distance=pixel.distance,
            pixel_ratio=pixel.ratio,
            feature_nearest_id=tuple(self._ids[i] for i in feature.index),
            feature_distance=feature.distance,
            parent_distance=None if parents is None else self._pixels.distance_to(pixels, parents),
        )
