"""Which workers a flow lends to the stages it runs, by `execution.backend`.

What draws images is imported by those who send shards alone: after each cancellation Prefect loads
the flow once more, to look for hooks, and diffusers would double the time that takes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from pipeline.params import Execution


def lent_workers(execution: Execution) -> AbstractContextManager[None]:
    """Return a context in which stages send their shards where the params say."""
    if execution.backend == "prefect":
        from flows.prefect_carrier import prefect_executor
        from pipeline.synthesis.remote import lend_executor

        return lend_executor(prefect_executor)
    if execution.backend == "ray":
        from flows.ray_carrier import ray_executor  # Ray is an extra, and large
        from pipeline.synthesis.remote import lend_executor

        return lend_executor(ray_executor)
    return nullcontext()


def check_workers(execution: Execution, warn: Callable[[str], None]) -> None:
    """Look for the workers before hours of training, not after.

    Args:
        execution: says which they are.
        warn: is told where none is there yet: there is time until they are needed.

    Raises:
        InputError: there is no such work pool or deployment, or Ray is not installed.
    """
    if execution.backend == "prefect":
        from flows.prefect_carrier import online_workers

        if not online_workers(execution.work_pool):
            warn(
                f"no worker of the work pool {execution.work_pool!r} is online yet; synthesize "
                f"will need one: prefect worker start --pool {execution.work_pool} --limit 1"
            )
    elif execution.backend == "ray":
        import flows.ray_carrier  # noqa: F401 - says what to install
