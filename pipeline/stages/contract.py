"""What makes a function a stage: staleness, a lock, a work folder, a manifest, one rename."""

import errno
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from pipeline.device import torch_threads, usable_cores
from pipeline.errors import InputError, StageError
from pipeline.folders import (
    REPLACED,
    WORK,
    drop_temporary_files,
    read_manifest,
    replace_folder,
    write_json,
    write_manifest,
)
from pipeline.hashing import digest_json
from pipeline.params import Section, StageName
from pipeline.sources import closure_digest
from pipeline.stages import STAGES, stage_module
from pipeline.team import Team, join_team
from pipeline.tracking.tracker import NullTracker, Tracker

SUMMARY = "summary.json"
Inputs = Mapping[StageName, Path]


class Summary(BaseModel):
    """Base of the small typed results of the stages; kept as summary.json in the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Section)
S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Stage(Generic[P, S]):
    """A stage: a function that fills a work folder, made safe to repeat.

    Calling it leaves the folder `out` alone when its manifest has the key of this work (params,
    inputs, sources, and `extra_key`, a digest of what else is read). Otherwise the function fills
    `<out>/../.work/<name>/<key>`, where an interrupted run of the same work finds what it left.

    Attributes:
        name: name of the stage.
        summary: type of its result.
        function: fills the work folder that it is given as `out`.
        extra_key: digest of what the stage reads beside its inputs, such as raw data.
        together: may several processes do it together (`accelerate launch`)?
    """

    name: StageName
    summary: type[S]
    function: Callable[[P, Inputs, Path, Tracker], S]
    extra_key: Callable[[P], str]
    together: bool = False

    def __call__(
        self, params: P, inputs: Inputs, out: Path, tracker: Tracker, *, force: bool = False
    ) -> S:
        """Bring the folder `out` up to date and return its summary.

        Raises:
            InputError: an input folder is missing or unfinished, `out` is no folder of this stage,
                cannot be written, or is in use by another run; or several processes were started
                for a stage that one does.
            StageError: the disk is full.
        """
        team = join_team()
        if team.size > 1 and not self.together:
            raise InputError(
                f"{self.name}: one process does this stage; run it without `accelerate launch`, "
                "which is for `replenish train` and `replenish pretrain`"
            )
        if not team.leads:
            return self._follow(params, inputs, team)
        try:
            digests = _input_digests(self.name, inputs)
            key = self._key(params, digests)
            threads = max(1, usable_cores() // team.size)
            with tracker.stage(self.name), _lock(out, self.name), torch_threads(threads):
                if _has_key(out, key) and not force:
                    team.agree(False)
                    _drop_replaced(out.parent / WORK / self.name)
                    tracker.note(f"{self.name}: up to date ({out})")
                else:
                    self._fill(params, inputs, out, tracker, digests, key, force, team)
                text = team.agree((out / SUMMARY).read_text(encoding="utf-8"))
                return self.summary.model_validate_json(text)
        except OSError as error:
            raise _explain(error, self.name, out) from error

    def _follow(self, params: P, inputs: Inputs, team: Team) -> S:
        """Help the leader with its work; what this process writes goes nowhere."""
        if team.agree(None):
            with (
                tempfile.TemporaryDirectory(prefix="replenish-") as nowhere,
                torch_threads(max(1, usable_cores() // team.size)),
            ):
                self.function(params, inputs, Path(nowhere), NullTracker())
        return self.summary.model_validate_json(team.agree(None))

    def is_current(self, params: P, inputs: Inputs, out: Path) -> bool:
        """Say whether a call would find nothing to do."""
        try:
            key = self._key(params, _input_digests(self.name, inputs))
        except InputError:
            return False
        return _has_key(out, key)

    def _key(self, params: P, inputs: Mapping[str, str]) -> str:
        sources = closure_digest(stage_module(self.name))
        return digest_json([self.name, params.identity(), inputs, sources, self.extra_key(params)])

    def _fill(
        self,
        params: P,
        inputs: Inputs,
        out: Path,
        tracker: Tracker,
        digests: Mapping[str, str],
        key: str,
        force: bool,
        team: Team,
    ) -> None:
        work = out.parent / WORK / self.name / key[:16]
        if force:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        drop_temporary_files(work)
        # A run that was killed in its very last moment left a finished folder to be moved.
        if team.agree(not _has_key(work, key)):
            result = self.function(params, inputs, work, tracker)
            if _input_digests(self.name, inputs) != digests:
                raise StageError(
                    f"{self.name}: another run replaced a folder that this one was reading; run "
                    "again, and give runs with other params their own --artifacts folder"
                )
            write_json(work / SUMMARY, result.model_dump(mode="json"))
            write_manifest(work, self.name, key, params.identity(), digests)
        replace_folder(work, out)
        # What remains belongs to params that were given up.
        shutil.rmtree(work.parent, ignore_errors=True)


def stage(
    name: StageName,
    summary: type[S],
    extra_key: Callable[[P], str] = lambda _: "",
    together: bool = False,
) -> Callable[[Callable[[P, Inputs, Path, Tracker], S]], Stage[P, S]]:
    """Return the decorator that makes a `Stage` of a function; see there for the arguments."""
    return lambda function: Stage(name, summary, function, extra_key, together)


def _has_key(out: Path, key: str) -> bool:
    done = read_manifest(out)
    if done is None or done.key != key:
        return False
    # A file that was deleted since makes the stage stale; `replenish verify` finds changed ones.
    return all((out / name).is_file() for name in done.files)


def _drop_replaced(work: Path) -> None:
    """Remove what a run left that was killed after it had moved the finished folder into place.

    Work on other params stays: somebody may go on with it.
    """
    for old in work.glob(f"{REPLACED}*"):
        shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):
        work.rmdir()


def _input_digests(name: StageName, inputs: Inputs) -> dict[str, str]:
    digests: dict[str, str] = {}
    for needed in STAGES[name].inputs:
        folder = inputs.get(needed)
        manifest = read_manifest(folder) if folder is not None else None
        if manifest is None:
            raise InputError(
                f"{name}: needs the finished folder of `{needed}` at {folder}; "
                f"run `replenish {needed}` first, or `replenish run` for all stages"
            )
        if manifest.stage != needed:
            raise InputError(f"{folder}: holds the stage `{manifest.stage}`, not `{needed}`")
        files = STAGES[name].only.get(needed)
        if files is None:
            digests[needed] = manifest.digest
        else:
            digests |= {f"{needed}/{file}": manifest.files.get(file, "") for file in files}
    return digests


def _lock(out: Path, name: StageName) -> AcquireReturnProxy[FileLock]:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the stage `{name}` writes a folder there")
    if out.is_dir() and any(out.iterdir()):
        found = read_manifest(out)
        if found is None or found.stage != name:
            raise InputError(
                f"{out}: holds files that the stage `{name}` did not write, and would be "
                "replaced; move them away, or choose another --artifacts folder"
            )
    folder = out.parent / WORK
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / f"{name}.lock").acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{out}: another run is at work on the stage `{name}` in this folder; wait for it, "
            "or give this run its own --artifacts folder"
        ) from None


def _explain(error: OSError, name: StageName, out: Path) -> Exception:
    where = error.filename or out
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"{name}: the disk is full ({where}); free some space and run the same command "
            "again: it goes on from where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return InputError(
            f"{name}: {where} cannot be opened or written ({error.strerror}); "
            "choose another --artifacts folder or mend its permissions"
        )
    return error
