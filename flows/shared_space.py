"""The space that a flow and its shard workers share, by `execution.shared_url`."""

from pathlib import Path

from pipeline.params import Execution
from pipeline.storage.locations import open_location
from pipeline.synthesis.jobs import ShardJob
from pipeline.synthesis.leasing import run_id_of
from pipeline.synthesis.spaces import FolderSpace, Space, UrlSpace


def publish_job(job: ShardJob, folder: Path, execution: Execution) -> Space:
    """Put a job where workers find it, and return that space.

    Args:
        job: of the shards.
        folder: where the stage wants them.
        execution: says what is shared: a URL, or the folder itself.

    Raises:
        InputError: the URL cannot be used.
        StageError: the store fails.
    """
    space: Space = FolderSpace(folder)
    if execution.shared_url is not None:
        space = UrlSpace(open_location(execution.shared_url), run_id_of(folder), folder)
    space.publish(job)
    return space
