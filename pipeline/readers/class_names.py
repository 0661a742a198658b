"""`classes.txt`: names for labels that are numbers, one a line, for formats that have none."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.readers.naming import check_class_name

CLASSES_FILE = "classes.txt"
_MAX_BYTES = 1 << 18


def read_class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the names in `folder / classes.txt`, or None where there is no such file.

    Raises:
        InputError: it cannot be read, is too large, or a name is unfit or stands there twice.
    """
    path = folder / CLASSES_FILE
    if not path.is_file() or path.is_symlink():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        lines = data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from None
    names = [line.removesuffix("\r") for line in lines if line.strip()]
    if len(data) > _MAX_BYTES or len(set(names)) != len(names):
        raise InputError(f"{path}: write one class name a line, each once")
    for name in names:
        check_class_name(name, str(path))
    return tuple(names)
