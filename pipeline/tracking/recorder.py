"""Who made which folder, and who is at work: side files in `<artifacts>/.runs`, lines in the index.

They stand outside of the stages' folders, whose digests know no run. `<stage>.json` is of the run
that made the folder that is there. `<stage>.live.json` is there while a run is at work on the
stage; a run that was killed or that failed leaves it. `run.json` is of the run that was begun last.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.folders import MANIFEST, WORK, read_manifest, write_json
from pipeline.tracking.identity import Worker, this_process
from pipeline.tracking.index import add_record, manifest_facts
from pipeline.tracking.jsonlines import first_words
from pipeline.tracking.peaks import memory_peaks
from pipeline.tracking.reading import numbers, pair, read_object
from pipeline.tracking.schema import utc_now
from pipeline.tracking.secrets import clean
from pipeline.tracking.tracker import NullTracker, Scalar

RUNS = ".runs"
RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunFacts:
    """What a run is known by.

    Attributes:
        run_id: its id.
        driver: `run`, `stage` or `flow`.
        log: its log; that folder has the index, too.
        mlflow_run_id: empty where MLflow does not record it.
        prefect_run_id: empty where no flow runs.
    """

    run_id: str
    driver: str
    log: Path
    mlflow_run_id: str = ""
    prefect_run_id: str = ""


def live_file(artifacts: Path, stage: str) -> Path:
    """Return where it stands that a run is at work on a stage."""
    return artifacts / RUNS / f"{stage}.live.json"


def made_file(artifacts: Path, stage: str) -> Path:
    """Return where it stands which run made the folder of a stage."""
    return artifacts / RUNS / f"{stage}.json"


def worker_of(record: Mapping[str, Any]) -> Worker | None:
    """Return the process that wrote a record; None where it does not say."""
    host, pid, started = (record.get(name) for name in ("host", "pid", "process_started"))
    if isinstance(host, str) and isinstance(pid, int) and isinstance(started, int | float):
        return Worker(host, pid, float(started))
    return None


class RunRecorder(NullTracker):
    """Keeps the side files and the index; a file that cannot be written never stops the work."""

    def __init__(self, artifacts: Path, facts: RunFacts, warn: Callable[[str], None]) -> None:
        """Record a run on an artifacts folder; `warn` is told once of what cannot be written."""
        self._artifacts, self._facts, self._warn = artifacts.absolute(), facts, warn
        self._settings: dict[str, Scalar] = {}
        self._rates: dict[str, float] = {}
        self._warned = False

    @contextmanager
    def run(self, stages: tuple[str, ...]) -> Iterator[None]:
        """Say in `run.json` that the run is at work on these stages, and that it ended."""
        path = self._artifacts / RUNS / RUN_FILE
        record = {**self._who(), "started": utc_now().isoformat(), "stages": list(stages)}
        self._keep(path, record)
        error: str | None = None
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            if read_object(path).get("run_id") == self._facts.run_id:
                self._keep(path, {**record, "ended": utc_now().isoformat(), "error": error})

    def params(self, values: Mapping[str, Scalar]) -> None:
        """See Tracker."""
        self._settings.update(values)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """See Tracker."""
        self._rates.update({k: v for k, v in values.items() if k.endswith("images_per_second")})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker; while another run lives on the stage, the live file stays that run's."""
        live = live_file(self._artifacts, name)
        other = worker_of(found := read_object(live))
        # The stage's lock is about to refuse this run then, unless the other one has just ended.
        mine = other is None or "error" in found or other.alive() is False
        before = self._manifest_stamp(name)
        began, started = time.monotonic(), utc_now().isoformat()
        resumed = any((self._artifacts / WORK / name).glob("*/*"))
        settings = {k: v for k, v in self._settings.items() if k.startswith(f"{name}.")}
        record = {**self._who(), "stage": name, "started": started, "settings": settings}
        if mine:
            self._keep(live, record)
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            told = {
                "artifacts": str(self._artifacts),
                "mlflow_run_id": self._facts.mlflow_run_id,
                "prefect_run_id": self._facts.prefect_run_id,
                "started": started,
                "ended": utc_now().isoformat(),
                "seconds": round(time.monotonic() - began, 3),
                "resumed": resumed,
                "memory_bytes": memory_peaks(),
            }
            if failure is not None:
                words = {"error": type(failure).__name__, "message": first_words(failure)}
                if mine:
                    self._keep(live, {**record, **words, "ended": told["ended"]})
                self._add(name, "stage_failed", {**told, **words})
            else:
                if self._manifest_stamp(name) != before:
                    self._made(name, told)
                self._drop(live)

    def _made(self, name: str, told: dict[str, Any]) -> None:
        folder = self._artifacts / name
        try:
            manifest = read_manifest(folder)
            if manifest is None:
                return
            counted = stage_numbers(folder, self._rates)
            fields = {**told, **manifest_facts(folder, manifest), "numbers": counted}
        except (OSError, StageError):
            return  # replaced by another run in this very moment
        self._keep(made_file(self._artifacts, name), {**self._who(), "stage": name, **fields})
        self._add(name, "stage_made", fields)

    def _who(self) -> dict[str, Any]:
        facts = {**asdict(self._facts), "log": str(self._facts.log.absolute())}
        return {**facts, **asdict(this_process())}

    def _manifest_stamp(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self._artifacts / name / MANIFEST).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _keep(self, path: Path, record: dict[str, Any]) -> None:
        try:
            write_json(path, clean(record))
        except OSError as error:
            self._complain(path, error)

    def _drop(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(path, error)

    def _add(self, stage: str, event: str, fields: dict[str, Any]) -> None:
        try:
            add_record(self._facts.log.parent, self._facts.run_id, stage, event, fields)
        except OSError as error:
            self._complain(self._facts.log.parent, error)

    def _complain(self, path: Path, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self._warn(
                f"{path}: cannot be written ({error.strerror or error}); the work goes on, and "
                "`replenish status` will know less of it"
            )


def stage_numbers(folder: Path, rates: Mapping[str, float]) -> dict[str, float]:
    """Return what a finished stage counted: images of synthesize, gain of evaluate."""
    if folder.name == "synthesize":
        summary = read_object(folder / "summary.json")
        told: dict[str, object] = {name: summary.get(name) for name in ("candidates", "accepted")}
        told["images_per_second"] = rates.get("synthesize/images_per_second")
        return numbers(told)
    if folder.name == "evaluate":
        verdict = read_object(folder / "verdict.json")
        low, high = pair(verdict.get("interval_points"))
        told = {"gain_points": verdict.get("gain_points"), "low_points": low, "high_points": high}
        decision = verdict.get("decision")
        told["use"] = float(decision in ("use", "use_with_care")) if decision else None
        return numbers(told)
    return {}
