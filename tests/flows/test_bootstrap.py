from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule

from flows import bootstrap
from flows.announce import UPDATED
from flows.bootstrap import POOLS, automations, set_up
from flows.server import server_client
from pipeline.errors import InputError, StageError

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())


@pytest.fixture
def client(server):
    with server_client() as client:
        yield client


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with prefect.yaml; deploying makes `on-demand` alone, its schedule switched off."""
    (tmp_path / "prefect.yaml").write_text("name: x\n")
    monkeypatch.setattr(bootstrap, "_deploy", deploy)
    return tmp_path


def deploy(client, _folder):
    flow_id = client.create_flow_from_name("augment")
    schedule = {"schedule": CronSchedule(cron="0 2 * * *"), "active": False, "slug": "nightly"}
    client.create_deployment(
        flow_id, "on-demand", tags=["replenish"], work_pool_name="replenish", schedules=[schedule]
    )
    return "deployed"


def state_of(client):
    """All that bootstrap is in charge of, with ids."""
    pools = [client.read_work_pool(pool.name) for pool in POOLS]
    queues = [
        (queue.id, queue.name, queue.priority)
        for pool in POOLS
        for queue in client.read_work_queues(work_pool_name=pool.name)
    ]
    automations = [
        (one.id, one.description, one.enabled)
        for one in client.read_automations()
        if one.name.startswith("replenish: ")
    ]
    schedules = client.read_deployment_by_name("augment/on-demand").schedules
    return (
        [(one.id, one.concurrency_limit, one.type) for one in pools],
        sorted(queues, key=str),
        sorted(automations, key=str),
        [(one.slug, one.active) for one in schedules],
    )


def test_it_makes_pools_queues_and_automations_and_again_changes_nothing(client, project):
    lines = set_up(client, project)
    assert "work pool replenish: made" in lines
    assert "  queue scheduled: made, priority 2" in lines
    assert "automation replenish: clear runs of dead workers: made" in lines
    before = state_of(client)
    assert [(limit, kind) for _, limit, kind in before[0]] == [(1, "process"), (None, "process")]
    assert len(before[2]) == 3
    lines = set_up(client, project)
    assert [line for line in lines if ": made" in line or ": brought" in line] == []
    assert state_of(client) == before


def test_what_people_have_changed_stays(client, project):
    set_up(client, project)
    deployment = client.read_deployment_by_name("augment/on-demand")
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=True)
    (zombies,) = client.read_automations_by_name("replenish: clear runs of dead workers")
    client.pause_automation(zombies.id)
    before = state_of(client)
    set_up(client, project)
    assert state_of(client) == before
    assert before[3][0][1] is True
    assert (zombies.id, False) in [(one[0], one[2]) for one in before[2]]
    client.resume_automation(zombies.id)


def test_an_automation_of_an_older_version_is_brought_up_to_date(client, project):
    set_up(client, project)
    (found,) = client.read_automations_by_name("replenish: clear runs of dead workers")
    wanted = automations(client.read_deployment_by_name("augment/on-demand").id)[0]
    sooner = wanted.trigger.model_copy(update={"within": timedelta(seconds=10)})
    client.update_automation(found.id, wanted.model_copy(update={"trigger": sooner}))
    lines = set_up(client, project)
    assert "automation replenish: clear runs of dead workers: brought up to date" in lines
    (now,) = client.read_automations_by_name("replenish: clear runs of dead workers")
    assert (now.id, now.trigger.within) == (found.id, timedelta(seconds=90))


def test_without_prefect_yaml_nothing_is_made(client, tmp_path):
    with pytest.raises(InputError, match=r"prefect\.yaml: no such file; run `replenish bootstrap`"):
        set_up(client, tmp_path)


def test_a_deployment_that_fails_is_told_with_what_prefect_said(client, tmp_path):
    (tmp_path / "prefect.yaml").write_text("deployments: 3\n")
    with pytest.raises(StageError, match=r"prefect deploy --all failed \(exit status 1\)"):
        bootstrap._deploy(client, tmp_path)


def test_only_runs_with_our_tag_are_cleared_after_three_beats(client, project):
    set_up(client, project)
    zombies, stuck, new_data = automations(client.read_deployment_by_name("augment/on-demand").id)
    for one in (zombies, stuck):
        assert one.trigger.match_related.root == {
            "prefect.resource.role": "tag",
            "prefect.resource.id": "prefect.tag.replenish",
        }
    frequencies = {
        one["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        for one in FILE["deployments"]
    }
    assert frequencies == {"30"}
    assert zombies.trigger.within == timedelta(seconds=3 * 30)
    assert new_data.trigger.expect == {UPDATED}


def test_deployments_have_tags_queues_and_words_and_their_schedules_are_off():
    queues = {pool.name: set(pool.queues) for pool in POOLS}
    for one in FILE["deployments"]:
        assert "replenish" in one["tags"]
        assert len(one["description"]) > 40
        assert one["work_pool"]["work_queue_name"] in queues[one["work_pool"]["name"]]
        file, _, function = one["entrypoint"].partition(":")
        assert f"def {function}(" in (ROOT / file).read_text()
        for schedule in one.get("schedules", []):
            assert schedule["slug"]
            assert schedule["active"] is False
        assert "concurrency_limit" not in one
    assert [one["name"] for one in FILE["deployments"]] == [
        *("on-demand", "nightly", "generate-shard", "sweep", "retention")
    ]
