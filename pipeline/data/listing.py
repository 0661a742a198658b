"""A user's folders: which class folders and image files they have, and what is set aside.

Nothing outside a folder is opened: links are followed only to files that lie inside it.
"""

import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.decoding import EXTENSIONS, UNREADABLE
from pipeline.errors import InputError
from pipeline.folders import safe_join

MAX_CLASSES = 1000
MIN_CLASSES = 2

# Categories of quarantine that a file's place decides; `decoding` has those of its content.
LEADS_OUT = "leads out of the folder"
FOLDER_LINK = "link to a folder"
STRAY = "not in a class folder"
NO_IMAGE_NAME = "not named as an image"

POOL = "pool"  # first part of the names of what lies in the pool

_LAYOUT = (
    "expected one sub-folder a class with its images inside, for example cat/001.png, "
    "cat/002.jpg, dog/001.png"
)
_TURNING_CHARACTERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Quarantined:
    """A file that is set aside.

    Attributes:
        file: name relative to the source, printable.
        reason: stable category, for counting.
        detail: what was found in this very file.
    """

    file: str
    reason: str
    detail: str


def list_root(root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return the class folders of `root`, sorted, and what else lies there.

    Raises:
        InputError: `root` is missing or unreadable, has fewer than 2 class folders or more than
            1,000, or the name of one cannot be shown safely.
    """
    folders: list[Path] = []
    quarantine: list[Quarantined] = []
    for path in entries(root):
        name = path.name
        if name.startswith("."):
            continue
        if path.is_symlink() and path.is_dir():
            quarantine.append(_aside_link(root, path))
        elif path.is_dir():
            folders.append(path)
        elif not _is_readme(name):
            quarantine.append(Quarantined(relative(root, path), STRAY, _LAYOUT))
    if not MIN_CLASSES <= len(folders) <= MAX_CLASSES:
        raise InputError(
            f"{root}: found {len(folders)} class folders, where {MIN_CLASSES} to {MAX_CLASSES} "
            f"are needed; {_LAYOUT}"
        )
    for folder in folders:
        check_class_name(folder.name, str(root))
    return folders, quarantine


def entries(folder: Path) -> list[Path]:
    """Return what lies in the folder that `prepare.path` names, sorted.

    Raises:
        InputError: it is missing, no folder, or unreadable.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(
            f"prepare.path = {folder}: {what}; put the images there (one sub-folder a class), "
            "name another folder, or set prepare.source to digits for the embedded images"
        )
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"prepare.path = {folder}: cannot be listed ({error.strerror}); mend its permissions"
        ) from None


def list_class(root: Path, folder: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return the image files below a class folder, sorted, and what else lies there."""
    quarantine: list[Quarantined] = []

    def unreadable(error: OSError) -> None:
        where = Path(os.fsdecode(error.filename))
        quarantine.append(Quarantined(relative(root, where), UNREADABLE, str(error.strerror)))

    found: list[Path] = []
    for base, folders, files in os.walk(folder, onerror=unreadable, followlinks=False):
        here = Path(base)
        folders[:] = [name for name in folders if not name.startswith(".")]
        quarantine += [
            _aside_link(root, here / name) for name in sorted(folders) if (here / name).is_symlink()
        ]
        for name in sorted(files):
            path = here / name
            if name.startswith("."):
                continue
            if path.suffix.lower() not in EXTENSIONS:
                detail = f"file names end in one of {', '.join(sorted(EXTENSIONS))}"
                quarantine.append(Quarantined(relative(root, path), NO_IMAGE_NAME, detail))
            elif not _stays_inside(root, path):
                quarantine.append(_aside_link(root, path))
            else:
                found.append(path)
    return sorted(found), quarantine


def list_pool(root: Path) -> tuple[list[Path], list[Quarantined]]:
    """Return the image files below the folder of unlabelled images, sorted, and what else is there.

    A missing folder holds nothing. Notes named README are passed over, images of that name are not.

    Raises:
        InputError: `root` is no folder, or cannot be listed.
    """
    try:
        if not root.exists():
            return [], []
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
    found, quarantine = list_class(root, root)
    return found, [
        replace(item, file=f"{POOL}/{item.file}")
        for item in quarantine
        if not (item.reason == NO_IMAGE_NAME and _is_readme(item.file.rpartition("/")[2]))
    ]


def _is_readme(name: str) -> bool:
    return name.upper().startswith("README")


def _stays_inside(root: Path, path: Path) -> bool:
    # Folders are not links, or the walk had not entered them: only the last part can lead out.
    if not path.is_symlink() and "\\" not in path.name:
        return True
    try:
        safe_join(root, path.relative_to(root).as_posix())
    except (InputError, OSError, RuntimeError):  # RuntimeError: a ring of links
        return False
    return True


def _aside_link(root: Path, path: Path) -> Quarantined:
    if _stays_inside(root, path):
        detail = "folders are not read through links; put the images themselves there"
        return Quarantined(relative(root, path), FOLDER_LINK, detail)
    detail = "a link or a name with backslashes; put the file itself there"
    return Quarantined(relative(root, path), LEADS_OUT, detail)


def relative(root: Path, path: Path) -> str:
    """Return the printable name of `path` relative to `root`; bytes that are no UTF-8 escaped."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def check_class_name(name: str, where: str) -> None:
    """Refuse a class name that is blank or that a terminal or a page could not show as it is.

    Raises:
        InputError: names `where`, the class and the offending character.
    """
    bad = [c for c in name if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
    bad += [c for c in name if c in _TURNING_CHARACTERS]
    if bad or not name.strip():
        what = f"holds the character {bad[0]!r}" if bad else "is blank"
        raise InputError(f"{where}: the class name {ascii(name)} {what}; rename the class")
