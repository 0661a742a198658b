import io

import pytest

from pipeline.tracking.console import ConsoleTracker, seconds_text


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fail_after(clock, seconds):
    clock.now += seconds
    raise RuntimeError


@pytest.fixture
def clock():
    return Clock()


def play(tracker, clock, dones, total, seconds_each, task="train"):
    for done in dones:
        tracker.progress(task, done, total, "steps")
        clock.now += seconds_each


def test_plain_lines_give_count_rate_and_time_left(clock):
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, clock)
    tracker.progress("train", 0, 2500, "steps")
    clock.now += 6
    tracker.progress("train", 1200, 2500, "steps")
    assert stream.getvalue() == "train: 1,200 of 2,500 steps, 200 steps/s, 6.5 s left\n"


def test_plain_lines_are_five_seconds_apart_and_the_last_always_comes(clock):
    stream = io.StringIO()
    play(ConsoleTracker(stream, clock), clock, range(131), 130, 0.125)
    lines = stream.getvalue().splitlines()
    assert [line.split(" of ")[0][7:] for line in lines] == ["40", "80", "120", "130"]


def test_short_work_says_nothing(clock):
    stream = io.StringIO()
    play(ConsoleTracker(stream, clock), clock, range(11), 10, 0.1)
    assert stream.getvalue() == ""


def test_the_rate_of_resumed_work_counts_from_where_it_resumed(clock):
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, clock)
    tracker.progress("train", 1000, 2000, "steps")
    clock.now += 10
    tracker.progress("train", 1100, 2000, "steps")
    assert "1,100 of 2,000 steps, 10 steps/s, 1 min 30 s left" in stream.getvalue()


def test_a_task_that_starts_again_is_paced_anew(clock):
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, clock)
    play(tracker, clock, [0, 50], 100, 10)
    play(tracker, clock, [0, 10], 100, 10)
    assert (
        stream.getvalue().splitlines()[-1] == "train: 10 of 100 steps, 1 steps/s, 1 min 30 s left"
    )


def test_a_stage_says_its_seconds_also_when_it_fails(clock):
    stream = io.StringIO()
    tracker = ConsoleTracker(stream, clock)
    with tracker.stage("prepare"):
        clock.now += 75
    with pytest.raises(RuntimeError), tracker.stage("train"):
        fail_after(clock, 3)
    assert stream.getvalue().splitlines() == [
        "prepare: begins",
        "prepare: done in 1 min 15 s",
        "train: begins",
        "train: stopped after 3.0 s",
    ]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_user_text_is_shown_and_not_acted_upon(stream, clock):
    with ConsoleTracker(stream, clock) as tracker:
        tracker.note("[red]cat[/red] \x1b[2Jgone [link=x]")
    assert "[red]cat[/red] \\x1b[2Jgone [link=x]" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_taken_away(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ConsoleTracker(stream, clock) as tracker:
        play(tracker, clock, [0, 30, 60], 100, 3, task="[b]odd[/b]")
        assert "[b]odd[/b]" in stream.getvalue()
        tracker.progress("[b]odd[/b]", 100, 100, "steps")
    assert "100 of 100 steps" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_leaving_stops_unfinished_bars(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ConsoleTracker(stream, clock) as tracker:
        play(tracker, clock, [0, 1, 2], 100, 3)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_standard_error_is_the_default(capsys, clock):
    ConsoleTracker(clock=clock).note("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_narrow_encoding_and_a_closed_stream_do_not_end_the_work(clock):
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="ascii")
    tracker = ConsoleTracker(narrow, clock)
    tracker.note("Käse")
    assert raw.getvalue() == b"K\\xe4se\n"
    narrow.close()
    tracker.note("more")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert seconds_text(seconds) == text
