"""What `replenish check` finds out about a path, and the params file that it starts with."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.decoding import (
    FORMATS,
    UNREADABLE,
    Header,
    Rejected,
    inspect_image,
    quiet_pillow,
)
from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import printable
from pipeline.readers.read import read_format
from pipeline.readers.recognise import Recognised, recognise
from pipeline.readers.source import Crop, Payload, Quarantined, Source

LOOKED_AT = 2_000
FREE = "to be drawn"  # shown as the split of rows that the source gives none
SPLITS = ("train", "validation", "test", FREE)

_FEWEST = 3  # one image for each of train, validation and test
_EXAMPLES = 3
_ARRAY_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Look:
    """What the headers of some images say.

    Attributes:
        images: number that were looked at.
        widths: smallest and largest, in px; None where no image could be read.
        heights: the same of heights.
        modes: Pillow's mode -> images.
        bytes: of all images of the source, estimated from those looked at.
        rejected: reason -> images whose header cannot be used.
        examples: some of them.
    """

    images: int
    widths: tuple[int, int] | None
    heights: tuple[int, int] | None
    modes: Mapping[str, int]
    bytes: int
    rejected: Mapping[str, int]
    examples: tuple[Quarantined, ...]


@dataclass(frozen=True)
class Understood:
    """What was understood of a path.

    Attributes:
        recognised: its format.
        source: its items.
        counts: class -> split -> items; splits as in `SPLITS`.
        look: at the images.
        concerns: what is wrong and does not stop, as sentences.
    """

    recognised: Recognised
    source: Source
    counts: Mapping[str, Mapping[str, int]]
    look: Look
    concerns: tuple[str, ...]


def understand(
    path: str, limits: ReadLimits, columns: Columns, looked_at: int = LOOKED_AT
) -> Understood:
    """Return what a path holds; images are opened, and not decoded.

    Raises:
        InputError: it cannot be used.
    """
    recognised = recognise(path, columns)
    source = read_format(recognised, limits, columns)
    look = look_at(source, limits, looked_at)
    if look.widths is None:
        first = look.examples[0]
        raise InputError(
            f"{printable(path)}: none of {look.images} images can be read ({first.file}: "
            f"{first.reason}, {first.detail})"
        )
    counts = count_by_split(source)
    return Understood(recognised, source, counts, look, tuple(_concerns(source, counts, look)))


def look_at(source: Source, limits: ReadLimits, count: int) -> Look:
    """Return what the headers of up to `count` images say, evenly spread over the source."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()
    widths: list[int] = []
    heights: list[int] = []
    modes: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    examples: list[Quarantined] = []
    total = 0
    with quiet_pillow():
        for row in rows:
            found = _header(source.contents.fetch(row), limits)
            if isinstance(found, Rejected):
                rejected[found.reason] += 1
                if rejected[found.reason] <= _EXAMPLES:
                    examples.append(Quarantined(source.names[row], found.reason, found.detail))
                continue
            width, height, mode, size = found
            widths.append(width)
            heights.append(height)
            modes[mode] += 1
            total += size
    return Look(
        images=len(rows),
        widths=(min(widths), max(widths)) if widths else None,
        heights=(min(heights), max(heights)) if heights else None,
        modes=dict(modes.most_common()),
        bytes=round(total * len(source) / len(rows)),
        rejected=dict(rejected.most_common()),
        examples=tuple(examples),
    )


def count_by_split(source: Source) -> dict[str, dict[str, int]]:
    """Return class -> split -> items, with all of `SPLITS`, in class order."""
    places = {split: i for i, split in enumerate(SPLITS)}
    given = np.asarray([places[split or FREE] for split in source.given], dtype=np.int64)
    cells = np.bincount(
        source.labels * len(SPLITS) + given, minlength=len(source.classes) * len(SPLITS)
    ).reshape(len(source.classes), len(SPLITS))
    return {
        name: dict(zip(SPLITS, row, strict=True))
        for name, row in zip(source.classes, cells.tolist(), strict=True)
    }


def examples_of(aside: Sequence[Quarantined]) -> list[tuple[str, int, list[Quarantined]]]:
    """Return (reason, count, first examples), the most frequent reason first."""
    counts = Counter(item.reason for item in aside)
    first: dict[str, list[Quarantined]] = {reason: [] for reason in counts}
    for item in aside:
        if len(first[item.reason]) < _EXAMPLES:
            first[item.reason].append(item)
    return [(reason, count, first[reason]) for reason, count in counts.most_common()]


def starting_params(found: Understood, columns: Columns) -> str:
    """Return the text of a params file with the keys that this source needs, and no others."""
    lines = [
        "# Written by `replenish check`; all other keys keep their defaults (see params.yaml).",
        "prepare:",
        f"  source: {found.recognised.format}  # {found.recognised.why}",
        # JSON's quoted text is YAML's, and holds no character that could end the line.
        f"  path: {json.dumps(found.recognised.path)}",
    ]
    changed = {
        field: name
        for field, name in columns.model_dump().items()
        if name != Columns.model_fields[field].default
    }
    if changed:
        lines.append("  columns:")
        lines += [f"    {field}: {json.dumps(name)}" for field, name in changed.items()]
    return "\n".join(lines) + "\n"


def write_starting_params(path: Path, text: str) -> None:
    """Write a new params file.

    Raises:
        InputError: it exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: exists already; name a new file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _header(
    payload: Payload | Rejected, limits: ReadLimits
) -> tuple[int, int, str, int] | Rejected:
    """Return width, height, mode and bytes."""
    if isinstance(payload, Crop):
        found = _header(payload.of, limits)
        if isinstance(found, Rejected):
            return found
        _, _, mode, size = found
        return max(1, round(payload.box[2])), max(1, round(payload.box[3])), mode, size
    if isinstance(payload, Rejected):
        return payload
    if isinstance(payload, np.ndarray):
        height, width, channels = payload.shape
        return width, height, _ARRAY_MODES[channels], payload.nbytes
    header = inspect_image(payload, limits.image)
    if isinstance(header, Rejected):
        return header
    return _with_mode(payload, header)


def _with_mode(payload: Path | bytes, header: Header) -> tuple[int, int, str, int] | Rejected:
    try:
        size = len(payload) if isinstance(payload, bytes) else payload.stat().st_size
        stream = io.BytesIO(payload) if isinstance(payload, bytes) else payload
        with Image.open(stream, formats=FORMATS) as image:
            return header.width, header.height, image.mode, size
    except OSError as error:
        return Rejected(UNREADABLE, error.strerror or "it changed while it was read")


def _concerns(source: Source, counts: Mapping[str, Mapping[str, int]], look: Look) -> list[str]:
    few = [name for name, row in counts.items() if sum(row.values()) < _FEWEST]
    concerns = []
    if few:
        shown = ", ".join(printable(name) for name in few[:_EXAMPLES])
        more = f" and {len(few) - _EXAMPLES} more" if len(few) > _EXAMPLES else ""
        concerns.append(
            f"fewer than {_FEWEST} images, too few to be split: {shown}{more}; add images, or "
            "leave these classes out"
        )
    for split in ("validation", "test"):
        lacking = [name for name, row in counts.items() if not row[split]]
        if lacking and len(lacking) < len(counts):
            shown = ", ".join(printable(name) for name in lacking[:_EXAMPLES])
            concerns.append(f"no {split} image given in {len(lacking)} classes, such as {shown}")
    if look.rejected:
        share = sum(look.rejected.values())
        concerns.append(f"{share} of {look.images} images looked at cannot be read; see below")
    if source.quarantine:
        concerns.append(f"{len(source.quarantine)} items are set aside; see below")
    return concerns
