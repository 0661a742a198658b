"""Progress for people: bars on a terminal, now and then a plain line anywhere else.

Text that comes from users (file names, class names, messages) may hold markup or control
characters; it is shown as it is written and never acted upon.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from pipeline.tracking.tracker import NullTracker

SHOW_AFTER_SECONDS = 2.0  # work shorter than this needs no progress display
LINE_EVERY_SECONDS = 5.0  # plain lines of one task are at least this far apart


def printable(text: str) -> str:
    r"""Return the text with control characters (escape sequences, too) written as `\x1b`."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def escape_markdown(text: object) -> str:
    """Return user text so that Markdown shows it as it is: one line, no markup, no HTML."""
    line = " ".join(printable(str(text)).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~$:@-])", r"\\\1", line)


def seconds_text(seconds: float) -> str:
    """Return a duration as people say it: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass
class Pace:
    """How far one task is, and how fast it goes since this process began it.

    Attributes:
        began: clock when the task was first heard of, in seconds.
        done_at_began: what was done by then: a resumed training starts above zero.
        said: clock of the last plain line, in seconds.
        bar: its bar, once it has one.
    """

    began: float
    done_at_began: int
    unit: str
    done: int
    total: int
    said: float
    bar: TaskID | None = None

    def text(self, now: float) -> str:
        """Return `1,200 of 2,500 steps, 210 steps/s, 6 s left`."""
        parts = [f"{self.done:,} of {self.total:,} {printable(self.unit)}"]
        gained, seconds = self.done - self.done_at_began, now - self.began
        if gained > 0 and seconds > 0:
            rate = gained / seconds
            shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            parts.append(f"{shown} {printable(self.unit)}/s")
            if self.done < self.total:
                parts.append(f"{seconds_text((self.total - self.done) / rate)} left")
        return ", ".join(parts)


class ConsoleTracker(NullTracker):
    """Shows stages, notes and progress on a stream. Use it as a context manager."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write to `stream` (standard error by default); `clock` returns seconds."""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._bars: Progress | None = None
        self._console = Console(file=self._stream, highlight=False)

    def __enter__(self) -> Self:
        """Return the tracker."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bars off the terminal."""
        self.close()

    def close(self) -> None:
        """Take the bars off the terminal and forget unfinished tasks."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._paces.clear()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker; says when the stage begins and how long it took."""
        began = self._clock()
        self.note(f"{name}: begins")
        ending = "stopped after"
        try:
            yield
            ending = "done in"
        finally:
            self.close()
            self.note(f"{name}: {ending} {seconds_text(self._clock() - began)}")

    def note(self, message: str) -> None:
        """See Tracker."""
        self._say(printable(message))

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        now = self._clock()
        pace = self._paces.get(task)
        if pace is None or done < pace.done:
            if pace is not None:
                self._drop_bar(pace)
            pace = self._paces[task] = Pace(now, done, unit, done, total, said=now)
        pace.done, pace.total = done, total
        last = done >= total
        if now - pace.began >= SHOW_AFTER_SECONDS:
            if self._console.is_terminal:
                self._draw(task, pace)
            elif last or now - pace.said >= LINE_EVERY_SECONDS:
                self._say(f"{printable(task)}: {pace.text(now)}")
                pace.said = now
        if last:
            if pace.bar is not None:
                self._say(f"{printable(task)}: {pace.text(now)}")
            self._drop_bar(pace)
            del self._paces[task]

    def _draw(self, task: str, pace: Pace) -> None:
        if self._bars is None:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _PaceColumn(self._clock),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        if pace.bar is None:
            pace.bar = self._bars.add_task(printable(task), total=pace.total, pace=pace)
        self._bars.update(pace.bar, completed=pace.done, total=pace.total)

    def _drop_bar(self, pace: Pace) -> None:
        if self._bars is not None and pace.bar is not None:
            self._bars.remove_task(pace.bar)
            pace.bar = None
            if not self._bars.tasks:
                self._bars.stop()
                self._bars = None

    def _say(self, line: str) -> None:
        # A closed pipe or a narrow encoding must not end hours of work.
        try:
            if self._console.is_terminal:
                self._console.print(Text(line), soft_wrap=True)
                return
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass


class _PaceColumn(TextColumn):
    """Count, rate and time left of a bar, in the words of the plain lines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        super().__init__("")

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        return Text(pace.text(self._clock()))
