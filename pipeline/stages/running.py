"""Run a stage by name: what every driver (command line, DVC, Prefect) does."""

from importlib import import_module
from pathlib import Path
from typing import cast

from pipeline.params import Params, Section, StageName
from pipeline.stages import STAGES, stage_module
from pipeline.stages.contract import Stage, Summary
from pipeline.tracking.tracker import Tracker


def run_stage(
    name: StageName, params: Params, artifacts: Path, tracker: Tracker, *, force: bool = False
) -> Summary:
    """Bring the stage's folder below `artifacts` up to date and return its summary.

    The stage's module is imported here, on demand: asking for one stage does not load the others.

    Raises:
        InputError: see `pipeline.stages.contract.stage`, and the stage's own.
        StageError: likewise.
    """
    function = cast("Stage[Section, Summary]", import_module(stage_module(name)).run)
    root = artifacts.absolute()
    inputs = {needed: root / needed for needed in STAGES[name].inputs}
    return function(getattr(params, name), inputs, root / name, tracker, force=force)
