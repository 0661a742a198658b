"""Run a stage by name: what every driver (command line, DVC, Prefect) does."""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import cast

from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest
from pipeline.params import SECTIONS, Params, Section, StageName
from pipeline.stages import STAGES, stage_module
from pipeline.stages.contract import Inputs, Stage, Summary
from pipeline.stages.launching import is_launched, launch_together
from pipeline.storage.artifacts import Artifacts
from pipeline.storage.locations import is_url, open_location
from pipeline.storage.mirror import outline_stage
from pipeline.tracking.tracker import Tracker


def run_stage(
    name: StageName, params: Params, artifacts: Path, tracker: Tracker, *, force: bool = False
) -> Summary:
    """Bring the stage's folder below `artifacts` up to date and return its summary.

    Raises:
        InputError: see `pipeline.stages.contract.Stage`, and the stage's own.
        StageError: likewise.
    """
    inputs, out = _folders(name, artifacts)
    section, stage = getattr(params, name), load_stage(name)
    several = stage.together and section.execution.train_processes > 1 and not is_launched()
    if several and (force or not stage.is_current(section, inputs, out)):
        launch_together(name, params, artifacts.absolute(), tracker, force=force)
        if not stage.is_current(section, inputs, out):
            raise StageError(
                f"{name}: another run replaced {out} meanwhile; run again, and give runs with "
                "other params their own --artifacts folder"
            )
        force = False  # they have done it: what follows finds the folder, and tells of it
    return stage(section, inputs, out, tracker, force=force)


def run_stage_at(
    name: StageName, params: Params, artifacts: Artifacts, tracker: Tracker, *, force: bool = False
) -> Summary:
    """Do `run_stage` on artifacts that may be at a URL: fetch, run, send.

    Args:
        name: of the stage.
        params: of all stages.
        artifacts: from `pipeline.storage.artifacts.open_artifacts`.
        tracker: is told what is fetched and sent.
        force: do it again even if it is up to date.

    Raises:
        InputError: see `run_stage`; or the location may not be read or written.
        StageError: likewise; or the location fails, is damaged, or was taken by another run.
    """
    artifacts.fetch((*STAGES[name].inputs, name), tracker.note)
    summary = run_stage(name, params, artifacts.folder, tracker, force=force)
    artifacts.send(name, tracker.note)
    return summary


def stale_stages_at(params: Params, where: str) -> list[StageName]:
    """Do `stale_stages` for a folder's path or a URL, of which the manifests alone are fetched.

    Raises:
        InputError: the URL cannot be used.
        StageError: the store fails, or a manifest there is damaged.
    """
    if not is_url(where):
        return stale_stages(params, Path(where))
    location = open_location(where)
    with tempfile.TemporaryDirectory(prefix="replenish-") as outlines:
        for name in SECTIONS:
            outline_stage(location, name, Path(outlines) / name)
        return stale_stages(params, Path(outlines))


def stale_stages(params: Params, artifacts: Path) -> list[StageName]:
    """Return the stages that a run would do, in order: the first stale one and all after it.

    A later stage is counted although it may turn out up to date: what the earlier one gives is
    not known yet.
    """
    for i, name in enumerate(SECTIONS):
        inputs, out = _folders(name, artifacts)
        if not load_stage(name).is_current(getattr(params, name), inputs, out):
            return list(SECTIONS[i:])
    return []


def load_stage(name: StageName) -> Stage[Section, Summary]:
    """Import the stage's module, on demand: asking for one stage does not load the others."""
    return cast("Stage[Section, Summary]", import_module(stage_module(name)).run)


def finished_folder(name: StageName, artifacts: Path) -> Path:
    """Return the folder of a stage below `artifacts`.

    Raises:
        InputError: the stage is not finished there.
    """
    folder = artifacts.absolute() / name
    found = read_manifest(folder)
    if found is None or found.stage != name:
        raise InputError(
            f"{folder}: no finished folder of `{name}`; run `replenish run` with these artifacts "
            "first, or give another folder"
        )
    return folder


def _folders(name: StageName, artifacts: Path) -> tuple[Inputs, Path]:
    root = artifacts.absolute()
    return {needed: root / needed for needed in STAGES[name].inputs}, root / name
