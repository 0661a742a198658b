"""What makes a function a stage: staleness, a lock, a work folder, a manifest, one rename."""

import errno
import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from pipeline.errors import InputError, StageError
from pipeline.folders import (
    WORK,
    read_manifest,
    replace_folder,
    write_json,
    write_manifest,
)
from pipeline.hashing import digest_json
from pipeline.params import Section, StageName
from pipeline.sources import closure_digest
from pipeline.stages import STAGES, stage_module
from pipeline.tracking.tracker import Tracker

SUMMARY = "summary.json"
Inputs = Mapping[StageName, Path]


class Summary(BaseModel):
    """Base of the small typed results of the stages; kept as summary.json in the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Section, contravariant=True)
S = TypeVar("S", bound=Summary, covariant=True)


class Stage(Protocol[P, S]):
    """A stage as its drivers see it."""

    def __call__(
        self, params: P, inputs: Inputs, out: Path, tracker: Tracker, *, force: bool = False
    ) -> S:
        """Bring the folder `out` up to date and return its summary."""
        ...


def stage(
    name: StageName,
    summary: type[S],
    extra_key: Callable[[P], str] = lambda _: "",
) -> Callable[[Callable[[P, Inputs, Path, Tracker], S]], Stage[P, S]]:
    """Make a stage of a function that fills a work folder.

    The folder `out` is left alone when its manifest has the key of this work (params, inputs,
    sources, and `extra_key`, a digest of what else is read). Otherwise the function fills
    `<out>/../.work/<name>/<key>`, where an interrupted run of the same work finds what it left.

    Raises:
        InputError: an input folder is missing or unfinished, `out` is no folder of this stage,
            cannot be written, or is in use by another run.
        StageError: the disk is full.
    """

    def decorate(function: Callable[[P, Inputs, Path, Tracker], S]) -> Stage[P, S]:
        @functools.wraps(function)
        def run(
            params: P, inputs: Inputs, out: Path, tracker: Tracker, *, force: bool = False
        ) -> S:
            digests = _input_digests(name, inputs)
            key = digest_json(
                [
                    name,
                    params.identity(),
                    digests,
                    closure_digest(stage_module(name)),
                    extra_key(params),
                ]
            )
            try:
                with tracker.stage(name), _lock(out, name):
                    done = read_manifest(out)
                    if done is not None and done.key == key and not force:
                        tracker.note(f"{name}: up to date ({out})")
                    else:
                        work = out.parent / WORK / name / key[:16]
                        if force:
                            shutil.rmtree(work, ignore_errors=True)
                        work.mkdir(parents=True, exist_ok=True)
                        result = function(params, inputs, work, tracker)
                        write_json(work / SUMMARY, result.model_dump(mode="json"))
                        write_manifest(work, name, key, params.identity(), digests)
                        replace_folder(work, out)
                        _clear(out.parent / WORK / name)
                    text = (out / SUMMARY).read_text(encoding="utf-8")
                    return summary.model_validate_json(text)
            except OSError as error:
                raise _explain(error, name, out) from error

        return run

    return decorate


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
        digests[needed] = manifest.digest
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


def _clear(folder: Path) -> None:
    # The finished work has been moved away; what remains belongs to params that were given up.
    shutil.rmtree(folder, ignore_errors=True)


def _explain(error: OSError, name: StageName, out: Path) -> Exception:
    where = error.filename or out
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"{name}: the disk is full ({where}); free some space and run the same command "
            "again: it goes on from where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return InputError(
            f"{name}: cannot write {where} ({error.strerror}); "
            "choose another --artifacts folder or mend its permissions"
        )
    return error
