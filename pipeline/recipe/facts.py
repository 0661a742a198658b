"""What a recipe knows of a set: how many images, how uneven, how large."""

from dataclasses import dataclass
from statistics import median

from pipeline.data.images import ImageMode
from pipeline.data.store import StoreInfo


@dataclass(frozen=True)
class SetFacts:
    """A prepared set in a few numbers.

    Attributes:
        labelled: training images.
        classes: number of classes.
        smallest: training images of the smallest class.
        median: training images of the class in the middle.
        largest: training images of the largest class.
        pool: unlabelled images, none of them a training image.
        image_size_px: side of the square images.
        image_mode: L (grey) or RGB.
    """

    labelled: int
    classes: int
    smallest: int
    median: float
    largest: int
    pool: int
    image_size_px: int
    image_mode: ImageMode

    def __str__(self) -> str:
        """Return the facts in words."""
        unlabelled = f"{self.pool:,} unlabelled ones" if self.pool else "no unlabelled ones"
        return (
            f"{self.labelled:,} training images in {self.classes:,} classes "
            f"({self.smallest:,} to {self.largest:,}), {unlabelled}, {self.image_size_px} px"
        )


def set_facts(info: StoreInfo) -> SetFacts:
    """Return the facts of a prepared sample store."""
    training = info.counts.get("train", {})
    sizes = [training.get(name, 0) for name in info.classes]
    return SetFacts(
        labelled=sum(sizes),
        classes=len(sizes),
        smallest=min(sizes),
        median=float(median(sizes)),
        largest=max(sizes),
        pool=sum(info.counts.get("pool", {}).values()),
        image_size_px=info.image_size_px,
        image_mode=info.image_mode,
    )
