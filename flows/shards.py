"""The flow `generate-shard`: one lease of shards, on a worker of the GPU pool.

The flow that synthesizes sends it; it draws into the folder that both share. One worker a GPU:

    CUDA_VISIBLE_DEVICES=0 prefect worker start --pool replenish-gpu --limit 1
    CUDA_VISIBLE_DEVICES=1 prefect worker start --pool replenish-gpu --limit 1
"""

from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from pipeline.errors import InputError, StageError
from pipeline.synthesis.lease_worker import do_lease
from pipeline.synthesis.shards import Shard

GENERATE_SHARD = "generate-shard"

_Count = Annotated[int, Field(ge=0, lt=2**40)]
_Lease = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{1,64}$",
        description="id of the lease; the run that sends the shards gives it",
    ),
]
_Shards = Annotated[
    list[tuple[_Count, _Count, _Count, _Count]],
    Field(
        min_length=1,
        max_length=4096,
        description="class, number, images and recipe of each shard to be drawn",
    ),
]


_RunId = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?$",
        description="id of the run that sends the shards, for the log of this worker",
    ),
]


@flow(name=GENERATE_SHARD, flow_run_name="shards-{lease}", validate_parameters=True)
def generate_shard(
    job: str, shards: _Shards, lease: _Lease = "0", run_id: _RunId = ""
) -> State[Any] | int:
    """Draw the shards of a lease that are not drawn yet.

    The flow `augment` sends these runs where `execution.backend` is `prefect`; by hand there is no
    need to.

    Args:
        job: folder or URL of the job and its shards, shared with the run that sends it.
        shards: class, number, images and recipe of each.
        lease: id that the beats of this run are known by.
        run_id: of the run that sends them.
    """
    logger = get_run_logger()
    wanted = [Shard(*one) for one in shards]
    logger.info("%d shards, from %s on, into %s", len(wanted), wanted[0].name, job)
    # A returned state carries the message alone: an error of the user's needs no traceback.
    try:
        do_lease(job, wanted, lease, run_id)
    except (InputError, StageError) as error:
        return Failed(message=str(error), data=error)
    return len(wanted)
