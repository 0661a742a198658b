"""Which workers a flow lends to the stages it runs, by `execution.backend`."""

from contextlib import AbstractContextManager, nullcontext

from pipeline.params import Execution
from pipeline.synthesis.remote import lend_executor


def lent_workers(execution: Execution) -> AbstractContextManager[None]:
    """Return a context in which stages send their shards where the params say."""
    if execution.backend == "prefect":
        from flows.prefect_carrier import prefect_executor

        return lend_executor(prefect_executor)
    if execution.backend == "ray":
        from flows.ray_carrier import ray_executor  # Ray is an extra, and large

        return lend_executor(ray_executor)
    return nullcontext()
