"""The points of a sweep: a grid over a few keys of the params, each point with a folder's name."""

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

from pipeline.errors import InputError
from pipeline.folders import WORK, replace_folder
from pipeline.params import Params, load_params
from pipeline.stages import STAGES
from pipeline.stages.running import load_stage
from pipeline.tracking.tracker import Tracker

# Axis of a sweep -> key of the params, and the short word for it in a folder's name.
AXES = {
    "seeds": ("seed", "seed"),
    "synthetic_shares": ("evaluate.mixed_shares", "share"),
    "images_per_class": ("synthesize.images_per_class", "images"),
    "guidance": ("synthesize.guidance", "guidance"),
}


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its folder, such as `seed-0_share-0.5`.
        values: axis -> value, for the table.
        overrides: `section.key=value`.
        params: what they come to.
    """

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    params: Params


def grid(
    params_file: Path, more: tuple[str, ...], axes: dict[str, list[Any]], max_runs: int
) -> list[Point]:
    """Return the points of the grid; an empty axis stays as the params file has it.

    Every point's params are checked here, before any work.

    Raises:
        InputError: there are more points than `max_runs`, no axis has a value, a value stands twice
            in an axis, or a point's params are not allowed.
    """
    used = {name: values for name, values in axes.items() if values}
    if not used:
        raise InputError(f"sweep: no values; give some of {', '.join(axes)}")
    for name, values in used.items():
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise InputError(f"sweep: {name} has {twice[0]} twice; give each value once")
    count = 1
    for values in used.values():
        count *= len(values)
    if count > max_runs:
        shape = " x ".join(f"{len(values)} {name}" for name, values in used.items())
        raise InputError(
            f"sweep: {shape} = {count} runs, more than max_runs = {max_runs}; give fewer values, "
            "or raise max_runs if that much work is meant"
        )
    return [
        _point(params_file, more, dict(zip(used, values, strict=True)))
        for values in product(*used.values())
    ]


def _point(params_file: Path, more: tuple[str, ...], values: dict[str, Any]) -> Point:
    overrides: list[str] = []
    words: list[str] = []
    for axis, value in values.items():
        key, word = AXES[axis]
        # One share is the whole of what the search of `evaluate` may try.
        given = [value] if axis == "synthetic_shares" else value
        overrides.append(f"{key}={json.dumps(given)}")
        words.append(f"{word}-{value}")
    all_of_them = (*more, *overrides)
    return Point("_".join(words), values, all_of_them, load_params(params_file, all_of_them))


def borrow(point: Point, folder: Path, others: list[Path], tracker: Tracker) -> list[str]:
    """Copy finished stages that another point has made from the very same params and inputs.

    Points that differ in guidance alone share their trained network, and so on. Stages that are up
    to date already are left alone; the first one that nobody has ends it.

    Returns:
        The names of the stages that were copied.
    """
    copied: list[str] = []
    root = folder.absolute()
    for name, spec in STAGES.items():
        run = load_stage(name)
        section = getattr(point.params, name)
        inputs = {needed: root / needed for needed in spec.inputs}
        if run.is_current(section, inputs, root / name):
            continue
        donors = (other.absolute() / name for other in others if other.absolute() != root)
        donor = next((one for one in donors if run.is_current(section, inputs, one)), None)
        if donor is None:
            break
        work = root / WORK / "borrowed" / name
        rmtree(work, ignore_errors=True)
        copytree(donor, work)
        replace_folder(work, root / name)
        copied.append(name)
        tracker.note(f"{name}: the same as in {donor.parent.name}; copied")
    rmtree(root / WORK / "borrowed", ignore_errors=True)
    return copied
