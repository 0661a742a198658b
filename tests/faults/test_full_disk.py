"""The disk fills up at the n-th file of a stage: it says so, and the same command goes on later."""

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import SMALL

from pipeline.errors import StageError
from pipeline.folders import WORK, Manifest, read_manifest
from pipeline.params import Params, StageName, check_params
from pipeline.stages.running import run_stage
from pipeline.tracking.tracker import NullTracker

pytestmark = [pytest.mark.faults, pytest.mark.slow]
STAGES: tuple[StageName, ...] = ("prepare", "pretrain", "train", "synthesize", "evaluate")


@pytest.fixture(scope="module")
def small() -> Params:
    """Params that run in seconds, all in this process, where files can be counted."""
    smaller = {
        "pretrain": {"base": "none"},
        "train": {"steps": 4, "checkpoint_every_steps": 2, "checks": 1, "ema_length": 0.1},
        "synthesize": {"images_per_class": 1, "max_rounds": 1, "judge_steps": 5},
        "evaluate": {"arms": ["real", "mixed"], "steps": 2},
    }
    both = {name: {**SMALL.get(name, {}), **smaller.get(name, {})} for name in STAGES}
    return check_params({**both, "execution": {"workers": 1}}, "small")


@pytest.fixture(scope="module")
def unbroken(small: Params, tmp_path_factory: Any) -> dict[str, tuple[Manifest, int]]:
    """What each stage makes, and the number of files that it flushes to the disk on the way."""
    artifacts = tmp_path_factory.mktemp("unbroken")
    counts: Counter[str] = Counter()
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in STAGES:
            patch.setattr(os, "fsync", lambda _, name=name: counts.update([name]))
            run_stage(name, small, artifacts, NullTracker())
            manifest = read_manifest(artifacts / name)
            assert manifest is not None
            found[name] = manifest, counts[name]
    return found


def test_each_stage_survives_a_disk_that_fills_up_midway_and_at_its_last_file(
    small: Params,
    unbroken: dict[str, tuple[Manifest, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush, left = os.fsync, [0]

    def fill(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fill)
    for name, (manifest, files) in unbroken.items():
        assert files >= 2, name
        for last in (False, True):
            left[0] = files // 2
            if last:
                left[0] = 0
                monkeypatch.setattr("pipeline.stages.contract.write_manifest", _no_room)
            with pytest.raises(StageError, match=f"{name}: the disk is full .*goes on from where"):
                run_stage(name, small, tmp_path, NullTracker())
            assert not (tmp_path / name).exists()
            assert not list((tmp_path / WORK).rglob("*.tmp")), name
        monkeypatch.undo()
        monkeypatch.setattr(os, "fsync", fill)
        left[0] = 0
        run_stage(name, small, tmp_path, NullTracker())
        assert read_manifest(tmp_path / name) == manifest
    assert {path.suffix for path in (tmp_path / WORK).rglob("*")} == {".lock"}


def _no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
