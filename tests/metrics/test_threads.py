import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline.device import usable_cores
from pipeline.metrics.threads import in_order, one_blas_thread


def blas_threads():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_blas_has_one_thread_inside_and_its_own_again_after_the_last_one_is_out():
    with threadpool_limits(2, user_api="blas"):
        with one_blas_thread():
            with one_blas_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert blas_threads() == {2}


def test_a_body_beside_another_one_leaves_no_limit_behind():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(30)

    with threadpool_limits(2, user_api="blas"):
        worker = threading.Thread(target=other)
        with one_blas_thread():
            worker.start()
            assert inside.wait(30)
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        leave.set()
        worker.join()
        assert blas_threads() == {2}
        with one_blas_thread():
            assert blas_threads() == {1}


def test_a_library_that_is_loaded_later_is_kept_to_one_thread_too():
    script = """
from threadpoolctl import threadpool_info, threadpool_limits
from pipeline.metrics.threads import one_blas_thread
with one_blas_thread():
    pass
before = len(threadpool_info())
import faiss
assert len(threadpool_info()) > before
with threadpool_limits(2), one_blas_thread():
    print({one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("{1}", "")


def test_results_come_in_order_and_items_are_taken_only_as_they_are_needed():
    taken = []

    def items():
        for one in range(200):
            taken.append(one)
            yield np.full((20, 20), float(one))

    found = in_order(lambda matrix: float((matrix @ matrix)[0, 0]), items())
    assert next(found) == 0.0
    assert len(taken) <= usable_cores() + 1
    assert list(found) == [20.0 * one**2 for one in range(1, 200)]


def test_an_error_in_the_work_comes_out():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda one: 1 / one, [1, 0]))
    assert list(in_order(abs, [])) == []
