"""What is known of each candidate image, as columns."""

from collections.abc import Mapping
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
            repeat_closeness: as near_closeness, of an earlier candidate of the class; 1 where the
                rule `repeats` is off.
            parent_distance: root mean square difference, in pixels, to the training row that the
                image was made from; the nearest rows are then sought among the others. The column
                is missing where images were made from none.
    """

    values: dict[str, Column]

    @classmethod
    def of(cls, values: Mapping[str, Column]) -> "Scores":
        """Return scores to be kept of every candidate, in some 80 bytes each.

        Numbers are brought to four bytes: float32 tells the six decimals apart that scores have.
        """
        return cls({name: _small(column) for name, column in values.items()})

    def __len__(self) -> int:
        """Return the number of images."""
        return len(next(iter(self.values.values()), ()))

    def __getitem__(self, name: str) -> Column:
        """Return one column."""
        return self.values[name]

    def columns(self) -> dict[str, list[Any]]:
        """Return the scores as columns of a sample store, plain values of six decimals."""
        return {name: _plain(np.asarray(column)) for name, column in self.values.items()}


def _small(column: Column) -> Column:
    kinds = {"f": np.float32, "i": np.int32}
    kind = kinds.get(column.dtype.kind)
    return column if kind is None else column.astype(kind)


def _plain(column: Column) -> list[Any]:
    if column.dtype.kind == "f":
        column = column.astype(np.float64).round(6)
    plain: list[Any] = column.tolist()
    return plain
