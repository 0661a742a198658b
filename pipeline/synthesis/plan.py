"""The balance plan: how many accepted synthetic images each class is to get."""

from collections.abc import Mapping
from typing import Literal

_AUTO_TOTAL = 3000  # images of all classes together, while no class gets more than
_AUTO_LIMIT = 300


def wanted_images(
    counts: Mapping[str, int], images_per_class: int | Literal["auto", "fill"]
) -> dict[str, int]:
    """Return class -> wanted synthetic images.

    Args:
        counts: class -> real training rows.
        images_per_class: a number for every class; `fill` for what each class lacks to the
            largest one; `auto` for the same in every class: 300 up to ten classes; beyond,
            3,000 in all, or twice the largest class where that is more, but 300 at most.
    """
    largest = max(counts.values())
    if images_per_class == "fill":
        return {name: largest - count for name, count in counts.items()}
    auto = min(max(2 * largest, _AUTO_TOTAL // len(counts)), _AUTO_LIMIT)
    return dict.fromkeys(counts, auto if images_per_class == "auto" else images_per_class)
