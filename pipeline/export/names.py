"""Texts of users as file names and as cells of a table, harmless wherever they end up."""

import re
import unicodedata
from collections.abc import Sequence

UNLABELLED_FOLDER = "unlabelled"

# Windows refuses these characters and names; a shell or a tar reader trips over some of them too.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\s]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_LONGEST_BYTES = 80  # of 255 that file systems allow a name; leaves room for a suffix
# A cell that begins so is a formula to a spreadsheet (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


def class_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """Return one folder name a class, safe on every file system and told apart without case.

    Characters outside a small safe set become `_`; names that would fall together, are reserved
    or empty get the class's index as a suffix.
    """
    plain = [_safe(name) for name in classes]
    seen: dict[str, int] = {}
    for name in plain:
        seen[name.casefold()] = seen.get(name.casefold(), 0) + 1
    taken = {name.casefold() for name in plain if seen[name.casefold()] == 1}
    folders: list[str] = []
    for label, name in enumerate(plain):
        unique = name
        if not name or seen[name.casefold()] > 1 or name.casefold() == UNLABELLED_FOLDER:
            unique = f"{name or 'class'}_{label}"
            while unique.casefold() in taken:
                unique += "_"
            taken.add(unique.casefold())
        folders.append(unique)
    return tuple(folders)


def one_line(text: str, longest: int = 200) -> str:
    """Return text without control characters and line breaks, cut at `longest` characters."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(flat.split())[:longest]


def cell(value: object) -> str:
    """Return a value as a CSV cell; text that a spreadsheet would run gets a leading apostrophe.

    Numbers keep their sign, for they are no text of a user's; truth is 1 or 0, None the empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return repr(int(value) if isinstance(value, bool) else value)
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(" ") else text


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name)
    text = "".join(c if c.isprintable() else "_" for c in text)
    text = _FORBIDDEN.sub("_", text)
    text = text.encode(errors="ignore")[:_LONGEST_BYTES].decode(errors="ignore")
    # Windows drops dots and blanks at the end; a name with a dot in front hides; the other
    # characters would make an option or a formula of it.
    text = text.rstrip(". ").lstrip(".-=+@%~ '")
    return f"{text}_" if _RESERVED.match(text) else text
