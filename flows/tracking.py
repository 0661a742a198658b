"""The Tracker of a flow: notes and, now and then, progress, as lines of the run's log."""

import logging
import time
from collections.abc import Callable

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from pipeline.tracking.console import Pace, printable
from pipeline.tracking.tracker import NullTracker

LINE_EVERY_SECONDS = 10.0

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class PrefectTracker(NullTracker):
    """Forwards notes and throttled progress to the logger of the task or flow at work."""

    def __init__(self, fallback: Log, clock: Callable[[], float] = time.monotonic) -> None:
        """Log to `fallback` where no run is at work (another thread, say)."""
        self._fallback = fallback
        self._clock = clock
        self._paces: dict[str, Pace] = {}

    def note(self, message: str) -> None:
        """See Tracker."""
        self._log().info("%s", printable(message))

    def progress(self, task: str, done: int, total: int, unit: str) -> None:
        """See Tracker."""
        now = self._clock()
        pace = self._paces.get(task)
        if pace is None or done < pace.done:
            pace = self._paces[task] = Pace(now, done, unit, done, total, said=now)
        pace.done, pace.total = done, total
        last = done >= total
        if last or now - pace.said >= LINE_EVERY_SECONDS:
            pace.said = now
            self._log().info("%s: %s", printable(task), pace.text(now))
        if last:
            del self._paces[task]

    def _log(self) -> Log:
        try:
            return get_run_logger()
        except MissingContextError:
            return self._fallback
