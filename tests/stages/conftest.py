"""Stages in tests use one thread: those of several test runs would fight over the cores."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread_a_stage():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.stages.contract.usable_cores", lambda: 1)
        yield
