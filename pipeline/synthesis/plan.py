"""The balance plan: how many accepted synthetic images each class is to get."""

from collections.abc import Mapping
from typing import Literal


def wanted_images(
    counts: Mapping[str, int], images_per_class: int | Literal["fill"]
) -> dict[str, int]:
    """Return class -> wanted synthetic images.

    Args:
        counts: class -> real training rows.
        images_per_class: a number for every class, or `fill` for what each class lacks to the
            largest one.
    """
    if images_per_class == "fill":
        largest = max(counts.values())
        return {name: largest - count for name, count in counts.items()}
    return dict.fromkeys(counts, images_per_class)
