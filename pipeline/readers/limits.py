"""What is too much for a reader, in one place."""

from dataclasses import dataclass

from pipeline.data.decoding import Limits


@dataclass(frozen=True)
class ReadLimits:
    """Bounds that a source must keep; the first four are params of `prepare`.

    Attributes:
        max_rows: items of a source, set aside or not.
        max_classes: distinct labels of a source.
        max_image_pixels: width x height; larger images are set aside undecoded.
        max_file_bytes: larger image files are set aside unread.
        max_metadata_bytes: larger tables, JSON and label files are refused.
        max_array_bytes: larger arrays (npz, IDX), which have to lie in memory, are refused.
    """

    max_rows: int = 5_000_000
    max_classes: int = 1_000
    max_image_pixels: int = 50_000_000
    max_file_bytes: int = 64 << 20
    max_metadata_bytes: int = 1 << 30
    max_array_bytes: int = 1 << 31

    @property
    def image(self) -> Limits:
        """What the decoder needs of it."""
        return Limits(file_bytes=self.max_file_bytes, image_pixels=self.max_image_pixels)
