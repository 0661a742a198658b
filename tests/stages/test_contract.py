import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest, write_bytes, write_manifest
from pipeline.params import (
    SECTIONS,
    Execution,
    PrepareParams,
    PretrainParams,
    StageName,
    TrainParams,
)
from pipeline.stages import contract
from pipeline.stages.contract import Summary, stage
from pipeline.stages.running import load_stage
from pipeline.team import Team


class Count(Summary):
    runs: int


class Work:
    """A stage that counts its runs, and can be told to fail."""

    def __init__(self) -> None:
        self.runs = 0
        self.extra = "raw data 1"
        self.error: Exception | None = None
        self.run = stage("prepare", Count, extra_key=lambda _: self.extra)(self.fill)
        self.found: list[list[str]] = []

    def fill(self, params: PrepareParams, inputs: Any, out: Path, tracker: Any) -> Count:
        self.runs += 1
        self.found.append(sorted(path.name for path in out.iterdir()))
        (out / "data.txt").write_text(f"seed {params.seed}")
        if self.error:
            raise self.error
        return Count(runs=self.runs)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "prepare"


def test_a_finished_stage_has_summary_and_manifest(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    assert work.run(PrepareParams(), {}, out, recording_tracker) == Count(runs=1)
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.stage == "prepare"
    assert sorted(manifest.files) == ["data.txt", "summary.json"]
    assert "execution" not in manifest.params
    assert list((out.parent / ".work").rglob("data.txt")) == []


def test_it_is_skipped_when_up_to_date(work: Work, out: Path, recording_tracker: Any) -> None:
    for _ in range(2):
        assert work.run(PrepareParams(), {}, out, recording_tracker) == Count(runs=1)
    assert work.runs == 1
    assert recording_tracker.notes == [f"prepare: up to date ({out})"]


def test_execution_alone_does_not_make_it_stale(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    work.run(PrepareParams(), {}, out, recording_tracker)
    changed = PrepareParams(execution=Execution(device="cpu", workers=3))
    work.run(changed, {}, out, recording_tracker)
    assert work.runs == 1


def test_params_raw_data_and_sources_make_it_stale(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.run(PrepareParams(), {}, out, recording_tracker)
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert (out / "data.txt").read_text() == "seed 1"
    work.extra = "raw data 2"
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    monkeypatch.setattr("pipeline.stages.contract.closure_digest", lambda module: "edited")
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert work.runs == 4


def test_force_runs_again_from_scratch(work: Work, out: Path, recording_tracker: Any) -> None:
    work.run(PrepareParams(), {}, out, recording_tracker)
    before = read_manifest(out)
    summary = work.run(PrepareParams(), {}, out, recording_tracker, force=True)
    assert summary == Count(runs=2)
    after = read_manifest(out)
    assert before is not None
    assert after is not None
    assert before.key == after.key
    assert work.found == [[], []]


def test_a_failure_leaves_the_old_result_and_the_work_to_resume(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    work.run(PrepareParams(), {}, out, recording_tracker)
    work.error = StageError("diverged")
    for _ in range(2):
        with pytest.raises(StageError, match="diverged"):
            work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert (out / "data.txt").read_text() == "seed 0"
    assert work.found == [[], [], ["data.txt"]]
    with pytest.raises(StageError, match="diverged"):
        work.run(PrepareParams(seed=1), {}, out, recording_tracker, force=True)
    assert work.found[-1] == []
    work.error = None
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert (out / "data.txt").read_text() == "seed 1"


def test_a_kill_after_the_folder_was_moved_leaves_nothing_but_others_work(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stage_work = out.parent / ".work" / "prepare"
    work.run(PrepareParams(), {}, out, recording_tracker)
    # The old folder is aside and the new one in place.
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    (old,) = stage_work.iterdir()
    assert old.name.startswith("old-")
    other = stage_work / "another-key"
    other.mkdir()
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert list(stage_work.iterdir()) == [other]
    other.rmdir()
    work.run(PrepareParams(seed=1), {}, out, recording_tracker)
    assert not stage_work.exists()
    assert work.runs == 2


def test_a_foreign_folder_is_never_replaced(work: Work, out: Path, recording_tracker: Any) -> None:
    out.mkdir(parents=True)
    precious = out / "thesis.docx"
    precious.write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="did not write, and would be replaced; move them"):
            work.run(PrepareParams(), {}, out, recording_tracker, force=force)
    assert precious.read_text() == "years of work"
    assert work.runs == 0


def test_the_folder_of_another_stage_is_never_replaced(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    out.mkdir(parents=True)
    write_manifest(out, "train", "k", {}, {})
    with pytest.raises(InputError, match="the stage `prepare` did not write"):
        work.run(PrepareParams(), {}, out, recording_tracker)


def test_an_empty_folder_may_be_filled(work: Work, out: Path, recording_tracker: Any) -> None:
    out.mkdir(parents=True)
    work.run(PrepareParams(), {}, out, recording_tracker)
    assert (out / "data.txt").is_file()


_HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(out: Path) -> Iterator[None]:
    lock = out.parent / ".work" / "prepare.lock"
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", _HOLD, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


@pytest.mark.usefixtures("other_process")
def test_a_stage_at_work_in_another_process_is_named(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    with pytest.raises(InputError, match="another run is at work on the stage `prepare`.*wait"):
        work.run(PrepareParams(), {}, out, recording_tracker)
    assert work.runs == 0


def finished(root: Path, name: StageName, **files: str) -> Path:
    """Write the finished folder of a stage."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    for file, text in files.items():
        (folder / f"{file}.txt").write_text(text)
    write_manifest(folder, name, "k", {}, {})
    return folder


def test_a_missing_input_is_named_with_its_command(tmp_path: Path, recording_tracker: Any) -> None:
    ran: list[int] = []

    @stage("train", Count)
    def train(params: TrainParams, inputs: Any, out: Path, tracker: Any) -> Count:
        ran.append(1)
        return Count(runs=1)

    folder = tmp_path / "prepare"
    out = tmp_path / "train"
    for inputs in ({}, {"prepare": folder}):
        with pytest.raises(InputError, match=r"train: needs .*`prepare`.*run `replenish prepare`"):
            train(TrainParams(), inputs, out, recording_tracker)
    folder.mkdir()
    write_manifest(folder, "report", "k", {}, {})
    with pytest.raises(InputError, match="holds the stage `report`, not `prepare`"):
        train(TrainParams(), {"prepare": folder}, out, recording_tracker)
    finished(tmp_path, "prepare")
    with pytest.raises(InputError, match=r"train: needs .*`pretrain`.*run `replenish pretrain`"):
        train(TrainParams(), {"prepare": folder}, out, recording_tracker)
    assert ran == []


def test_a_changed_input_makes_it_stale(tmp_path: Path, recording_tracker: Any) -> None:
    ran: list[int] = []

    @stage("train", Count)
    def train(params: TrainParams, inputs: Any, out: Path, tracker: Any) -> Count:
        ran.append(1)
        return Count(runs=len(ran))

    for texts in ("aa", "aa", "ba", "bb", "bb"):
        folders = {
            "prepare": finished(tmp_path, "prepare", data=texts[0]),
            "pretrain": finished(tmp_path, "pretrain", data=texts[1]),
        }
        train(TrainParams(), folders, tmp_path / "train", recording_tracker)
    assert len(ran) == 3


def test_where_some_files_of_an_input_count_the_others_do_not(
    tmp_path: Path, recording_tracker: Any
) -> None:
    ran: list[int] = []

    @stage("pretrain", Count)
    def pretrain(params: PretrainParams, inputs: Any, out: Path, tracker: Any) -> Count:
        ran.append(1)
        return Count(runs=len(ran))

    out = tmp_path / "pretrain"
    for ids, base, data, runs in (
        ("a", "x", "1", 1), ("a", "x", "2", 1), ("b", "x", "2", 2), ("b", "x", "3", 2),
        ("b", "y", "3", 3), ("a", "x", "1", 4),
    ):  # fmt: skip
        (tmp_path / "prepare").mkdir(exist_ok=True)
        (tmp_path / "prepare" / "settings.json").write_text(base)
        prepare = finished(tmp_path, "prepare", unlabelled_ids=ids, data=data)
        current = pretrain.is_current(PretrainParams(), {"prepare": prepare}, out)
        assert current == (len(ran) == runs)
        pretrain(PretrainParams(), {"prepare": prepare}, out, recording_tracker)
        assert len(ran) == runs
    manifest = read_manifest(out)
    assert manifest is not None
    assert list(manifest.inputs) == ["prepare/settings.json", "prepare/unlabelled_ids.txt"]
    # A folder of an older Replenish, which had no such file, is another input.
    (prepare / "unlabelled_ids.txt").unlink()
    finished(tmp_path, "prepare")
    assert not pretrain.is_current(PretrainParams(), {"prepare": prepare}, out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained(
    work: Work, out: Path, recording_tracker: Any, number: int
) -> None:
    work.error = OSError(number, "No space left on device")
    with pytest.raises(StageError, match=r"prepare: the disk is full .*free some space and run"):
        work.run(PrepareParams(), {}, out, recording_tracker)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_explained(
    work: Work, out: Path, recording_tracker: Any, number: int
) -> None:
    work.error = OSError(number, "refused", "/read/only")
    with pytest.raises(InputError, match=r"/read/only cannot be opened or written \(refused\)"):
        work.run(PrepareParams(), {}, out, recording_tracker)


def test_files_in_place_of_folders_are_named(
    work: Work, tmp_path: Path, recording_tracker: Any
) -> None:
    (tmp_path / "artifacts").write_text("a file")
    with pytest.raises(InputError, match="artifacts.*choose another --artifacts folder"):
        work.run(PrepareParams(), {}, tmp_path / "artifacts" / "prepare", recording_tracker)
    (tmp_path / "prepare").write_text("a file")
    with pytest.raises(InputError, match="prepare: is a file; the stage `prepare` writes a folder"):
        work.run(PrepareParams(), {}, tmp_path / "prepare", recording_tracker)


def test_other_system_errors_are_not_disguised(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    work.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        work.run(PrepareParams(), {}, out, recording_tracker)


def test_what_a_killed_write_left_does_not_reach_the_finished_folder(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    def fill(params: PrepareParams, inputs: Any, folder: Path, tracker: Any) -> Count:
        with monkeypatch.context() as broken:
            # A kill leaves the temporary file: neither the rename nor the removal happens.
            broken.setattr(Path, "replace", killed)
            broken.setattr(Path, "unlink", lambda self, missing_ok: None)
            write_bytes(folder / "state.bin", b"half")
        return Count(runs=1)

    broken_run = stage("prepare", Count, extra_key=lambda _: work.extra)(fill)
    with pytest.raises(KeyboardInterrupt):
        broken_run(PrepareParams(), {}, out, recording_tracker)
    assert [p.suffix for p in (out.parent / ".work").rglob(".state*")] == [".tmp"]
    work.run(PrepareParams(), {}, out, recording_tracker)
    manifest = read_manifest(out)
    assert manifest is not None
    assert sorted(manifest.files) == ["data.txt", "summary.json"]


def test_a_run_killed_before_the_last_rename_is_only_moved(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(finished: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(contract, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            work.run(PrepareParams(), {}, out, recording_tracker)
    assert read_manifest(out) is None
    assert work.run(PrepareParams(), {}, out, recording_tracker) == Count(runs=1)
    assert work.runs == 1


def test_a_deleted_file_makes_the_stage_stale(
    work: Work, out: Path, recording_tracker: Any
) -> None:
    work.run(PrepareParams(), {}, out, recording_tracker)
    (out / "data.txt").unlink()
    work.run(PrepareParams(), {}, out, recording_tracker)
    assert work.runs == 2
    assert (out / "data.txt").is_file()


def test_an_input_that_another_run_replaced_is_noticed(
    tmp_path: Path, recording_tracker: Any
) -> None:
    prepare = finished(tmp_path, "prepare")

    def fill(params: TrainParams, inputs: Any, folder: Path, tracker: Any) -> Count:
        finished(tmp_path, "prepare", other="another run was here")
        return Count(runs=1)

    train = stage("train", Count)(fill)
    inputs = {"prepare": prepare, "pretrain": finished(tmp_path, "pretrain")}
    with pytest.raises(StageError, match="another run replaced a folder that this one was reading"):
        train(TrainParams(), inputs, tmp_path / "train", recording_tracker)
    assert read_manifest(tmp_path / "train") is None


# Several processes


class Told(Team):
    """A member of a team whose leader says what is written here."""

    def __init__(self, rank: int, *says: Any) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "says", list(says))
        object.__setattr__(self, "said", [])

    def agree(self, value: Any) -> Any:
        self.said.append(value)  # type: ignore[attr-defined]
        return value if self.leads else self.says.pop(0)  # type: ignore[attr-defined]


def join(monkeypatch: pytest.MonkeyPatch, team: Team) -> None:
    monkeypatch.setattr(contract, "join_team", lambda: team)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stage_of_one_process_refuses_several(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    join(monkeypatch, Team(rank, 2))
    with pytest.raises(InputError, match="prepare: one process .* run it without `accelerate lau"):
        work.run(PrepareParams(), {}, out, recording_tracker)
    assert work.runs == 0
    assert not out.parent.exists()


def test_which_stages_several_processes_may_do() -> None:
    together = [name for name in SECTIONS if load_stage(name).together]
    assert together == ["pretrain", "train"]


def test_the_leader_tells_whether_there_is_work_and_what_came_of_it(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stage("prepare", Count, together=True)(work.fill)
    text = '{\n  "runs": 1\n}\n'
    for expected in ([True, text], [False, text]):
        leader = Told(0)
        join(monkeypatch, leader)
        assert run(PrepareParams(), {}, out, recording_tracker) == Count(runs=1)
        assert leader.said == expected  # type: ignore[attr-defined]
    assert work.runs == 1


def test_a_follower_works_in_a_folder_that_goes_and_returns_the_leaders_summary(
    work: Work, out: Path, recording_tracker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []
    threads: list[int] = []

    def fill(params: PrepareParams, inputs: Any, folder: Path, tracker: Any) -> Count:
        places.append(folder)
        threads.append(torch.get_num_threads())
        tracker.note("nobody hears this")
        return work.fill(params, inputs, folder, tracker)

    run = stage("prepare", Count, together=True)(fill)
    monkeypatch.setattr(contract, "usable_cores", lambda: 8)
    join(monkeypatch, Told(1, True, '{"runs": 7}'))
    assert run(PrepareParams(), {}, out, recording_tracker) == Count(runs=7)
    assert work.runs == 1
    assert not places[0].exists()
    assert not out.parent.exists()
    assert threads == [4]
    assert recording_tracker.notes == []
    join(monkeypatch, Told(1, False, '{"runs": 7}'))
    assert run(PrepareParams(), {}, out, recording_tracker) == Count(runs=7)
    assert work.runs == 1
