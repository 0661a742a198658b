"""Pascal VOC: one XML of boxes an image; each box is an item.

Format: M. Everingham and J. Winn, "The PASCAL Visual Object Classes Challenge 2012: Development
Kit". Pixels are counted from 1, and a box holds its last row and column.
"""

from pathlib import Path
from typing import Any

from pipeline.data.decoding import UNREADABLE
from pipeline.errors import InputError
from pipeline.readers.boxes import NO_BOX, BoxRows
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import entries, files_ending, stays_inside
from pipeline.readers.naming import MALFORMED_ROW, path_fault
from pipeline.readers.rows import Rows
from pipeline.readers.source import Box, Source
from pipeline.readers.tables import one_line

ANNOTATIONS, IMAGES, SETS = "Annotations", "JPEGImages", "ImageSets/Main"

_MAX_XML_BYTES = 1 << 20
_MAX_LIST_BYTES = 64 << 20
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def recognise_voc(path: Path) -> str | None:
    """Return why `path` looks like Pascal VOC, or None."""
    folder = path / ANNOTATIONS
    if not folder.is_dir() or folder.is_symlink():
        return None
    first = next(files_ending(folder, (".xml",)), None)
    return f"Pascal VOC's {ANNOTATIONS}/" if first is not None else None


def read_voc(root: Path, limits: ReadLimits) -> Source:
    """Return the boxes of `Annotations/*.xml`, cut from `JPEGImages/`.

    `ImageSets/Main/train.txt`, `val.txt` and `test.txt` give the splits where they are there. An
    XML that is damaged, or declares entities, is set aside.

    Raises:
        InputError: the folders are missing, or nothing usable is left.
    """
    entries(root)
    if recognise_voc(root) is None:
        raise InputError(
            f"prepare.path = {root}: no Pascal VOC; it has {ANNOTATIONS}/*.xml and {IMAGES}/"
        )
    splits = _read_sets(root)
    grown = BoxRows(Rows(str(root), limits))
    for name in files_ending(root / ANNOTATIONS, (".xml",)):
        _read_xml(root, name, splits.get(name[: -len(".xml")]), grown)
    return grown.source(root, limits)


def _read_xml(root: Path, name: str, split: str | None, grown: BoxRows) -> None:
    from xml.etree.ElementTree import ParseError

    from defusedxml import ElementTree
    from defusedxml.common import DefusedXmlException

    rows = grown.rows
    path = root / ANNOTATIONS / name
    shown = f"{ANNOTATIONS}/{name}"
    try:
        size = path.stat().st_size
        if size > _MAX_XML_BYTES:
            raise ValueError(f"{size} bytes; at most {_MAX_XML_BYTES} are read")
        tree = ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        rows.count()
        rows.set_aside(shown, UNREADABLE, str(error.strerror))
        return
    except DefusedXmlException as error:
        rows.count()
        rows.set_aside(shown, MALFORMED_ROW, f"declares a DTD or entities ({type(error).__name__})")
        return
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        rows.count()
        rows.set_aside(shown, MALFORMED_ROW, f"no readable XML ({one_line(error)})")
        return
    file_name = _text(tree, "filename") or f"{path.stem}.jpg"
    # A name that leads out is handed on as it is, to be set aside.
    file = grown.file(file_name if path_fault(file_name) else f"{IMAGES}/{file_name}")
    if file is None:
        return
    objects = tree.findall("object")
    if not objects:
        rows.count()
        rows.set_aside(shown, NO_BOX, "it has no object")
    sides = (_number(tree, "size/width"), _number(tree, "size/height"))
    size_px = (sides[0], sides[1]) if sides[0] and sides[1] else None
    for number, one in enumerate(objects):
        box = _box(one)
        if box is None:
            rows.count()
            detail = "its bndbox has not four numbers"
            rows.set_aside(f"{shown}#{number}", MALFORMED_ROW, detail)
            continue
        grown.add(file, str(number), _text(one, "name"), box, size_px, split)


def _box(element: Any) -> Box | None:
    edges = [_number(element, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = edges
    if left is None or top is None or right is None or bottom is None:
        return None
    return (left - 1, top - 1, right - left + 1, bottom - top + 1)


def _text(element: Any, path: str) -> str | None:
    found = element.find(path)
    return None if found is None or found.text is None else str(found.text).strip()


def _number(element: Any, path: str) -> float | None:
    try:
        return float(_text(element, path) or "")
    except ValueError:
        return None


def _read_sets(root: Path) -> dict[str, str]:
    """Return stem -> split, of the lists that are there."""
    splits: dict[str, str] = {}
    for name, split in _SPLITS.items():
        path = root / SETS / f"{name}.txt"
        if not path.is_file():
            continue
        if not stays_inside(root, f"{SETS}/{name}.txt") or path.stat().st_size > _MAX_LIST_BYTES:
            raise InputError(
                f"{path}: leads out of the folder, or is too large; put the file there"
            )
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not readable as UTF-8 ({one_line(error)})") from None
        for line in lines:
            stem = line.split()[0] if line.strip() else ""
            if stem and splits.setdefault(stem, split) != split:
                raise InputError(f"{path}: {stem[:80]!a} stands in two lists; keep it in one")
    return splits
