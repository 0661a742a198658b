"""What is known of each candidate image, as columns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """Scores of N images that are meant to show given labels.

    Attributes:
        values: (N,) columns by name:
            predicted: label that the judges see.
            confidence: their mean probability of the meant label, in [0, 1].
            margin: confidence minus the largest probability of another label, in [-1, 1].
            disagreement: of the judges among each other, over how unsure they are in all, [0, 1].
            nearest_id: nearest training row in pixels.
            pixel_distance: root mean square difference to it, pixels in [0, 1].
            pixel_ratio: nearest over second-nearest pixel distance, in [0, 1].
            near_id: nearest training row once it is moved, mirrored and relit.
            near_residual: what is left then, in [0, 1]; 0 is the same picture.
            near_closeness: near_residual squared over that at the second nearest, in [0, 1].
            spread, dark, bright, rough: see `artefacts.Texture`.
            support_distance: to the class's real rows in features, about 1 for a real row.
            class_ratio: that over the distance to another class.
            repeat_closeness: as near_closeness, of an earlier candidate of the class.
            parent_distance: root mean square difference, in pixels, to the training row that the
                image was made from; the nearest rows are then sought among the others. The column
                is missing where images were made from none.
    """

    values: dict[str, Column]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(next(iter(self.values.values()), ()))

    def __getitem__(self, name: str) -> Column:
        """Return one column."""
        return self.values[name]

    def columns(self) -> dict[str, list[Any]]:
        """Return the scores as columns of a sample store, plain values."""
        return {name: np.asarray(values).tolist() for name, values in self.values.items()}
