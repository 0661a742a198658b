"""Names from a stranger: what may be shown, what is a label, which word means which split."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

from pipeline.errors import InputError

MAX_NAME_CHARACTERS = 200

# Reasons of quarantine that a row's own fields decide; `decoding` has those of its image.
NO_LABEL = "no label"
UNSAFE_LABEL = "label that cannot be shown"
UNKNOWN_LABEL = "unknown label"
UNKNOWN_SPLIT = "unknown split"
UNREADABLE_TIME = "unreadable time"
LISTED_AGAIN = "listed more than once"
LABEL_CONFLICT = "label conflict"
MALFORMED_ROW = "malformed row"
LEADS_OUT = "leads out of the folder"
SYNTHETIC = "synthetic image"

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_TURNING_CHARACTERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_JOINTS = re.compile(r"[-_.]")
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(name: str) -> str:
    """Return the name with what a terminal would obey, or cannot show, written as escapes."""
    if name.isprintable():
        return name
    # Bytes of a file name that are no UTF-8 arrive as lone surrogates.
    text = os.fsencode(name).decode("utf-8", "backslashreplace") if _is_bytes(name) else name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def split_of(word: str) -> str | None:
    """Return train, validation or test for the usual words of each, in any case; else None."""
    return SPLIT_WORDS.get(word.strip().lower())


def split_word(parts: Sequence[str]) -> str | None:
    """Return the word for the split in the parts of a path: train-0.tar, test/0.tar."""
    for part in reversed(parts):
        word = _JOINTS.split(part)[0]
        if split_of(word):
            return word
    return None


def label_fault(label: str) -> tuple[str, str] | None:
    """Return reason and detail if a label is blank, too long or cannot be shown safely."""
    if not label.strip():
        return NO_LABEL, "the label is blank; give one, or remove the row"
    if len(label) > MAX_NAME_CHARACTERS:
        detail = f"{len(label)} characters; at most {MAX_NAME_CHARACTERS} are read"
        return UNSAFE_LABEL, detail
    if label.isprintable():
        return None
    bad = _unshown(label)
    return (UNSAFE_LABEL, f"holds the character {bad[0]!r}; rename the class") if bad else None


def check_class_name(name: str, where: str) -> None:
    """Refuse a class name that is blank or that a terminal or a page could not show as it is.

    Raises:
        InputError: names `where`, the class and the offending character.
    """
    bad = _unshown(name)
    if bad or not name.strip() or len(name) > MAX_NAME_CHARACTERS:
        what = f"holds the character {bad[0]!r}" if bad else "is blank"
        if len(name) > MAX_NAME_CHARACTERS:
            what = f"has more than {MAX_NAME_CHARACTERS} characters"
        shown = ascii(name[:MAX_NAME_CHARACTERS])
        raise InputError(f"{where}: the class name {shown} {what}; rename the class")


def in_class_order(names: Iterable[str]) -> list[str]:
    """Return the names sorted: as numbers where all are plain numbers, else as text."""
    names = list(names)
    if all(name.isascii() and name.isdigit() and len(name) <= 18 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def path_fault(path: str) -> str | None:
    """Return what is wrong with a relative path, or None if it stays below its folder.

    Only the text is judged: links are looked at when the file is opened (see `Files`).
    """
    if not path or "\0" in path:
        return "the path is empty or holds a zero byte"
    if path.startswith("/") or "\\" in path or path[1:2] == ":":
        return "an absolute path or one with backslashes; write it relative, with /"
    if ".." in path.split("/"):
        return "climbs out with ..; write it relative to the folder, without .."
    return None


def clean_path(path: str) -> str:
    """Return a relative path without the parts that say nothing, so that each has one spelling."""
    if "//" not in path and "./" not in path and not path.endswith(("/", "/.")):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _unshown(name: str) -> list[str]:
    return [c for c in name if unicodedata.category(c) in _UNSHOWN or c in _TURNING_CHARACTERS]


def _is_bytes(name: str) -> bool:
    # os.fsencode knows U+DC80 to U+DCFF, and refuses other lone surrogates.
    lone = [c for c in name if "\ud800" <= c <= "\udfff"]
    return bool(lone) and all("\udc80" <= c <= "\udcff" for c in lone)
