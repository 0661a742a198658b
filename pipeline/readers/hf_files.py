"""Which files a Hugging Face dataset on disk is made of, and which split each belongs to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.readers.listing import entries, files_ending, files_within
from pipeline.readers.naming import path_fault, printable, split_of, split_word
from pipeline.readers.parquet_images import Kind
from pipeline.readers.tables import check_file, one_line

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
STATE, DICTIONARY = "state.json", "dataset_dict.json"

_MAX_JSON_BYTES = 64 << 20
_MAX_DEPTH = 3
_MAX_FOLDERS = 1_000


@dataclass(frozen=True)
class Part:
    """The files of one split.

    Attributes:
        name: first part of the names of its items.
        split: word of its split, or None.
        kind: of the files.
        files: in order.
    """

    name: str
    split: str | None
    kind: Kind
    files: tuple[Path, ...]


def known_splits(parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Return the parts to read, and the words of those that are none of our splits."""
    known = [part for part in parts if part.split is not None and split_of(part.split)]
    if not known:
        # One name that means nothing to us is no split; several would be mixed by guessing.
        return [Part(one.name, None, one.kind, one.files) for one in parts], []
    return known, [printable(one.split or one.name) for one in parts if one not in known]


def saved_parts(root: Path) -> list[Part]:
    """Return the files of a folder of `save_to_disk`; of none where it is no such folder.

    Raises:
        InputError: its JSON files are damaged, or name files elsewhere.
    """
    if (root / DICTIONARY).is_file():
        return _saved_splits(root)
    return [_saved_part(root, "", None)] if (root / STATE).is_file() else []


def _saved_splits(root: Path) -> list[Part]:
    told = _read_json(root / DICTIONARY)
    names = told.get("splits")
    if not isinstance(names, list) or not all(_is_folder_name(name) for name in names):
        raise InputError(f"{root / DICTIONARY}: `splits` is no list of folder names")
    return [_saved_part(root, name, name) for name in names]


def _saved_part(root: Path, below: str, split: str | None) -> Part:
    path = safe_join(root, f"{below}/{STATE}" if below else STATE)
    told = _read_json(path)
    if told.get("_indices_data_files"):
        raise InputError(f"{path}: saved with indices; call flatten_indices() and save it again")
    files = told.get("_data_files")
    if not isinstance(files, list) or not files:
        raise InputError(f"{path}: names no data files; save the dataset again")
    found: list[Path] = []
    for one in files:
        name = one.get("filename") if isinstance(one, dict) else None
        if not _is_folder_name(name):
            raise InputError(f"{path}: {ascii(name)[:80]} is no name of a file beside it")
        found.append(safe_join(root, f"{below}/{name}" if below else name))
    return Part(printable(split or "rows"), split, "arrow", tuple(found))


def parquet_parts(root: Path) -> list[Part]:
    """Return the Parquet files below `root`, or `root` itself, by the split that names tell."""
    if root.is_file():
        return [Part("rows", None, "parquet", (root,))] if _is_parquet(root.name) else []
    found: dict[str, list[Path]] = {}
    for path in files_within(root, ".parquet", _MAX_DEPTH):
        found.setdefault(split_word(path.relative_to(root).parts) or "", []).append(path)
    return [
        Part(printable(word or "rows"), word or None, "parquet", tuple(files))
        for word, files in sorted(found.items())
    ]


def metadata_files(root: Path) -> list[tuple[str, str]]:
    """Return (folder below `root` or empty, name) of each metadata file."""
    found: list[tuple[str, str]] = []
    tops = [entry.name for entry in entries(root) if entry.is_dir(follow_symlinks=False)]
    for below in ("", *(tops if len(tops) <= _MAX_FOLDERS else ())):
        present = list(files_ending(root / below, METADATA_FILES))
        found += [(below, name) for name in present if name.lower() in METADATA_FILES][:1]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        check_file(path, _MAX_JSON_BYTES, f"at most {_MAX_JSON_BYTES} bytes of JSON are read")
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no readable JSON ({one_line(error)}); save it again") from None
    if not isinstance(told, dict):
        raise InputError(f"{path}: no JSON object; save the dataset again")
    return told


def _is_folder_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and "/" not in name and name != "." and path_fault(name) is None


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")
