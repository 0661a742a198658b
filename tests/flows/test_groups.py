"""Small programs in place of the real ones: what ends when, and in which order."""

import os
import signal
import sys
import threading

import psutil
import pytest

from flows import groups
from flows.groups import Program, need_alive, start, stopped_at_the_end, wait_until_up
from pipeline.errors import StageError

SLEEP = "import time; time.sleep(60)"
# A run: on a polite kill it writes down whether its worker still lives.
RUN = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def end(*_):
    time.sleep(0.3)
    os.kill(int((folder / "worker").read_text()), 0)
    (folder / "saved").write_text("the worker lives")
    sys.exit()
signal.signal(signal.SIGTERM, end)
(folder / "run").write_text(str(os.getpid()))
time.sleep(60)
"""
DEAF = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1], "run").write_text(str(os.getpid()))
time.sleep(60)
"""
# Like Prefect's worker: a run in a session of its own, killed when the worker is interrupted.
WORKER = """
import os, subprocess, sys
from pathlib import Path
folder, run = Path(sys.argv[1]), sys.argv[2]
(folder / "worker").write_text(str(os.getpid()))
child = subprocess.Popen([sys.executable, "-c", run, str(folder)], start_new_session=True)
try:
    child.wait()
    sys.stdin.read() or __import__("time").sleep(60)
except KeyboardInterrupt:
    child.kill()
"""


@pytest.fixture
def said():
    return []


def code(name, text, *arguments, ready=lambda: True, mark=""):
    return Program(name, "here", (sys.executable, "-c", text, *arguments), ready, mark=mark)


def worker(folder, run):
    return code(
        "worker",
        WORKER,
        str(folder),
        run,
        ready=(folder / "run").is_file,
        mark=f"test-{os.getpid()}-{folder.name}",
    )


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_pid(folder):
    return int((folder / "run").read_text())


def test_what_dies_is_named_with_its_last_words_and_the_others_are_stopped(tmp_path, said):
    def go():
        with stopped_at_the_end(said.append) as children:
            pids.append(start(code("A", SLEEP), children, tmp_path / "logs").process.pid)
            start(dying, children, tmp_path / "logs").process.wait()
            need_alive(children)

    dying, pids = code("B", "print('why'); print(); raise SystemExit(3)"), []
    with pytest.raises(StageError, match=r"^B ended by itself \(exit status 3\).*line: why; see"):
        go()
    assert not lives(pids[0])
    assert (tmp_path / "logs/ui-b.log").read_text() == "why\n\n"


def test_what_ends_by_itself_may_but_not_with_a_failure(tmp_path, said):
    with stopped_at_the_end(said.append) as children:
        once = start(code("once", "print('done')", ready=None), children, tmp_path)
        wait_until_up([once], children)
        need_alive(children)
        bad = start(code("bad", "raise SystemExit('no')", ready=None), children, tmp_path)
        with pytest.raises(StageError, match=r"bad ended by itself \(exit status 1\).*line: no;"):
            wait_until_up([bad], children)


def test_what_is_not_up_in_time_is_named(tmp_path, said, monkeypatch):
    monkeypatch.setattr(groups, "START_SECONDS", 0.5)
    with stopped_at_the_end(said.append) as children:
        mute = start(code("B", SLEEP, ready=lambda: False), children, tmp_path)
        with pytest.raises(StageError, match="^B was not up within 0 s; see .*ui-b.log"):
            wait_until_up([mute], children)


def test_a_variable_can_be_given_and_taken_away(tmp_path, said, monkeypatch):
    monkeypatch.setenv("TAKEN", "x")
    text = "import os; print(os.environ.get('TAKEN'), os.environ['GIVEN'])"
    program = Program("p", "", (sys.executable, "-c", text), None, {"TAKEN": None, "GIVEN": "y"})
    with stopped_at_the_end(said.append) as children:
        wait_until_up([start(program, children, tmp_path)], children)
    assert (tmp_path / "ui-p.log").read_text() == "None y\n"


def test_the_stubborn_are_killed(tmp_path, said, monkeypatch):
    monkeypatch.setattr(groups, "STOP_SECONDS", 0.3)
    deaf = (
        "import pathlib, signal, sys, time\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    up = tmp_path / "up"
    with stopped_at_the_end(said.append) as children:
        child = start(code("A", deaf, str(up), ready=up.is_file), children, tmp_path)
        wait_until_up([child], children)
    assert child.process.returncode == -signal.SIGKILL


def test_a_polite_kill_stops_all(tmp_path, said):
    def go():
        with stopped_at_the_end(said.append) as children:
            pids.append(start(code("A", SLEEP), children, tmp_path).process.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    pids, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert not lives(pids[0])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_is_asked_first_while_its_worker_and_the_servers_live(tmp_path, said):
    with stopped_at_the_end(said.append) as children:
        start(code("A", SLEEP), children, tmp_path)
        wait_until_up([start(worker(tmp_path, RUN), children, tmp_path)], children)
    assert (tmp_path / "saved").read_text() == "the worker lives"
    assert said == [
        "1 run at work: it has 30 s to save where it stands (Ctrl-C again: kill it now)"
    ]
    assert not any(lives(pid) for pid in [run_pid(tmp_path), *(c.process.pid for c in children)])


def test_a_run_that_does_not_end_in_time_is_killed(tmp_path, said, monkeypatch):
    monkeypatch.setattr(groups, "RUN_SECONDS", 0.3)
    monkeypatch.setattr(groups, "TELL_SECONDS", 0.1)
    with stopped_at_the_end(said.append) as children:
        wait_until_up([start(worker(tmp_path, DEAF), children, tmp_path)], children)
    assert said[1:] == ["the run did not end in time; it is killed"]
    assert not lives(run_pid(tmp_path))


def test_a_run_whose_worker_was_killed_is_found_and_asked(tmp_path, said):
    def go():
        with stopped_at_the_end(said.append) as children:
            child = start(worker(tmp_path, orphan), children, tmp_path)
            wait_until_up([child], children)
            child.process.kill()
            child.process.wait()
            need_alive(children)

    orphan = RUN.replace("os.kill(int((folder", "# os.kill(int((folder")
    with pytest.raises(StageError, match=r"^worker ended by itself \(exit status -9\)"):
        go()
    assert (tmp_path / "saved").is_file()
    assert not lives(run_pid(tmp_path))


# The interruption may come while psutil reads a file, which then nobody closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_again_kills_at_once(tmp_path):
    def press_again(text):
        said.append(text)
        if "Ctrl-C again" in text:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    def go():
        with stopped_at_the_end(press_again) as children:
            child = start(worker(tmp_path, DEAF), children, tmp_path)
            pids.append(child.process.pid)
            wait_until_up([child], children)
            raise KeyboardInterrupt

    said, pids = [], []
    with pytest.raises(KeyboardInterrupt):
        go()
    assert said[1:] == ["killing what is left"]
    assert not any(lives(pid) for pid in [run_pid(tmp_path), *pids])
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
