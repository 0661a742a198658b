"""`replenish bootstrap`: bring a Prefect server to what Replenish needs; again changes nothing.

Work pools with their queues, the deployments of prefect.yaml, and three automations. What a person
has changed since (limits, priorities, schedules switched on, automations switched off) stays.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from flows.announce import UPDATED
from flows.server import server_client
from pipeline.errors import InputError, StageError

PREFECT_FILE = Path("prefect.yaml")
TAG = "replenish"
ZOMBIE_SECONDS = 90  # three of the beats that prefect.yaml asks for
STUCK_SECONDS = 1800  # an image that a cluster has to fetch takes its time
_DEPLOY_SECONDS = 600
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed")


@dataclass(frozen=True)
class Pool:
    """A work pool.

    Attributes:
        name: of the pool.
        description: for its page.
        limit: runs at once; None = as many as its workers take.
        queues: queue -> priority, 1 first.
    """

    name: str
    description: str
    limit: int | None
    queues: dict[str, int]


POOLS = (
    Pool(
        "replenish",
        "Runs of the flow, one at a time: they use the whole machine and share a folder.",
        1,
        {"on-demand": 1, "scheduled": 2, "background": 3},
    ),
    Pool(
        "replenish-gpu",
        "Shards for execution.backend = prefect: one worker a GPU, each with --limit 1.",
        None,
        {"shards": 1},
    ),
)


def set_up(client: SyncPrefectClient, folder: Path) -> list[str]:
    """Make what is missing, and return what was done, a line each.

    Args:
        client: of the server.
        folder: the project folder, which holds prefect.yaml; runs will happen in it.

    Raises:
        InputError: there is no prefect.yaml.
        StageError: Prefect could not deploy it.
    """
    if not (folder / PREFECT_FILE).is_file():
        raise InputError(
            f"{folder / PREFECT_FILE}: no such file; run `replenish bootstrap` in the "
            "project folder"
        )
    lines = [line for pool in POOLS for line in _make_pool(client, pool)]
    with _schedules_as_they_were(client):
        lines.append(_deploy(client, folder))
    wanted = client.read_deployment_by_name("augment/on-demand").id
    return lines + [_make_automation(client, one) for one in automations(wanted)]


def _make_pool(client: SyncPrefectClient, pool: Pool) -> Iterator[str]:
    try:
        found = client.read_work_pool(pool.name)
        state = "there" if found.type == "process" else f"there, of the type {found.type}"
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=pool.name,
                description=pool.description,
                type="process",
                base_job_template=ProcessWorker.get_default_base_job_template(),
                concurrency_limit=pool.limit,
            )
        )
        state = "made"
    yield f"work pool {pool.name}: {state}"
    known = {queue.name for queue in client.read_work_queues(work_pool_name=pool.name)}
    for name, priority in pool.queues.items():
        if name not in known:
            client.create_work_queue(name, priority=priority, work_pool_name=pool.name)
        yield f"  queue {name}: {'there' if name in known else f'made, priority {priority}'}"


@contextmanager
def _schedules_as_they_were(client: SyncPrefectClient) -> Iterator[None]:
    """Leave schedules on or off as people set them; deploying sets what prefect.yaml says."""
    before = {key: schedule.active for key, _, schedule in _schedules(client)}
    yield
    for key, owner, schedule in _schedules(client):
        wanted = before.get(key, schedule.active)
        if wanted != schedule.active and schedule.id is not None:
            client.update_deployment_schedule(owner, schedule.id, active=wanted)


def _schedules(client: SyncPrefectClient) -> list[tuple[tuple[UUID, str], UUID, Any]]:
    """Return deployment and slug, the deployment, and the schedule; its id may change."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    return [
        ((deployment.id, str(schedule.slug)), deployment.id, schedule)
        for deployment in client.read_deployments(deployment_filter=ours, limit=200)
        for schedule in deployment.schedules
    ]


def _deploy(client: SyncPrefectClient, folder: Path) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    try:
        done = subprocess.run(  # noqa: S603 - its own program
            command,
            cwd=folder,
            env={**os.environ, "PREFECT_API_URL": str(client.api_url).rstrip("/")},
            capture_output=True,
            text=True,
            timeout=_DEPLOY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StageError(
            f"prefect deploy --all: not done after {_DEPLOY_SECONDS} s; is the server overloaded? "
            "Run `replenish bootstrap` again"
        ) from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise StageError(f"prefect deploy --all failed (exit status {done.returncode}):\n{said}")
    return f"deployments of {PREFECT_FILE}: up to date"


def automations(on_demand: UUID) -> list[AutomationCore]:
    """Return the automations that Replenish wants.

    Args:
        on_demand: id of the deployment that new data starts.
    """
    # Other people's runs beat more slowly, or not at all: only those with our tag count.
    ours = ResourceSpecification.model_validate(
        {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    )
    any_run = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
    ended = {f"prefect.flow-run.{state}" for state in _ENDED}
    waits = {f"prefect.flow-run.{state}" for state in ("Paused", "Suspended", "AwaitingRetry")}
    beat = "prefect.flow-run.heartbeat"
    return [
        AutomationCore(
            name="replenish: clear runs of dead workers",
            description=f"A run that has given no sign of life for {ZOMBIE_SECONDS} s is Crashed, "
            "so that its place in the work pool is free again.",
            trigger=EventTrigger(
                after={beat},
                expect={beat, *ended, *waits},
                match=any_run,
                match_related=ours,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=ZOMBIE_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"No sign of life for {ZOMBIE_SECONDS} s: its worker or process died. "
                    "Finished work is kept; run it again to go on.",
                )
            ],
        ),
        AutomationCore(
            name="replenish: clear runs that never began",
            description=f"A run that a worker took and did not begin within {STUCK_SECONDS} s is "
            "Crashed: the worker died in between.",
            trigger=EventTrigger(
                after={"prefect.flow-run.Pending"},
                expect={"prefect.flow-run.Running", *ended, *waits},
                match=any_run,
                match_related=ours,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=STUCK_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"Taken by a worker, and not begun after {STUCK_SECONDS} s.",
                )
            ],
        ),
        AutomationCore(
            name="replenish: new data starts a run",
            description="`replenish announce` and `python -m flows.watch` tell of new data; the "
            "deployment augment/on-demand runs on it.",
            trigger=EventTrigger(
                expect={UPDATED},
                match=ResourceSpecification.model_validate(
                    {"prefect.resource.id": "replenish.dataset.*"}
                ),
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=on_demand,
                    parameters={
                        "changes": {
                            "data": {
                                "source": "{{ event.payload.source }}",
                                "path": "{{ event.payload.path }}",
                            }
                        }
                    },
                )
            ],
        ),
    ]


def _make_automation(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return f"automation {wanted.name}: made"
    if _essence(found[0]) == _essence(wanted):
        return f"automation {wanted.name}: there"
    kept = wanted.model_copy(update={"enabled": found[0].enabled})
    client.update_automation(found[0].id, kept)
    return f"automation {wanted.name}: brought up to date"


def _essence(automation: AutomationCore) -> dict[str, Any]:
    told = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    for name in ("after", "expect", "for_each"):  # sets: their order means nothing
        told["trigger"][name] = sorted(told["trigger"][name])
    return told


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: replenish bootstrap, after: export PREFECT_API_URL=.../api")
def command(
    folder: Annotated[
        Path, typer.Option("--folder", help="Project folder, with prefect.yaml.", metavar="DIR")
    ] = Path(),
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something fails.")
    ] = False,
) -> None:
    """Set a Prefect server up: work pools, queues, deployments, automations. Again: no change."""
    with server_client() as client:
        typer.echo(f"Prefect server {client.api_url}")
        for line in set_up(client, folder.absolute()):
            typer.echo(line)
    typer.echo(
        "Next: prefect worker start --pool replenish --limit 1, then: "
        "prefect deployment run augment/on-demand"
    )
