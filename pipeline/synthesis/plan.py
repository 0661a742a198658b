"""The balance plan: how many accepted synthetic images each class is to get."""

from collections.abc import Mapping
from typing import Literal

_AUTO_LIMITS = 100, 300


def wanted_images(
    counts: Mapping[str, int], images_per_class: int | Literal["auto", "fill"]
) -> dict[str, int]:
    """Return class -> wanted synthetic images.

    Args:
        counts: class -> real training rows.
        images_per_class: a number for every class; `fill` for what each class lacks to the
            largest one; `auto` for twice the largest class, 100 to 300, for every class.
    """
    largest = max(counts.values())
    if images_per_class == "fill":
        return {name: largest - count for name, count in counts.items()}
    least, most = _AUTO_LIMITS
    each = min(max(2 * largest, least), most) if images_per_class == "auto" else images_per_class
    return dict.fromkeys(counts, each)
