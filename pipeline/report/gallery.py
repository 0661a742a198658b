"""Which images the page shows, and how they travel in it: PNG files as `data:` addresses.

Nothing is drawn at random: rows are taken in store order, or by score. A byte budget keeps the page
small whatever the size and number of images; what is left out is counted.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.data.images import ImageMode, decode_png, encode_png
from pipeline.data.store import iterate_tables, read_info
from pipeline.report.verdict import Verdict

SHEET_CLASSES = 30  # contact sheets at most; nobody looks through more
SHEET_BYTES = 2_200_000  # of all contact sheets, as base64
EXAMPLE_BYTES = 1_200_000  # of all examples, likewise
_SMALL_PX = 64  # larger images are halved until they are no larger
_CELL_PX = 56  # side at which images are shown, or somewhat less
_SCORES = (
    "confidence",
    "pixel_distance",
    "pixel_ratio",
    "support_distance",
    "predicted",
    "index",
    "nearest_id",
    "reason",
)
_T = TypeVar("_T")


@dataclass(frozen=True)
class ClassSheet:
    """Images of one class, as `data:` addresses."""

    name: str
    real_images: int
    synthetic_images: int
    real: tuple[str, ...]
    synthetic: tuple[str, ...]


@dataclass(frozen=True)
class Sheets:
    """The contact sheets, the thinnest class first, and how many classes found no room."""

    classes: tuple[ClassSheet, ...]
    left_out: int


@dataclass(frozen=True)
class Example:
    """A synthetic image beside the training image that is nearest to it in pixels.

    Attributes:
        picture: `data:` address of the synthetic image.
        nearest: that of the training image; empty where it is not in the dataset.
        label: index of the class that it was made for.
        name: of that class.
        seen_as: class that the judge sees.
        reason: `accepted`, or the rule that it failed.
        index: of the candidate within its class.
        confidence: the judge's probability of the meant class.
        pixel_distance: root mean square difference to the training image, pixels in [0, 1].
        pixel_ratio: nearest over second-nearest pixel distance.
        support_distance: distance to the class's training images in features, about 1 for a real
            image.
    """

    picture: str
    nearest: str
    label: int
    name: str
    seen_as: str
    reason: str
    index: int
    confidence: float
    pixel_distance: float
    pixel_ratio: float
    support_distance: float

    @property
    def accepted(self) -> bool:
        """Was it kept?"""
        return self.reason == "accepted"


@dataclass(frozen=True)
class Filters:
    """What the examples can be narrowed down to: only what is there, each with its number.

    Attributes:
        classes: (label, class name, examples), in the order of the labels.
        reasons: (reason, examples), those of rejections only.
    """

    classes: tuple[tuple[int, str, int], ...]
    reasons: tuple[tuple[str, int], ...]


def find_filters(examples: Sequence[Example]) -> Filters:
    """Return the choices that the examples leave."""
    labels = Counter((one.label, one.name) for one in examples)
    reasons = Counter(one.reason for one in examples if not one.accepted)
    return Filters(
        tuple((label, name, count) for (label, name), count in sorted(labels.items())),
        tuple(sorted(reasons.items())),
    )


def shown_px(side_px: int) -> tuple[int, bool]:
    """Return the side in CSS px at which images are shown, and whether pixels stay sharp.

    Whole multiples keep the pixels of small images square; other sizes are left to the browser.
    """
    times = _CELL_PX // side_px
    return (side_px * times, True) if times > 1 else (_CELL_PX, False)


def contact_sheets(
    dataset: Path, accepted: Path, verdict: Verdict, images_per_class: int
) -> Sheets:
    """Return the first training and accepted images of each class.

    Args:
        dataset: prepare's sample store.
        accepted: synthesize's store of accepted images.
        verdict: knows how many training images each class has.
        images_per_class: most images of each kind.
    """
    real = first_images(dataset, images_per_class)
    synthetic = first_images(accepted, images_per_class)
    totals = read_info(accepted).counts.get("train", {})
    order = sorted(
        range(len(verdict.per_class)), key=lambda k: verdict.per_class[k].training_images
    )
    sheets: list[ClassSheet] = []
    left = SHEET_BYTES
    for label in order[:SHEET_CLASSES]:
        one = verdict.per_class[label]
        sheet = ClassSheet(
            name=one.name,
            real_images=one.training_images,
            synthetic_images=totals.get(one.name, 0),
            real=tuple(real.get(label, ())),
            synthetic=tuple(synthetic.get(label, ())),
        )
        left -= sum(map(len, sheet.real + sheet.synthetic))
        if left < 0:
            break
        sheets.append(sheet)
    return Sheets(tuple(sheets), len(order) - len(sheets))


def first_images(store: Path, limit: int) -> dict[int, list[str]]:
    """Return label -> `data:` addresses of its first `limit` train rows, in store order."""
    mode = read_info(store).image_mode
    found: dict[int, list[str]] = {}
    for table in iterate_tables(store, ("train",), ("label", "image")):
        images = table.column("image")
        for row, label in enumerate(table.column("label").to_pylist()):
            addresses = found.setdefault(label, [])
            if len(addresses) < limit:
                addresses.append(data_address(images[row].as_py()["bytes"], mode))
    return found


def find_examples(store: Path, dataset: Path, limit: int) -> list[Example]:
    """Return at most `limit` images of the store, reasons and classes taking turns.

    Within a reason and class those come first that are nearest to a training image, by the
    ratio of the two nearest distances: copies would stand at the top.
    """
    if not limit or not (store / "dataset.json").is_file():
        return []
    info = read_info(store)
    rows = [row for row in _score_rows(store) if row["reason"] != "surplus"]
    rows.sort(key=lambda row: (row["pixel_ratio"], row["index"], row["id"]))
    groups: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        groups.setdefault(row["reason"], {}).setdefault(row["label"], []).append(row)
    by_reason = [
        list(take_turns([groups[reason][label] for label in sorted(groups[reason])]))
        for reason in sorted(groups)
    ]
    chosen = list(take_turns(by_reason))[:limit]
    pictures = images_by_id(store, {row["id"] for row in chosen})
    nearest = images_by_id(dataset, {row["nearest_id"] for row in chosen})
    examples: list[Example] = []
    left = EXAMPLE_BYTES // 2  # accepted and rejected share the budget
    for row in chosen:
        example = Example(
            picture=pictures[row["id"]],
            nearest=nearest.get(row["nearest_id"], ""),
            label=row["label"],
            name=info.classes[row["label"]],
            seen_as=info.classes[row["predicted"]],
            **{
                key: row[key]
                for key in (
                    "reason",
                    "index",
                    "confidence",
                    "pixel_distance",
                    "pixel_ratio",
                    "support_distance",
                )
            },
        )
        left -= len(example.picture) + len(example.nearest)
        if left < 0:
            break
        examples.append(example)
    # Shown reason by reason: the eye compares like with like.
    return sorted(examples, key=lambda one: one.reason)


def images_by_id(store: Path, ids: Iterable[str]) -> dict[str, str]:
    """Return id -> `data:` address for the train rows that have one of the ids."""
    wanted = set(ids)
    mode = read_info(store).image_mode
    found: dict[str, str] = {}
    for table in iterate_tables(store, ("train",), ("id", "image")):
        images = table.column("image")
        for row, identity in enumerate(table.column("id").to_pylist()):
            if identity in wanted and identity not in found:
                found[identity] = data_address(images[row].as_py()["bytes"], mode)
    return found


def data_address(png: bytes, mode: ImageMode) -> str:
    """Return a PNG as `data:` address; a large image is halved until its side is 64 px at most."""
    # Width and height stand at a fixed place in a PNG.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    if max(width, height) > _SMALL_PX:
        pixels = decode_png(png, mode).astype(np.float64)
        while max(pixels.shape[:2]) > _SMALL_PX:
            even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
            h, w, channels = even.shape
            pixels = even.reshape(h // 2, 2, w // 2, 2, channels).mean(axis=(1, 3))
        png = encode_png(pixels.round().astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def take_turns(groups: Sequence[Sequence[_T]]) -> Iterator[_T]:
    """Yield the first of each group, then the second of each, and so on."""
    missing = object()
    for turn in zip_longest(*groups, fillvalue=missing):
        for one in turn:
            if one is not missing:
                yield one  # type: ignore[misc]


def _score_rows(store: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for table in iterate_tables(store, ("train",), ("id", "label", *_SCORES)):
        rows += table.to_pylist()
    return rows


def count_reasons(accounts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return reason -> number over several accounts, the most frequent first."""
    total: dict[str, int] = {}
    for account in accounts:
        for reason, count in account.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
