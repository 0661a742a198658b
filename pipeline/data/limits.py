"""How many images beside the training rows are looked at: as many as memory holds with ease."""

from pipeline.data.images import CHANNELS, ImageMode

MOST_ROWS = 100_000
MOST_BYTES = 256 << 20  # of their pixels


def most_beside(image_size_px: int, image_mode: ImageMode) -> int:
    """Return how many images of a pool, or of a base, the baselines look at, at most.

    Args:
        image_size_px: side of the square images.
        image_mode: of them.
    """
    return min(MOST_ROWS, MOST_BYTES // (image_size_px**2 * CHANNELS[image_mode]))
