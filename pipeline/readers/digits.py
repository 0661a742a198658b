"""The embedded images: scikit-learn's handwritten digits."""

import numpy as np

from pipeline.readers.source import Pixels, Source

DIGITS_SCALED = "values 0 to 16 scaled to 0 to 255"


def read_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits: real, grey, 8 x 8 px, 10 classes.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998. The
    values 0 to 16 become round(255 v / 16).
    """
    # Imported here: scikit-learn takes a second to load, and only this source needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    values = bunch.images.astype(np.int64)
    pixels = ((values * 255 + 8) // 16).astype(np.uint8)[:, :, :, None]
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        names=tuple(f"digits/{i:05d}" for i in range(len(pixels))),
        labels=bunch.target.astype(np.int64),
        given=(None,) * len(pixels),
        contents=Pixels(pixels),
        conversions={DIGITS_SCALED: len(pixels)},
    )
