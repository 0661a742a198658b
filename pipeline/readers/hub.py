"""A dataset by its id on the Hugging Face hub, downloaded by `datasets` into its own cache.

`datasets` 4 and later run no code of a dataset's repository; nothing here asks for it. What comes
back is read as the Arrow files of the cache, with the same distrust as any other file.
"""

import re
from pathlib import Path

from pipeline.errors import InputError
from pipeline.readers.hf_files import Part
from pipeline.readers.naming import printable
from pipeline.readers.tables import one_line

_ID = re.compile(
    r"(?P<id>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[A-Za-z0-9_][\w./-]*))?",
    re.ASCII,
)


def download(identifier: str) -> list[Part]:
    """Return the files of each split of a dataset on the hub, downloaded if they are not yet.

    Args:
        identifier: owner/name or owner/name@revision.

    Raises:
        InputError: no such id, `datasets` is not installed, or the hub cannot be reached.
    """
    found = _ID.fullmatch(identifier)
    if found is None or ".." in identifier:
        raise InputError(
            f"prepare.path = hub:{printable(identifier[:80])}: write hub:owner/name, or "
            "hub:owner/name@revision to hold it still"
        )
    try:
        import datasets
    except ImportError:
        raise InputError(
            f'prepare.path = hub:{identifier}: needs `datasets`; pip install "replenish[hub]"'
        ) from None
    try:
        loaded = datasets.load_dataset(found["id"], revision=found["revision"], streaming=False)
    except Exception as error:  # the library raises many kinds, by what the network does
        raise InputError(
            f"prepare.path = hub:{identifier}: cannot be downloaded ({type(error).__name__}: "
            f"{one_line(error)}); without network, save it elsewhere by load_dataset(...)."
            "save_to_disk(folder) and name that folder"
        ) from None
    parts: list[Part] = []
    for split, rows in loaded.items():
        files = tuple(Path(one["filename"]) for one in rows.cache_files)
        if not files:
            raise InputError(f"prepare.path = hub:{identifier}: has no files in the cache")
        parts.append(Part(printable(str(split)), str(split), "arrow", files))
    return parts
