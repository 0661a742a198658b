"""Shards on other workers: a real Prefect server with its workers, and a Ray cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from e2e.servers import PrefectServer, start_server, wait_until
from support import need

from flows.form import KEYS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
STAGES = ("prepare", "pretrain", "train", "synthesize", "evaluate", "assemble")
_CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
MORE = {"images_per_class": 24, "sampler_steps": 40, "adapt_below": 0.0, "max_rounds": 1}


def digests(artifacts: Path) -> dict[str, str]:
    return {
        name: json.loads((artifacts / name / "manifest.json").read_text())["digest"]
        for name in STAGES
    }


@pytest.fixture(scope="module")
def busy(project: Any) -> Any:
    """The small project, with enough shards to be killed among them; and what one process makes."""
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    params["synthesize"].update(MORE)
    (project.folder / "params.yaml").write_text(yaml.safe_dump(params))
    project.python("-m", "pipeline", "run", "--no-mlflow", "--artifacts", "inline")
    for artifacts in ("by-prefect", "by-ray"):  # shards are all that the backends differ in
        for stage in ("prepare", "pretrain", "train"):
            shutil.copytree(project.folder / "inline" / stage, project.folder / artifacts / stage)
    return project


@pytest.fixture(scope="module")
def server(busy: Any) -> Iterator[PrefectServer]:
    with start_server(busy) as running:
        busy.run(sys.executable, "-m", "pipeline", "bootstrap", environment=running.environment)
        yield running


@pytest.fixture
def tab() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    need(_CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_CHROMIUM), args=_FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB")
        context.set_default_timeout(120_000)
        yield context.new_page()
        browser.close()


def shard_process(worker: subprocess.Popen[bytes]) -> psutil.Process | None:
    """Return the process of a worker that runs a flow, if one does."""
    for process in psutil.Process(worker.pid).children(recursive=True):
        try:
            if "PREFECT__FLOW_RUN_ID" in process.environ():
                return process
        except psutil.Error:
            continue
    return None


def kill_all(process: psutil.Process) -> None:
    for one in (process, *process.children(recursive=True)):
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def test_nobody_to_draw_is_said_soon(busy: Any, server: PrefectServer) -> None:
    command = (sys.executable, "-m", "flows.augment", "--no-mlflow", "--artifacts", "inline")
    wanted = ("--set", "execution.backend=prefect", "--set", "synthesize.images_per_class=2")
    done = busy.run(
        *(*command, *wanted, "--set", "execution.work_pool=nowhere"),
        status=2,
        environment=server.environment,
    )
    assert "execution.work_pool = nowhere: the Prefect server at" in done.stderr
    assert "replenish bootstrap" in done.stderr
    assert "Task run" not in done.stderr  # it is said before any work
    done = busy.run(*command, *wanted, status=1, environment=server.environment)
    assert "no worker of the work pool 'replenish-gpu' is online yet" in done.stderr
    assert "is online (waited 3" in done.stderr
    assert "prefect worker start --pool replenish-gpu" in done.stderr


def test_two_workers_one_killed_and_the_same_digest(busy: Any, server: PrefectServer) -> None:
    server.worker("replenish")
    first, second = server.worker("replenish-gpu"), server.worker("replenish-gpu")
    run = server.start_run(
        "augment/nightly",
        {
            "artifacts": "by-prefect",
            "mlflow": False,
            "changes": {"where": {"backend": "prefect", "workers": 2}},
            "more": ["execution.silent_seconds=10"],
        },
    )
    shards = busy.folder / "by-prefect" / ".work" / "synthesize"
    wait_until(lambda: shard_process(first) and shard_process(second), 300)
    doomed = shard_process(first)
    assert doomed is not None
    lease = server.parameters_of(doomed.environ()["PREFECT__FLOW_RUN_ID"])["lease"]
    wait_until(lambda: list(shards.glob(f"*/shards/beats/{lease}")), 120)
    kill_all(psutil.Process(first.pid))  # the worker and what it had started, as a machine dies
    state = server.finish(run, 600)
    assert state == "COMPLETED"
    assert digests(busy.folder / "by-prefect") == digests(busy.folder / "inline")
    # Both workers had been at it, and the killed lease is not left as if it ran.
    states = server.states("generate-shard")
    assert "RUNNING" not in states
    assert states.count("COMPLETED") >= 2
    assert {"CRASHED", "CANCELLED", "CANCELLING"} & set(states)
    log = server.logs_of(run)
    assert "go to another worker" in log
    assert not list((busy.folder / "by-prefect" / ".work").rglob("*.safetensors"))


@pytest.mark.browser
def test_prefects_page_has_the_form_and_the_verdict(
    busy: Any, server: PrefectServer, tab: Any
) -> None:
    command = (sys.executable, "-m", "flows.augment", "--no-mlflow", "--artifacts", "inline")
    busy.run(*command, environment=server.environment)
    root = str(server.api.base_url).removesuffix("/api/")
    deployment = server.get("/deployments/name/augment/on-demand")
    tab.goto(f"{root}/deployments/deployment/{deployment['id']}/run")
    tab.get_by_text("what to change against the params file").wait_for()
    shown = tab.inner_text("body")
    for key in KEYS:  # every field of the form, under the name that Prefect makes of it
        name = key.rpartition(".")[2].replace("_", " ").title()
        assert f"{name} (Optional)" in shown, key
    assert "parallel workers of sampling and comparison; 0 = one a core" in shown
    picture(tab, "prefect-form.png")
    run = server.post(
        "/flow_runs/filter",
        {"flows": {"name": {"any_": ["augment"]}}, "sort": "START_TIME_DESC", "limit": 1},
    )[0]
    tab.goto(f"{root}/runs/flow-run/{run['id']}")
    tab.get_by_text("Completed").first.wait_for()
    picture(tab, "prefect-run.png")
    tab.get_by_text("Artifacts", exact=True).click()
    for key in ("verdict", "arms", "links"):
        tab.get_by_text(key, exact=True).first.wait_for()
    tab.get_by_text("verdict", exact=True).first.click()
    tab.get_by_text("balanced accuracy by").first.wait_for()
    picture(tab, "prefect-verdict.png")


def picture(tab: Any, name: str) -> None:
    """Keep a picture where REPLENISH_PICTURES names a folder: the guide's come from here."""
    folder = os.environ.get("REPLENISH_PICTURES")
    if folder:
        tab.wait_for_timeout(3000)
        tab.screenshot(path=str(Path(folder) / name))


def test_ray_on_two_workers_gives_the_same_digest(busy: Any) -> None:
    busy.run(
        *(sys.executable, "-m", "flows.augment", "--no-mlflow", "--artifacts", "by-ray"),
        *("--set", "execution.backend=ray", "--set", "execution.workers=2"),
        environment={"RAY_ADDRESS": "", "RAY_DEDUP_LOGS": "0"},
    )
    assert digests(busy.folder / "by-ray") == digests(busy.folder / "inline")
