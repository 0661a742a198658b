"""Read what stages wrote, for trackers: whatever is missing or damaged counts as nothing.

Text of users becomes part of names here; `slugs` makes names of it that any tracker takes.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.folders import read_manifest

_SLUG_CHARACTERS = 60


def finished(folder: Path, stage: str) -> bool:
    """Say whether `folder` is the finished folder of the stage."""
    try:
        manifest = read_manifest(folder)
    except (StageError, OSError):
        return False
    return manifest is not None and manifest.stage == stage


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def records(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list."""
    return [one for one in as_list(value) if isinstance(one, dict)]


def number(value: object) -> float | None:
    """Return a finite number as float; None for anything else, truth values too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def pair(value: object) -> tuple[float | None, float | None]:
    """Return the ends of an interval [low, high]."""
    low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return number(low), number(high)


def spread(row: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Return mean and standard deviation of a score."""
    found = row.get(name)
    if not isinstance(found, dict):
        return None, None
    return number(found.get("mean")), number(found.get("sd"))


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Return those of the values that are finite numbers."""
    found = {name: number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def slugs(names: Sequence[str]) -> list[str]:
    """Return a part of a metric's name for each text: letters, digits, `_ - .` and spaces.

    Other characters become `_`; equal ones are numbered (`a_b`, `a_b 2`), so that no class hides
    another.
    """
    made: list[str] = []
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9_\-. ]", "_", name)[:_SLUG_CHARACTERS].strip(" .") or "_"
        taken, found = 1, slug
        while found in made:
            taken += 1
            found = f"{slug} {taken}"
        made.append(found)
    return made
