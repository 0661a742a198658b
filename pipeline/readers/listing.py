"""A user's folders: which image files lie below them, and what is set aside.

Names are plain text, relative to the root, so that a million of them stay small. No link is
followed to a folder; those to files are looked at here, and again when they are opened.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.decoding import EXTENSIONS, UNREADABLE
from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.readers.limits import ReadLimits
from pipeline.readers.naming import LEADS_OUT, printable
from pipeline.readers.source import Quarantined

# Reasons of quarantine that a file's place decides.
FOLDER_LINK = "link to a folder"
STRAY = "not in a class folder"
NO_IMAGE_NAME = "not named as an image"

_IMAGE_NAMES = f"file names end in one of {', '.join(sorted(EXTENSIONS))}"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in the folder that `prepare.path` names, hidden things excepted, sorted.

    Raises:
        InputError: it is missing, no folder, or unreadable.
    """
    try:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "no such folder"
            raise InputError(
                f"prepare.path = {folder}: {what}; put the images there (one sub-folder a class), "
                "name another folder, or set prepare.source to digits for the embedded images"
            )
        with os.scandir(folder) as found:
            return sorted(
                (entry for entry in found if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"prepare.path = {folder}: cannot be listed ({_why(error)}); mend its permissions"
        ) from None


def files_within(root: Path, ending: str, depth: int) -> list[Path]:
    """Return the files below `root` that end so, sorted; links, pipes, the unreadable left out.

    Args:
        root: a folder.
        ending: of the names, in any case.
        depth: levels of folders below `root` that are looked into.
    """
    found: list[Path] = []
    waiting = [(root, 0)]
    while waiting:
        folder, level = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                for entry in listing:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if level < depth:
                            waiting.append((folder / entry.name, level + 1))
                    elif entry.name.lower().endswith(ending) and entry.is_file(
                        follow_symlinks=False
                    ):
                        found.append(folder / entry.name)
        except OSError:
            continue
    return sorted(found)


def class_folders(
    root: Path, below: str, layout: str
) -> tuple[list[str], list[Quarantined], list[os.DirEntry[str]]]:
    """Return the folders of `root / below`, sorted, what is set aside there, and the links.

    Args:
        root: folder of the source.
        below: folder relative to it, or empty.
        layout: what was expected, for the detail of stray files.
    """
    names: list[str] = []
    aside: list[Quarantined] = []
    links: list[os.DirEntry[str]] = []
    for entry in entries(root / below):
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_symlink() and entry.is_dir():
            aside.append(_aside_link(root, name))
            links.append(entry)
        elif entry.is_dir():
            names.append(entry.name)
        elif not is_readme(entry.name):
            aside.append(Quarantined(printable(name), STRAY, layout))
    return names, aside, links


def walk_images(root: Path, below: str, limits: ReadLimits) -> tuple[list[str], list[Quarantined]]:
    """Return the image files at any depth below `root / below`, and what else lies there.

    Args:
        root: folder of the source.
        below: folder relative to it, or empty.
        limits: at most `max_rows` files are listed.

    Returns:
        Paths relative to `root`, in the order of their parts.

    Raises:
        InputError: there are too many files.
    """
    found: list[str] = []
    aside: list[Quarantined] = []
    waiting = [below]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(root / here) as listing:
                present = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            aside.append(Quarantined(printable(here), UNREADABLE, _why(error)))
            continue
        for entry in present:
            if entry.name.startswith("."):
                continue
            name = f"{here}/{entry.name}" if here else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif entry.is_symlink() and _is_folder(entry):
                aside.append(_aside_link(root, name))
            elif not _has_image_name(entry.name):
                aside.append(Quarantined(printable(name), NO_IMAGE_NAME, _IMAGE_NAMES))
            elif (entry.is_symlink() or "\\" in entry.name) and not stays_inside(root, name):
                aside.append(_aside_link(root, name))
            else:
                found.append(name)
        if len(found) + len(aside) > limits.max_rows:
            raise InputError(
                f"{root}: more than {limits.max_rows} files; take a part of it, or raise "
                "prepare.max_rows"
            )
    # The zero byte is in no name and sorts before all: the order of the parts.
    found.sort(key=lambda name: name.replace("/", "\0"))
    aside.sort(key=lambda item: item.file)
    return found, aside


def files_ending(folder: Path, endings: Sequence[str]) -> Iterator[str]:
    """Yield the names of files in `folder` that end so, in any case, sorted; links are left out."""
    for entry in entries(folder):
        if entry.name.lower().endswith(tuple(endings)) and entry.is_file(follow_symlinks=False):
            yield entry.name


def is_readme(name: str) -> bool:
    """Say whether a file is a note to people, beside images."""
    return name.upper().startswith("README")


def stays_inside(root: Path, name: str) -> bool:
    """Say whether a file lies below `root`, links followed."""
    try:
        safe_join(root, name)
    except (InputError, OSError, RuntimeError):  # RuntimeError: a ring of links
        return False
    return True


def _has_image_name(name: str) -> bool:
    stem, dot, ending = name.rpartition(".")
    return bool(stem and dot) and f".{ending.lower()}" in EXTENSIONS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a ring of links
        return False


def _aside_link(root: Path, name: str) -> Quarantined:
    if stays_inside(root, name):
        detail = "folders are not read through links; put the images themselves there"
        return Quarantined(printable(name), FOLDER_LINK, detail)
    detail = "a link or a name with backslashes; put the file itself there"
    return Quarantined(printable(name), LEADS_OUT, detail)


def _why(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)
