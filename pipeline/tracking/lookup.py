"""Which run made this? By the digest of a folder, of dvc.lock's or ours, or by an id of a run.

dvc.lock knows a folder by the md5 of DVC's list of it. In DVC's cache that list has the md5 of the
folder's manifest.json, and so has the index. Where the cache has no list, the folders at hand are
hashed as DVC does.
"""

import configparser
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.folders import MANIFEST
from pipeline.params import SECTIONS
from pipeline.tracking.index import Made

_MD5 = re.compile(r"([0-9a-f]{32})(\.dir)?")
_SHORTEST = 6  # hex digits of a digest or id that is cut short


def find_made(made: Sequence[Made], wanted: str, artifacts: Path, root: Path) -> list[Made]:
    """Return the folders that go by a digest or id, oldest first.

    Args:
        made: the index.
        wanted: digest or key of a manifest, md5 of dvc.lock (`....dir` or bare), or the id of a
            run, here, in MLflow or in Prefect; 6 digits or more of it are enough, of an md5 all.
        artifacts: whose folders are hashed where DVC's cache does not help.
        root: the project folder, which has `.dvc`.

    Raises:
        InputError: too short, or nothing was made here that goes by that name.
    """
    name = wanted.strip().lower()
    if len(name) < _SHORTEST:
        raise InputError(f"--digest {wanted}: give at least {_SHORTEST} characters")
    direct = [one for one in made if any(field.startswith(name) for field in _names(one))]
    if direct:
        return direct
    match = _MD5.fullmatch(name)
    if match:
        listed = _listed_manifest(match[1], root) or _hashed_manifest(match[1], artifacts)
        found = [one for one in made if one.manifest_md5 in (listed, match[1])]
        if found:
            return found
    raise InputError(
        f"--digest {wanted}: no run in the index made a folder of that name; it was made on "
        "another machine, or before there was an index (`replenish status` without --digest shows "
        "what is here)"
    )


def _names(one: Made) -> tuple[str, ...]:
    return (
        one.digest,
        one.key,
        *(name.lower() for name in (one.run_id, one.mlflow_run_id, one.prefect_run_id) if name),
    )


def _listed_manifest(folder_md5: str, root: Path) -> str | None:
    """Return the md5 of manifest.json in DVC's list of a folder; None where there is none."""
    path = _cache(root) / "files" / "md5" / folder_md5[:2] / f"{folder_md5[2:]}.dir"
    try:
        rows = json.loads(path.read_bytes())
        return next(str(row["md5"]) for row in rows if row["relpath"] == MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _cache(root: Path) -> Path:
    """Return the folder of DVC's cache."""
    folder = root / ".dvc" / "cache"
    for name in ("config", "config.local"):
        config = configparser.ConfigParser()
        try:
            config.read(root / ".dvc" / name)
            folder = (root / ".dvc" / config["cache"]["dir"]).resolve()
        except (configparser.Error, KeyError):
            continue
    return folder


def _hashed_manifest(folder_md5: str, artifacts: Path) -> str | None:
    for stage in SECTIONS:
        folder = artifacts / stage
        if (folder / MANIFEST).is_file() and dvc_folder_md5(folder) == folder_md5:
            return _md5(folder / MANIFEST)
    return None


def dvc_folder_md5(folder: Path) -> str:
    """Return the md5 that DVC knows a folder by: of its sorted list of files with their md5."""
    rows = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    rows.sort(key=lambda row: row["relpath"])
    text = json.dumps(rows, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
