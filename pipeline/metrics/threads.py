"""All cores, with one BLAS thread in each: for many products and decompositions of middling size.

OpenBLAS splits one product over all cores and spins until the last is done, so that one other busy
process makes it wait at every step: with four others on two cores, the eigenvalues of a 512 x 512
matrix took 0.3 s and more on two threads, and 0.03 s on one. And a sum that is never split rounds
the same way on every machine.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import scipy.linalg  # noqa: F401 - it brings a BLAS of its own, which must be there to be limited
from threadpoolctl import threadpool_limits

from pipeline.device import usable_cores

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

_limiting = threading.Lock()  # held by the one body that has set the limit


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread for the body.

    The limit is the whole process's. A body inside another one, or beside one in another thread,
    leaves it as it is: OpenBLAS lets no thread raise again what the main thread has lowered, so
    whoever sets the limit has to lift it.
    """
    if not _limiting.acquire(blocking=False):
        yield
        return
    try:
        # Looked for each time (5 ms): faiss, for one, brings a BLAS of its own when it is loaded.
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        _limiting.release()


def in_order(work: Callable[[_Item], _Found], items: Iterable[_Item]) -> Iterator[_Found]:
    """Yield work(item) of each item, in their order, worked out on all cores at once.

    Args:
        work: may be called from several threads; should spend its time in NumPy.
        items: taken only as far ahead as there are cores.
    """
    cores = usable_cores()
    with one_blas_thread(), ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[_Found]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
