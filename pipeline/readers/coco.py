"""COCO: a JSON of images, categories and annotations; each box is an item.

Format: https://cocodataset.org/#format-data. The JSON is taken apart list by list, so that the
polygons, nearly all of it, are forgotten as they are read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pipeline.errors import InputError
from pipeline.readers.boxes import CROWD, NO_BOX, BoxRows
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import files_ending
from pipeline.readers.naming import (
    MALFORMED_ROW,
    UNKNOWN_LABEL,
    path_fault,
    printable,
    split_of,
)
from pipeline.readers.rows import Rows
from pipeline.readers.source import Box, Source
from pipeline.readers.tables import one_line

_LISTS = ("images", "categories", "annotations")
_FOLDERS = ("annotations", "")
_HEAD_BYTES = 1 << 16
_MAX_SIDE = 1 << 31
_SPACE = re.compile(r"[\s,]*")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class _Image:
    file: int
    path: str
    size: tuple[float, float] | None
    split: str | None
    origin: str | None


def recognise_coco(path: Path) -> str | None:
    """Return why `path` looks like COCO, or None."""
    found = _annotation_files(path)
    return f"COCO annotations in {printable(found[0].name)}" if found else None


def read_coco(path: Path, limits: ReadLimits) -> Source:
    """Return the boxes of COCO annotations, cut to items; an annotation without a box is its image.

    Images are looked for below the folder of the JSON, beside it and in `images/`, there also in
    a folder named as the JSON (instances_train2017.json: train2017/). The name of the JSON tells
    the split. Boxes around crowds, without area, or more than a pixel outside are set aside.

    Args:
        path: a .json file, or a folder with some, or with `annotations/`.
        limits: bounds.

    Raises:
        InputError: no such file, damaged JSON, a list is missing, or nothing usable is left.
    """
    files = _annotation_files(path)
    if not files:
        raise InputError(
            f"prepare.path = {path}: no COCO annotations; give a .json with images, categories "
            "and annotations, or a folder with annotations/*.json"
        )
    root = path if path.is_dir() else _root(path)
    grown = BoxRows(Rows(str(path), limits))
    for file in files:
        _read_file(file, root, grown, limits)
    return grown.source(root, limits)


def _read_file(path: Path, root: Path, grown: BoxRows, limits: ReadLimits) -> None:
    text = _load_text(path, limits)
    where = _list_starts(text, path)
    categories: dict[int | str, str] = {}
    for one in _items(text, where["categories"], path):
        if isinstance(one, dict) and _is_id(one.get("id")) and isinstance(one.get("name"), str):
            categories[one["id"]] = one["name"]
    word = next((w for w in _WORD.findall(path.stem.lower()) if split_of(w)), None)
    images: dict[int | str, _Image] = {}
    below: str | None = None
    for number, one in enumerate(_items(text, where["images"], path)):
        name = one.get("file_name") if isinstance(one, dict) else None
        if not isinstance(name, str) or not _is_id(one.get("id")) or one["id"] in images:
            grown.rows.count()
            detail = "an image without id and file_name, or an id for the second time"
            grown.rows.set_aside(f"images[{number}] of {path.name}", MALFORMED_ROW, detail)
            continue
        if below is None:
            below = _image_folder(root, path, name, word)
        file_path = f"{below}/{name}" if below and path_fault(name) is None else name
        file = grown.file(file_path)
        if file is not None:
            ours = one.get("replenish")
            origin = ours.get("origin") if isinstance(ours, dict) else None
            images[one["id"]] = _Image(file, file_path, _size(one), word, origin)
    boxed: set[int | str] = set()
    for number, one in enumerate(_items(text, where["annotations"], path)):
        image_id = one.get("image_id") if isinstance(one, dict) else None
        image = images.get(image_id) if _is_id(image_id) else None
        name = f"annotations[{number}] of {path.name}"
        if image is None or not _is_id(image_id):
            grown.rows.count()
            grown.rows.set_aside(name, MALFORMED_ROW, "no image of its image_id")
            continue
        boxed.add(image_id)
        _add(grown, image, one, number, categories)
    for identifier, image in images.items():
        if identifier not in boxed:
            grown.rows.count()
            grown.rows.set_aside(image.path, NO_BOX, "no annotation names it")


def _add(
    grown: BoxRows,
    image: _Image,
    one: dict[str, Any],
    number: int,
    categories: dict[int | str, str],
) -> None:
    mark = str(one["id"])[:40] if _is_id(one.get("id")) else f"[{number}]"
    name = f"{image.path}#{mark}"
    box = one.get("bbox")
    shape: Box | None = None
    if box is not None:
        try:
            left, top, width, height = (float(value) for value in box)
            shape = (left, top, width, height)
        except (TypeError, ValueError, OverflowError):
            grown.rows.count()
            grown.rows.set_aside(name, MALFORMED_ROW, "its bbox is no list of four numbers")
            return
    if one.get("iscrowd") not in (None, 0, False):
        grown.rows.count()
        grown.rows.set_aside(name, CROWD, "iscrowd; the box holds many things")
        return
    category = one.get("category_id")
    label = categories.get(category) if _is_id(category) else None
    if label is None:
        grown.rows.count()
        detail = f"no category of the id {printable(repr(category)[:40])}"
        grown.rows.set_aside(name, UNKNOWN_LABEL, detail)
        return
    place = "" if shape is None else mark
    grown.add(image.file, place, label, shape, image.size, image.split, image.origin)


def _annotation_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _looks_right(path) else []
    for folder in _FOLDERS:
        if (path / folder).is_dir() and not (path / folder).is_symlink():
            found = [path / folder / name for name in files_ending(path / folder, (".json",))]
            found = [one for one in found if _looks_right(one)]
            if found:
                return found
    return []


def _looks_right(path: Path) -> bool:
    """Say whether a JSON names images and annotations near its beginning or its end."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, path.stat().st_size - _HEAD_BYTES))
            ends = head + file.read(_HEAD_BYTES)
    except OSError:
        return False
    found = [f'"{name}"'.encode() in ends for name in _LISTS]
    # The middle list of a long file may begin in neither part.
    return head.lstrip()[:1] == b"{" and sum(found) >= 2


def _root(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "annotations" else path.parent


def _image_folder(root: Path, path: Path, name: str, split: str | None) -> str:
    stem = path.stem.rpartition("_")[2]
    names = (stem, f"images/{stem}", split or "", f"images/{split or ''}", "images", "")
    for below in names:
        if path_fault(name) is None and (root / below / name).is_file():
            return below.rstrip("/")
    return ""


def _load_text(path: Path, limits: ReadLimits) -> str:
    try:
        size = path.stat().st_size
        if size > limits.max_metadata_bytes:
            raise InputError(
                f"{path}: {size} bytes; JSON of at most {limits.max_metadata_bytes} is read: cut "
                "it into several files"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({one_line(error)})") from None


def _list_starts(text: str, path: Path) -> dict[str, int]:
    """Return list name -> position after its bracket, walking the outermost object once."""
    starts: dict[str, int] = {}
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise _damaged(path, at)
    at += 1
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "}":
            break
        key, at = _decode(text, at, path)
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise _damaged(path, at)
        at = _skip(text, at + 1)
        if key in _LISTS and text[at : at + 1] == "[":
            if key in starts:
                raise InputError(f"{path}: two lists named {key!r}; keep one")
            starts[key] = at + 1
            at = _end(text, at + 1, path)
        else:
            _, at = _decode(text, at, path)
    missing = [name for name in _LISTS if name not in starts]
    if missing:
        raise InputError(f"{path}: has no list {missing[0]!r}; COCO has {', '.join(_LISTS)}")
    return starts


def _items(text: str, start: int, path: Path) -> Iterator[Any]:
    for item, _ in _walk(text, start, path):
        if item is not _END:
            yield item


def _walk(text: str, start: int, path: Path) -> Iterator[tuple[Any, int]]:
    """Yield each item of a JSON list and the position after it; last `_END`, after the bracket."""
    at = _skip(text, start)
    while text[at : at + 1] != "]":
        item, at = _decode(text, at, path)
        yield item, at
        at = _skip(text, at)
    yield _END, at + 1


def _end(text: str, start: int, path: Path) -> int:
    for _, after in _walk(text, start, path):
        at = after
    return at


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _decode(text: str, at: int, path: Path) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        raise _damaged(path, at) from None


def _damaged(path: Path, at: int) -> InputError:
    return InputError(f"{path}: damaged JSON at character {at}; write the file again")


def _size(image: dict[str, Any]) -> tuple[float, float] | None:
    width, height = image.get("width"), image.get("height")
    if isinstance(width, int | float) and isinstance(height, int | float):
        return (width, height) if 0 < width < _MAX_SIDE and 0 < height < _MAX_SIDE else None
    return None


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, int | str)


_END = object()
_DECODER = json.JSONDecoder()
