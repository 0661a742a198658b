"""Which format a path is, told by names and a few bytes; no image is opened, no network asked."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.params import Columns
from pipeline.readers.coco import recognise_coco
from pipeline.readers.folder import recognise_folder
from pipeline.readers.huggingface import HUB, recognise_huggingface
from pipeline.readers.idx import recognise_idx
from pipeline.readers.manifest import recognise_manifest
from pipeline.readers.naming import printable
from pipeline.readers.npz import recognise_npz
from pipeline.readers.voc import recognise_voc
from pipeline.readers.webdataset import recognise_webdataset

Format = Literal["folder", "manifest", "idx", "npz", "huggingface", "webdataset", "coco", "voc"]

_SHOWN = 8


@dataclass(frozen=True)
class Recognised:
    """What a path was taken for.

    Attributes:
        format: value of `prepare.source`.
        why: what told it, printable.
        path: what to read: the path itself, or the one file in it that counts.
    """

    format: Format
    why: str
    path: str


def recognise(path: str, columns: Columns | None = None) -> Recognised:
    """Return the format of a path; where several fit, the one that says more of itself.

    Raises:
        InputError: there is nothing, or nothing known.
    """
    if path.startswith(HUB):
        return Recognised("huggingface", "an id on the hub", path)
    here = Path(path)
    _check_exists(here)
    # From the formats with an unmistakable file to the one that any folders are.
    tests: tuple[tuple[Format, Callable[[Path], str | None]], ...] = (
        ("npz", recognise_npz),
        ("idx", recognise_idx),
        ("huggingface", recognise_huggingface),
        ("voc", recognise_voc),
        ("coco", recognise_coco),
        ("webdataset", recognise_webdataset),
        ("manifest", lambda one: recognise_manifest(one, columns)),
        ("folder", recognise_folder),
    )
    for name, test in tests:
        why = test(here)
        if why is not None:
            return Recognised(name, why, path)
    inner = _only_npz(here)
    if inner is not None:
        return Recognised("npz", f"the file {printable(inner)}", str(here / inner))
    raise InputError(
        f"prepare.path = {printable(path)}: no format that is known{_holds(here)}; give folders of "
        "classes, a CSV, TSV or Parquet table, IDX files, an .npz, a Hugging Face dataset, .tar "
        "shards, COCO or Pascal VOC annotations (docs/formats.md)"
    )


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            hint = f"; for a dataset on the hub write {HUB}{path}"
        raise InputError(
            f"prepare.path = {printable(str(path))}: {why}; put the images there, name another "
            f"folder or file, or set prepare.source to digits{hint}"
        ) from None


def _only_npz(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    with os.scandir(folder) as listing:
        found = [
            entry.name
            for entry in listing
            if entry.name.lower().endswith(".npz") and entry.is_file(follow_symlinks=False)
        ]
    return found[0] if len(found) == 1 else None


def _holds(path: Path) -> str:
    if not path.is_dir():
        return f" (a file that ends in {printable(path.suffix) or 'nothing'})"
    with os.scandir(path) as listing:
        names = sorted(entry.name for entry in listing)
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return f" (the folder holds {shown or 'nothing'}{', ...' if len(names) > _SHOWN else ''})"
