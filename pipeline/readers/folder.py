"""Images in folders: one folder a class, below one folder a split or at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.decoding import EXTENSIONS
from pipeline.data.store import UNLABELLED
from pipeline.errors import InputError
from pipeline.readers.limits import ReadLimits
from pipeline.readers.listing import (
    NO_IMAGE_NAME,
    class_folders,
    entries,
    is_readme,
    walk_images,
)
from pipeline.readers.naming import check_class_name, printable, split_of
from pipeline.readers.rows import MIN_CLASSES, Rows, take
from pipeline.readers.source import Files, Quarantined, Source

POOL = "pool"  # first part of the names of what lies in the pool

_LAYOUT = (
    "expected one sub-folder a class with its images inside, for example cat/001.png, "
    "cat/002.jpg, dog/001.png"
)


def recognise_folder(path: Path) -> str | None:
    """Return why `path` looks like folders of classes, or None."""
    if not path.is_dir():
        return None
    names = [entry.name for entry in entries(path) if entry.is_dir(follow_symlinks=False)]
    if len(names) < MIN_CLASSES:
        return None
    if _are_splits(path, names):
        return f"one folder a split: {', '.join(map(printable, names))}"
    return f"one folder a class, {len(names)} of them"


def read_folder(root: Path, limits: ReadLimits) -> Source:
    """Return the images below `root`, one sub-folder a class, sorted by name.

    Where all sub-folders are named as splits (train, val, test and the like, in any case) and
    hold folders themselves, the classes lie below them, and the split is given. Sub-folders of a
    class are read too. Hidden files, and a README beside the classes, are ignored; whatever else
    is no image file or leads out of `root` is quarantined.

    Raises:
        InputError: `root` is missing, has no class folders, fewer than 2 or more than the limit; a
            class has no image file, or its name cannot be shown safely; two folders mean one split.
    """
    tops, aside, _ = class_folders(root, "", _LAYOUT)
    places: list[tuple[str | None, str, str]] = []  # split, folder, class
    if _are_splits(root, tops):
        _check_splits(root, tops)
        for top in tops:
            names, strays, _ = class_folders(root, top, _LAYOUT)
            aside += strays
            places += [(split_of(top), f"{top}/{name}", name) for name in names]
    else:
        places = [(None, name, name) for name in tops]
    classes = sorted({name for _, _, name in places})
    if not MIN_CLASSES <= len(classes) <= limits.max_classes:
        raise InputError(
            f"{root}: found {len(classes)} class folders, where {MIN_CLASSES} to "
            f"{limits.max_classes} are needed; {_LAYOUT}"
        )
    for name in classes:
        check_class_name(name, str(root))
    rows = Rows(str(root), limits, classes)
    rows.aside += aside
    paths: list[str] = []
    filled: set[str] = set()
    for split, folder, name in places:
        found, strays = walk_images(root, folder, limits)
        rows.aside += strays
        for path in found:
            # So the export of Replenish names them.
            drawn = path.rpartition(".")[0].endswith("-synthetic")
            if rows.add(path, name, split, origin="synthetic" if drawn else None):
                paths.append(path)
        if found:
            filled.add(name)
    empty = next((name for name in classes if name not in filled), None)
    if empty is not None:
        raise InputError(
            f"{root / empty}: the class folder holds no image file; add images "
            f"({', '.join(sorted(EXTENSIONS))}) or remove the folder"
        )
    return rows.source(lambda kept: Files(root, take(paths, kept), limits.max_file_bytes))


def read_pool_folder(root: Path, limits: ReadLimits) -> Source:
    """Return the unlabelled images below `root`, at any depth, sorted; names begin with `pool/`.

    Hidden files and README notes are ignored; whatever else is no image file or leads out of
    `root` is quarantined. A missing or empty folder is a source without items.

    Raises:
        InputError: `root` is no folder, or cannot be listed.
    """
    paths: list[str] = []
    aside: list[Quarantined] = []
    if _pool_exists(root):
        paths, aside = walk_images(root, "", limits)
    return Source(
        classes=(),
        names=tuple(f"{POOL}/{printable(path)}" for path in paths),
        labels=np.full(len(paths), UNLABELLED, dtype=np.int64),
        given=(POOL,) * len(paths),
        contents=Files(root, paths, limits.max_file_bytes),
        quarantine=tuple(
            replace(item, file=f"{POOL}/{item.file}")
            for item in aside
            if not (item.reason == NO_IMAGE_NAME and is_readme(item.file.rpartition("/")[2]))
        ),
    )


def _pool_exists(root: Path) -> bool:
    try:
        if not root.exists():
            return False
        if not root.is_dir():
            raise InputError(
                f"prepare.pool_path = {root}: is a file, not a folder; put unlabelled images into "
                "a folder, at any depth, and name that"
            )
        next(root.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"prepare.pool_path = {root}: cannot be listed ({error.strerror}); mend its "
            "permissions or name another folder"
        ) from None
    return True


def _are_splits(root: Path, names: list[str]) -> bool:
    if not names or any(split_of(name) is None for name in names):
        return False
    return all(
        any(entry.is_dir(follow_symlinks=False) for entry in entries(root / name)) for name in names
    )


def _check_splits(root: Path, names: list[str]) -> None:
    first_of: dict[str | None, str] = {}
    for name in names:
        first = first_of.setdefault(split_of(name), name)
        if first != name:
            raise InputError(
                f"{root}: the folders {first} and {name} mean the same split; put their images "
                "into one of them"
            )
