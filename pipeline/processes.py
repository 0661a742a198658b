"""What every worker process does first: it neither outlives its parent nor talks over it."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from multiprocessing import connection, parent_process
from typing import TypeVar

import psutil

PARENT = "REPLENISH_PARENT"  # variable: process without which the launched ones are to end
_LOOK_SECONDS = 1.0

T = TypeVar("T")
R = TypeVar("R")


def begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def end_with_launcher() -> None:
    """End when the process that launched this one, through others, is gone; see PARENT."""
    number = os.environ.get(PARENT, "")
    if number.isdigit():
        threading.Thread(target=_end_with, args=(int(number),), daemon=True).start()


def in_order(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield the results in the order of the items, of which at most `ahead` are under way."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _end_with(process: int) -> None:
    while psutil.pid_exists(process):
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
