"""Where a run stands and when it will end, for `replenish status`.

It reads files alone (manifests, side files, work folders, the end of the log) and takes no lock, so
that it never stands in the way of a run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError, StageError
from pipeline.folders import MANIFEST, WORK
from pipeline.params import SECTIONS, Params, StageName
from pipeline.stages import STAGES
from pipeline.stages.running import load_stage
from pipeline.tracking.estimates import (
    Step,
    Usual,
    current_step,
    rounds_total,
    stage_lines,
    time_of,
    usual_seconds,
)
from pipeline.tracking.index import made_folders, read_index, settings_digest
from pipeline.tracking.lines import read_lines
from pipeline.tracking.reading import as_list, finished, number, read_object
from pipeline.tracking.recorder import RUN_FILE, RUNS, live_file, made_file, worker_of

State = Literal["up to date", "done", "stale", "running", "interrupted", "failed", "not begun"]
SILENT_SECONDS = 1800.0  # a run on another machine that is silent for so long counts as dead
_TAIL_BYTES = 1 << 21
_STATE_FILE = "state.safetensors"  # of `pipeline.diffusion.checkpoints`, which loads torch
_STOPPED = ("KeyboardInterrupt", "TerminationSignal", "SystemExit", "CancelledRun")


@dataclass(frozen=True)
class Part:
    """How much of a stage is on disk already.

    Attributes:
        what: shards, or steps up to the last checkpoint.
        done: how many.
        total: of how many; None where that is not known.
    """

    what: Literal["shards", "checkpoint step"]
    done: int
    total: int | None


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands.

    Attributes:
        name: of the stage.
        state: `done` is a finished folder that was not compared with params; `stale` one that does
            not go with them; `interrupted` was killed or stopped, `failed` ended with an error.
        reason: why it is stale or failed; may be empty.
        run_id: of the run that made the folder, or is or was at work.
        since: when it was begun, or made.
        seconds: that it took, or has taken.
        process: `1234 on host` of the run at work.
        step: what it was at last.
        part: what is on disk of an unfinished one.
        usual: what it took in earlier runs.
        expected_end: of a running one; None where that is not known.
    """

    name: StageName
    state: State
    reason: str = ""
    run_id: str = ""
    since: datetime | None = None
    seconds: float | None = None
    process: str = ""
    step: Step | None = None
    part: Part | None = None
    usual: Usual | None = None
    expected_end: datetime | None = None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        artifacts: the folder.
        run_id: of the run at work, or of the last one; empty where none is known.
        driver: run, stage or flow.
        alive: is it at work?
        since: when it began.
        ended: when it ended; None of one that is at work, or was killed.
        stages: all of them, in order.
        expected_end: of a run at work; None where that is not known.
        remaining_seconds: of work in all stages that are not done; None where that is not known.
        basis: what the estimate rests on, or why there is none.
    """

    artifacts: Path
    run_id: str
    driver: str
    alive: bool
    since: datetime | None
    ended: datetime | None
    stages: tuple[StageStatus, ...]
    expected_end: datetime | None
    remaining_seconds: float | None
    basis: str


def run_status(artifacts: Path, params: Params | None, logs: Path, now: datetime) -> RunStatus:
    """Return where the run in an artifacts folder stands.

    Args:
        artifacts: folder of the stages' folders; it need not be there.
        params: to compare finished folders with; None compares them with nothing.
        logs: folder of the index.
        now: the time, with its zone.
    """
    made = made_folders(read_index(logs))
    stages: list[StageStatus] = []
    for name in SECTIONS:
        section = None if params is None else settings_digest(getattr(params, name).identity())
        usual = usual_seconds(made, name, section)
        stages.append(_stage_status(name, artifacts, params, stages, usual, now))
    run = read_object(artifacts / RUNS / RUN_FILE)
    working = next((one for one in stages if one.state == "running"), None)
    worker = worker_of(run)
    alive = working is not None or (
        "ended" not in run and worker is not None and worker.alive() is True
    )
    to_come = _to_come(stages, run, working, alive)
    remaining, basis = _remaining(to_come, now)
    return RunStatus(
        artifacts=artifacts,
        run_id=working.run_id if working else str(run.get("run_id", "")),
        driver=str(run.get("driver", "")),
        alive=alive,
        since=time_of(run.get("started")),
        ended=time_of(run.get("ended")),
        stages=tuple(stages),
        expected_end=now + timedelta(seconds=remaining) if alive and remaining else None,
        remaining_seconds=remaining,
        basis=basis,
    )


def _stage_status(
    name: StageName,
    artifacts: Path,
    params: Params | None,
    before: Sequence[StageStatus],
    usual: Usual | None,
    now: datetime,
) -> StageStatus:
    folder = artifacts / name
    live = read_object(live_file(artifacts, name))
    there = finished(folder, name)
    if live and not (there and _is_newer(folder, live)):
        return replace(_at_work(name, artifacts, live, usual, now), usual=usual)
    if not there:
        part = _part(name, artifacts, {}, [])
        left = any((artifacts / WORK / name).glob("*/*"))
        return StageStatus(name, "interrupted" if left else "not begun", part=part, usual=usual)
    state, reason = _compare(name, artifacts, params, before)
    maker = read_object(made_file(artifacts, name))
    if maker.get("digest") != read_object(folder / MANIFEST).get("digest"):
        maker = {}  # the folder came from elsewhere: a checkout, another version
    return StageStatus(
        name,
        state,
        reason,
        run_id=str(maker.get("run_id", "")),
        since=time_of(maker.get("ended")),
        seconds=number(maker.get("seconds")),
        usual=usual,
    )


def _compare(
    name: StageName, artifacts: Path, params: Params | None, before: Sequence[StageStatus]
) -> tuple[State, str]:
    if params is None:
        return "done", ""
    root = artifacts.absolute()
    inputs = {needed: root / needed for needed in STAGES[name].inputs}
    try:
        current = load_stage(name).is_current(getattr(params, name), inputs, root / name)
    except (InputError, StageError, OSError) as error:
        return "stale", str(error)
    if not current:
        return "stale", "made with other params, inputs or code"
    unsure = [one.name for one in before if one.name in inputs and one.state != "up to date"]
    return ("stale", f"`{unsure[0]}` comes first") if unsure else ("up to date", "")


def _at_work(
    name: StageName,
    artifacts: Path,
    live: Mapping[str, Any],
    usual: Usual | None,
    now: datetime,
) -> StageStatus:
    """Return the state of a stage that a run is at work on, or was when it ended."""
    log = read_lines(Path(str(live.get("log", ""))), _TAIL_BYTES)
    log = [line for line in log if line.get("run_id") == live.get("run_id")]
    lines = stage_lines(log, name)
    step = current_step(lines if lines is not None else log)
    since = time_of(live.get("started"))
    state = _state(live, log, now)
    until = now if state == "running" else time_of(live.get("ended")) or _heard(log)
    worker = worker_of(live)
    status = StageStatus(
        name,
        state,
        str(live.get("message") or "") if state == "failed" else "",
        run_id=str(live.get("run_id", "")),
        since=since,
        seconds=(until - since).total_seconds() if since and until else None,
        process=f"{worker.pid} on {worker.host}" if worker else "",
        step=step,
        part=_part(name, artifacts, live.get("settings"), lines),
    )
    if state != "running":
        return status
    return replace(status, expected_end=_stage_end(since, step, usual, now))


def _state(live: Mapping[str, Any], log: Sequence[dict[str, Any]], now: datetime) -> State:
    if error := live.get("error"):
        return "interrupted" if error in _STOPPED else "failed"
    worker = worker_of(live)
    alive = worker.alive() if worker is not None else False
    if alive is None:  # on another machine: is its log, in a shared folder, still written?
        heard = _heard(log)
        alive = heard is not None and (now - heard).total_seconds() < SILENT_SECONDS
    return "running" if alive else "interrupted"


def _stage_end(
    since: datetime | None, step: Step | None, usual: Usual | None, now: datetime
) -> datetime | None:
    """Return when a stage ends: after what it usually takes, and not before its step does."""
    if usual is None or since is None:
        return None  # nobody knows what comes after the step
    ends = [since + timedelta(seconds=usual.seconds)]
    if step is not None and (end := step.ends(now)) is not None:
        ends.append(end)
    return max(ends) if max(ends) > now else None


def _part(
    name: StageName,
    artifacts: Path,
    settings: object,
    lines: Sequence[dict[str, Any]] | None,
) -> Part | None:
    """Return what the work folder of an unfinished stage holds."""
    known = settings if isinstance(settings, dict) else {}
    work = artifacts / WORK / name
    if name == "synthesize":
        done = sum(1 for _ in work.glob("*/shards/*.sha256"))
        size = number(known.get("synthesize.shard_images"))
        total = math.ceil(rounds_total(lines, "sample") / size) if lines and size else 0
        return Part("shards", done, total or None) if done or total else None
    if name in ("pretrain", "train"):
        found = [step for path in work.glob(f"*/{_STATE_FILE}") if (step := _checkpoint(path))]
        total = int(number(known.get(f"{name}.steps")) or 0)
        return Part("checkpoint step", max(found), total or None) if found else None
    return None


def _checkpoint(path: Path) -> int | None:
    try:
        with safe_open(str(path), framework="np") as state:
            told = (state.metadata() or {}).get("numbers", "")
        return int(json.loads(told)["step"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _to_come(
    stages: Sequence[StageStatus],
    run: Mapping[str, Any],
    working: StageStatus | None,
    alive: bool,
) -> list[StageStatus]:
    """Return the stages that are not done, from the one at work on; of a run at work, its own."""
    wanted = as_list(run.get("stages")) if alive else []
    mine = [one for one in stages if not wanted or one.name in wanted or one is working]
    if working is not None:
        mine = mine[mine.index(working) :]
    made_now = [one.name for one in mine if one.state == "done" and one.run_id == run.get("run_id")]
    return [one for one in mine if one.state != "up to date" and one.name not in made_now]


def _remaining(to_come: Sequence[StageStatus], now: datetime) -> tuple[float | None, str]:
    """Return seconds of work, and what that rests on or why it is not known."""
    if not to_come:
        return 0.0, "nothing is left to do"
    total, other, runs = 0.0, False, 0
    for one in to_come:
        if one.usual is None:
            return None, f"`{one.name}` was not done here before, so that its time is not known"
        if one.state == "running":
            if one.expected_end is None:
                return None, f"`{one.name}` takes longer than it did before"
            total += (one.expected_end - now).total_seconds()
        else:
            total += one.usual.seconds
        other = other or not one.usual.same_params
        runs = one.usual.runs if not runs else min(runs, one.usual.runs)
    which = "some with other params" if other else "with these params"
    return total, f"from earlier runs, {which}; at least {runs} of each stage"


def _heard(log: Sequence[dict[str, Any]]) -> datetime | None:
    return time_of(log[-1].get("time")) if log else None


def _is_newer(folder: Path, live: Mapping[str, Any]) -> bool:
    """Say whether a folder was finished after its stage was begun by the run of a live file."""
    since = time_of(live.get("ended") or live.get("started"))
    worker = worker_of(live)
    if since is None or (
        worker is not None and worker.alive() is not False and "error" not in live
    ):
        return False
    try:
        return (folder / MANIFEST).stat().st_mtime > since.timestamp()
    except OSError:
        return False
