import os
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context

import pytest
from tracking.sharding import do_shard

from pipeline.errors import InputError
from pipeline.tracking.identity import (
    RUN_ID,
    RUN_LOGS,
    choose_run_id,
    inherited_run,
    run_environment,
    this_process,
)
from pipeline.tracking.lines import read_lines
from pipeline.tracking.schema import check_line
from pipeline.tracking.shard_log import ShardTally, shard_log


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.delenv(RUN_ID, raising=False)
    monkeypatch.delenv(RUN_LOGS, raising=False)


def test_the_environment_goes_before_prefect_and_prefect_before_a_new_id(monkeypatch):
    assert choose_run_id("flow-run-1") == "flow-run-1"
    assert choose_run_id() != choose_run_id()
    monkeypatch.setenv(RUN_ID, "mine")
    assert choose_run_id("flow-run-1") == "mine"


@pytest.mark.parametrize("wrong", ["../x", "a b", "-a", "x" * 65])
def test_a_run_id_that_is_no_name_is_refused(monkeypatch, wrong):
    monkeypatch.setenv(RUN_ID, wrong)
    with pytest.raises(InputError, match="REPLENISH_RUN_ID = .*not a run id; give 1 to 64"):
        choose_run_id()


def test_the_environment_is_as_before_when_a_run_ends(tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_ID, "outer")
    with run_environment("inner", tmp_path):
        assert inherited_run() == ("inner", tmp_path)
    assert os.environ[RUN_ID] == "outer"
    assert RUN_LOGS not in os.environ
    assert inherited_run() is None


def test_spawned_workers_write_shards_under_the_id_of_their_run(tmp_path):
    context = get_context("spawn")
    with run_environment("r1", tmp_path):
        for name in ("class-0000-shard-000000", "class-0001-shard-000000"):
            worker = context.Process(target=do_shard, args=(name,))
            worker.start()
            worker.join()
            assert worker.exitcode == 0
        log = shard_log()
        log.retried("class-0002-shard-000000", "worker died at s3://me:pw@host", 2)
        log.failed("class-0002-shard-000000", "no memory", 2)
        log.done("class-0003-shard-000000", 0, 0.0)  # was there already
    (path,) = (tmp_path / "shards").iterdir()
    assert path.name.startswith("r1.")
    told = [check_line(line) for line in path.read_text().splitlines()]
    assert [(one.event, one.run_id, one.stage) for one in told] == [
        ("shard_done", "r1", "synthesize"),
        ("shard_done", "r1", "synthesize"),
        ("shard_retried", "r1", "synthesize"),
        ("shard_failed", "r1", "synthesize"),
        ("shard_done", "r1", "synthesize"),
    ]
    pids = {one.fields["worker"]["pid"] for one in told}
    assert len(pids) == 3
    assert told[0].fields["worker"]["host"] == socket.gethostname()
    assert told[0].fields["worker"]["memory_bytes"]["process"] > 1_000_000
    assert "pw" not in path.read_text()
    tally = ShardTally(tmp_path, "r1")
    tally.update()
    assert (tally.done, tally.failed, tally.retried, tally.images) == (2, 1, 1, 8)


def test_a_tally_counts_no_line_twice_and_none_of_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.shard_log.SHARD_BYTES", 2000)
    tally = ShardTally(tmp_path, "r1")
    with run_environment("r2", tmp_path):
        shard_log().done("other", 4, 0.1)
    with run_environment("r1", tmp_path):
        for number in range(8):
            shard_log().done(f"class-0000-shard-{number:06d}", 4, 0.1)
            tally.update()
    assert len(list((tmp_path / "shards").glob("r1.*"))) == 2  # the file was full once
    assert tally.done == 8
    assert len(read_lines(next((tmp_path / "shards").glob("r1.*.1.jsonl")))) < 8


def test_outside_of_a_run_and_on_a_full_disk_a_shard_is_done_all_the_same(tmp_path):
    assert shard_log().path is None
    shard_log().done("a", 4, 0.1)
    (tmp_path / "shards").write_text("a file")
    with run_environment("r1", tmp_path):
        shard_log().done("a", 4, 0.1)
    assert (tmp_path / "shards").read_text() == "a file"


def test_a_process_is_alive_until_it_ends_and_never_by_its_number_alone():
    own = this_process()
    assert own.alive() is True
    assert replace(own, process_started=own.process_started - 60).alive() is False
    assert replace(own, host="elsewhere").alive() is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert replace(own, pid=ended.pid).alive() is False
