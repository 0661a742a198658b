"""Kill a run at random moments, again and again, and see that nothing is lost and nothing double.

    python tests/faults/kills.py --kills 100 --seed 0 --driver both --json kills.json

Each round begins with an empty copy of the project, MLflow's and Prefect's databases included. The
same command is given until it ends; its whole process group is killed (SIGKILL) at a moment drawn
uniformly over the time that an unbroken run takes. What is there in the end is compared with what
the unbroken run left.
"""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from e2e.conftest import SMALL, Project  # noqa: E402

from pipeline.folders import WORK, Manifest, read_manifest  # noqa: E402
from pipeline.params import SECTIONS  # noqa: E402

_WORKERS = ("--set", "execution.workers=2")  # whoever is killed has processes of its own
COMMANDS = {
    "run": ("-m", "pipeline", "run", *_WORKERS),
    "flow": ("-m", "flows.augment", *_WORKERS),
}
PARTS = ("pipeline", "flows", "params.yaml", "pyproject.toml")
LONGEST_SECONDS = 900.0  # of one attempt; a run that hangs is a finding
MEMORY = "mlflow_run.json"
_LOG = re.compile(r"\d{8}T\d{6}Z-(run|flow)(-\d+)?\.jsonl")
_BESIDE = {"index.jsonl", "metrics.prom", "shards"}


@dataclass(frozen=True)
class Kill:
    """A kill: how many seconds after its start, at which stage, and in which round."""

    round: int
    seconds: float
    stage: str


@dataclass
class Tally:
    """What a driver went through.

    Attributes:
        driver: `run` or `flow`.
        unbroken_seconds: of a run that nobody killed.
        rounds: artifacts folders that were finished.
        kills: in order.
        problems: what was lost, double or left; must be empty.
        temporary: files that killed processes left in the system's folder for temporary files.
    """

    driver: str
    unbroken_seconds: float = 0.0
    rounds: int = 0
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    temporary: int = 0


@dataclass(frozen=True)
class Left:
    """What a finished run left: stage -> manifest, and what MLflow holds of it."""

    manifests: dict[str, Manifest | None]
    recorded: dict[str, Any]


def copy_project(source: Path, folder: Path) -> Project:
    """Copy code and params into an empty folder; compiled code goes along, which saves seconds."""
    folder.mkdir(parents=True)
    for name in PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        else:
            shutil.copy2(source / name, folder / name)
    return Project(folder)


def make_small(project: Project) -> None:
    """Have the project's params run in seconds."""
    path = project.folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    for section, values in SMALL.items():
        params[section].update(values)
    path.write_text(yaml.safe_dump(params))


def attempt(project: Project, driver: str, kill_after: float | None) -> tuple[int, float]:
    """Give the command once; return its exit status and its seconds.

    A killed one has the status -9. What it says goes to output.txt in the project.
    """
    temporary = project.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**project.environment, "TMPDIR": str(temporary)}
    began = time.monotonic()
    with (project.folder / "output.txt").open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, *COMMANDS[driver]],
            cwd=project.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        running.wait(LONGEST_SECONDS if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        pass
    finally:
        try:
            os.killpg(running.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        running.wait()
    return running.returncode, time.monotonic() - began


def stage_at_work(project: Project) -> str:
    """Return the stage that the last attempt was at; `between` before, after and between them."""
    live = sorted((project.folder / "artifacts" / ".runs").glob("*.live.json"))
    return live[-1].name.partition(".")[0] if live else "between"


def recorded(project: Project) -> dict[str, Any]:
    """Return what MLflow holds, as text that is the same for the same work."""
    with sqlite3.connect(f"file:{project.folder / 'mlflow.db'}?mode=ro", uri=True) as database:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in database.execute(query)]

        tags: dict[str, dict[str, str]] = {}
        for run, key, value in rows("select run_uuid, key, value from tags"):
            tags.setdefault(run, {})[key] = value
        runs = rows("select run_uuid, status, lifecycle_stage from runs")
        parents = [run for run, *_ in runs if "mlflow.parentRunId" not in tags.get(run, {})]
        params = Counter(run for run, *_ in rows("select run_uuid, key from params"))
        curves = rows(
            "select run_uuid, key, step, value, is_nan from metrics where key like '%loss'"
            " or key like '%share' or key like '%distance'"
        )
        models = rows("select model_id, name, status, source_run_id from logged_models")
    images: Counter[str] = Counter()
    for path in (project.folder / "mlartifacts").rglob("images/*.png"):
        images[re.sub(r"[+%]timestamp.*", "", path.name)] += 1
    return {
        "runs": [parents, sorted(run for run, *_ in runs)],
        "parents": Counter(status for run, status, _ in runs if run in parents),
        "arms": sorted(
            (tags[run].get("arm", ""), status) for run, status, _ in runs if run not in parents
        ),
        "params": [params[run] for run in parents],
        "curves": sorted({(key, step, value, nan) for _, key, step, value, nan in curves}),
        "models": sorted((name, status) for _, name, status, _ in models),
        "model_ids": sorted(model for model, *_ in models),
        "images": dict(sorted(images.items())),
    }


def what_is_left(project: Project) -> Left:
    """Return what there is to compare after a run."""
    folder = project.folder / "artifacts"
    return Left({name: read_manifest(folder / name) for name in SECTIONS}, recorded(project))


def problems(project: Project, unbroken: Left) -> Iterator[str]:
    """Yield what differs from the unbroken run, and what should not be there."""
    try:
        left = what_is_left(project)
    except sqlite3.Error as error:
        yield f"MLflow's database is broken: {error}"
        return
    for name in SECTIONS:
        if left.manifests[name] != unbroken.manifests[name]:
            yield f"the folder of {name} differs"
    for key in ("parents", "arms", "params", "curves", "models", "images"):
        if left.recorded[key] != unbroken.recorded[key]:
            yield f"MLflow: {key} {left.recorded[key]}, unbroken {unbroken.recorded[key]}"
    yield from _orphans(project, left)


def _orphans(project: Project, left: Left) -> Iterator[str]:
    artifacts, runs = project.folder / "artifacts", project.folder / "runs"
    for path in (artifacts / WORK).rglob("*"):
        if path.suffix != ".lock" and path != artifacts / WORK / MEMORY:
            yield f"left in the work folder: {path.relative_to(artifacts)}"
    for path in artifacts.iterdir():
        if path.name not in {*SECTIONS, WORK, ".runs"}:
            yield f"left in artifacts: {path.name}"
    for path in (artifacts / ".runs").iterdir():
        if path.name not in {"run.json", *(f"{name}.json" for name in SECTIONS)}:
            yield f"left in .runs: {path.name}"
    for place in (artifacts, runs, project.folder / "mlartifacts"):
        for path in place.rglob("*"):
            if path.name.endswith(".tmp") or path.name.startswith("old-"):
                yield f"temporary: {path.relative_to(project.folder)}"
    for path in runs.iterdir():
        if not _LOG.fullmatch(path.name) and path.name not in _BESIDE:
            yield f"left in runs: {path.name}"
        if path.suffix == ".jsonl":
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
                if not line.endswith(b"\n"):
                    yield f"{path.name}: line {number} is broken off"
                else:
                    json.loads(line)
    known = {*left.recorded["runs"][1], *left.recorded["model_ids"], "models", "artifacts"}
    for path in (project.folder / "mlartifacts").glob("**/"):
        name = path.name
        if (re.fullmatch(r"[0-9a-f]{32}|m-[0-9a-f]{32}", name)) and name not in known:
            yield f"mlartifacts: {name} belongs to nothing in MLflow"


def torment(
    driver: str,
    kills: int,
    seed: int,
    place: Path,
    say: Callable[[str], None],
    seconds: float = float("inf"),
) -> Tally:
    """Kill a driver so many times, and return what was found.

    Args:
        driver: `run` or `flow`.
        kills: number of kills.
        seed: of their moments.
        place: an empty folder; a round that has problems stays there.
        say: told how it goes.
        seconds: no kill after so many.
    """
    moments, tally = random.Random(seed), Tally(driver)
    deadline = time.monotonic() + seconds
    # Every round takes the code from here: what a stage makes is known by it, too, and somebody may
    # be at work on the project.
    source = place / "unbroken"
    project = copy_project(ROOT, source)
    make_small(project)
    status, tally.unbroken_seconds = attempt(project, driver, None)
    if status:
        tally.problems.append(f"the unbroken run failed with {status}: {_tail(project)}")
        return tally
    unbroken = what_is_left(project)
    tally.problems += [f"unbroken: {one}" for one in _orphans(project, unbroken)]
    say(f"{driver}: an unbroken run takes {tally.unbroken_seconds:.1f} s")
    while len(tally.kills) < kills and time.monotonic() < deadline:
        number = tally.rounds + 1
        project = copy_project(source, place / f"round-{number}")
        while True:
            more = len(tally.kills) < kills and time.monotonic() < deadline
            moment = moments.uniform(0.0, tally.unbroken_seconds) if more else None
            status, took = attempt(project, driver, moment)
            if status != -signal.SIGKILL or moment is None:
                break
            tally.kills.append(Kill(number, round(took, 2), stage_at_work(project)))
        tally.rounds = number
        found = [f"exit status {status}: {_tail(project)}"] if status else []
        found += problems(project, unbroken)
        tally.temporary += sum(1 for _ in (project.folder / "tmp").iterdir())
        tally.problems += [f"round {number}: {one}" for one in found]
        say(f"{driver}: round {number}, {len(tally.kills)} kills, {len(found)} problems")
        for one in found:
            say(f"  {one}")
        if not found:
            shutil.rmtree(project.folder)
    return tally


def _tail(project: Project) -> str:
    return (project.folder / "output.txt").read_text(errors="replace")[-2000:]


def main(
    kills: Annotated[int, typer.Option(min=1, help="Of each driver.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    driver: Annotated[str, typer.Option(help="run, flow or both.")] = "both",
    minutes: Annotated[float, typer.Option(help="No further kill after so long.")] = float("inf"),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there.")
    ] = None,
    place: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Empty folder to work in; stays.")
    ] = None,
) -> None:
    """Kill runs at random moments; the exit status is 1 if anything was lost or double."""
    names = list(COMMANDS) if driver == "both" else [driver]
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        folder = place or Path(temporary)
        tallies = [
            torment(name, kills, seed, folder / name, typer.echo, 60 * minutes / len(names))
            for name in names
        ]
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(tally) for tally in tallies], indent=2) + "\n")
    for tally in tallies:
        stages = Counter(kill.stage for kill in tally.kills)
        typer.echo(
            f"{tally.driver}: {len(tally.kills)} kills in {tally.rounds} rounds, "
            f"{len(tally.problems)} problems; {tally.temporary} left in the system's temporary "
            f"folder; killed at: {dict(stages)}"
        )
    raise typer.Exit(any(tally.problems for tally in tallies))


if __name__ == "__main__":
    typer.run(main)
