"""What Prefect costs: a flow against the plain command, and workers against plain processes.

`python benchmarks/orchestration.py --json FILE`, by turns in one run:

1. `python -m flows.augment` against `python -m pipeline run`, the same small params, each from an
   empty folder: `flow_seconds_over_run`, and that the digests are the same.
2. Shards of an untrained network, drawn by two workers of a Prefect work pool (a server and workers
   of its own) against the same shards drawn by two plain processes, half each, start and all:
   `worker_throughput_ratio`, and `seconds_a_shard` of orchestration.

`--quick` takes one turn and fewer shards, in two minutes on an idle machine.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import httpx
import typer
import yaml

ROOT = Path(__file__).parents[1]
POOL = "replenish-gpu"
SIDE_PX, IMAGES, WORKERS = 28, 16, 2

_SMALL: dict[str, dict[str, Any]] = {
    "train": {"steps": 120},
    "synthesize": {"images_per_class": 20, "max_rounds": 2},
    "evaluate": {"arms": ["real", "real_augmented", "mixed"], "seeds": 2, "steps": 60},
}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the results.")] = None,
    shards: Annotated[int, typer.Option(min=4, help="Of 16 images each, in part 2.")] = 96,
    turns: Annotated[int, typer.Option(min=1, help="Times that each is timed.")] = 3,
    quick: Annotated[bool, typer.Option(help="A small part, in two minutes.")] = False,
) -> None:
    """Time both parts and print how they compare."""
    if quick:
        shards, turns = 32, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {"shards": shards, "turns": turns}
        result |= _flows(folder, turns)
        with _server(folder) as environment:
            result |= _workers(folder, environment, shards, turns)
    typer.echo(json.dumps(result, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _flows(folder: Path, turns: int) -> dict[str, Any]:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in _SMALL.items():
        params[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect")}
    environment.pop("PREFECT_API_URL", None)
    seconds: dict[str, list[float]] = {"run": [], "flow": []}
    for turn in range(turns):
        digests = []
        for name, module in (("run", ("pipeline", "run")), ("flow", ("flows.augment",))):
            artifacts = folder / f"{name}-{turn}"
            start = perf_counter()
            _call((*_python(), *module, "--artifacts", str(artifacts)), folder, environment)
            seconds[name].append(perf_counter() - start)
            typer.echo(f"{name}: {seconds[name][-1]:.1f} s", err=True)
            manifest = (artifacts / "assemble" / "manifest.json").read_text(encoding="utf-8")
            digests.append(json.loads(manifest)["digest"])
        if len(set(digests)) > 1:
            raise RuntimeError("the flow and the command gave different digests")
    run, flow = (statistics.median(seconds[name]) for name in ("run", "flow"))
    return {
        "run_seconds": run,
        "flow_seconds": flow,
        "flow_seconds_over_run": flow - run,
        "flow_allowed_over_run": 0.1 * run + 15,
    }


def _workers(folder: Path, environment: dict[str, str], shards: int, turns: int) -> dict[str, Any]:
    os.environ.update(environment)  # before Prefect is imported, which reads it
    from prefect.client.orchestration import get_client

    from flows.prefect_carrier import PrefectCarrier
    from pipeline.synthesis.job_files import write_job
    from pipeline.synthesis.leasing import LeasingExecutor
    from pipeline.synthesis.shards import Shard
    from pipeline.synthesis.spaces import FolderSpace

    job = _job(folder)
    plan = [Shard(0, number, IMAGES) for number in range(shards)]
    seconds: dict[str, list[float]] = {"processes": [], "workers": []}
    for turn in range(turns):
        plain = folder / f"processes-{turn}"
        write_job(plain, job)
        start = perf_counter()
        _plain_processes(plain, plan, folder, environment)
        seconds["processes"].append(perf_counter() - start)
        leased = folder / f"workers-{turn}"
        space = FolderSpace(leased)
        space.publish(job)
        start = perf_counter()
        carrier = PrefectCarrier(POOL, str(leased), get_client(sync_client=True))
        with LeasingExecutor(
            carrier, leased, space, lambda line: typer.echo(line, err=True)
        ) as executor:
            done = list(executor.run(plan))
        seconds["workers"].append(perf_counter() - start)
        for shard in plan:
            one, other = ((f / f"{shard.name}.sha256").read_text() for f in (plain, leased))
            if one != other:
                raise RuntimeError(f"{shard.name}: workers and processes drew different images")
        if len(done) != shards:
            raise RuntimeError(f"{len(done)} of {shards} shards came")
        for name, found in seconds.items():
            typer.echo(f"{name}: {found[-1]:.1f} s", err=True)
    plain_seconds, leased_seconds = (statistics.median(found) for found in seconds.values())
    return {
        "processes_images_per_second": shards * IMAGES / plain_seconds,
        "workers_images_per_second": shards * IMAGES / leased_seconds,
        "worker_throughput_ratio": plain_seconds / leased_seconds,
        "seconds_a_shard": max(0.0, leased_seconds - plain_seconds) * WORKERS / shards,
    }


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _job(folder: Path) -> Any:
    from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
    from pipeline.diffusion.guidance import Guidance
    from pipeline.diffusion.sampling import SamplerSettings
    from pipeline.diffusion.unet import Preset, build_unet
    from pipeline.synthesis.jobs import ShardJob
    from pipeline.synthesis.recipes import Recipe

    spec = GeneratorSpec(("a", "b"), SIDE_PX, "L", "cosine", "velocity", False, "", None)
    network = build_unet(SIDE_PX, "L", 2, Preset(32, 1), seed=0)
    digest = save_generator(folder / "generator", spec, network)
    settings = SamplerSettings("dpmsolver++", 20, Guidance(1.5))
    recipe = Recipe("as asked", folder / "generator", digest, settings)
    return ShardJob((recipe,), 0, "cpu", batch_images=IMAGES, shard_images=IMAGES)


def _plain_processes(job: Path, plan: list[Any], folder: Path, environment: dict[str, str]) -> None:
    code = (
        "import sys; "
        "from pipeline.synthesis.lease_worker import do_lease; "
        "from pipeline.synthesis.shards import Shard; "
        f"do_lease(sys.argv[1], [Shard(0, int(n), {IMAGES}) for n in sys.argv[3:]], "
        "sys.argv[2])"
    )
    running = []
    for number in range(WORKERS):
        own = [str(shard.number) for shard in plan[number::WORKERS]]
        command = (sys.executable, "-c", code, str(job), f"{number:02x}", *own)
        running.append(subprocess.Popen(command, cwd=folder, env=environment))
    if any(process.wait() for process in running):
        raise RuntimeError("a plain process failed")


@contextmanager
def _server(folder: Path) -> Iterator[dict[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PREFECT_HOME": str(folder / ".prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    (*_python(), "prefect", *command),
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        start("server", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        _wait(lambda: httpx.get(f"{url}/health", trust_env=False).status_code == 200)
        _call((*_python(), "pipeline", "bootstrap"), ROOT, environment)
        for number in range(WORKERS):
            start(f"worker-{number}", "worker", "start", "--pool", POOL, "--limit", "1")
        workers = f"{url}/work_pools/{POOL}/workers/filter"
        _wait(
            lambda: (
                len(httpx.post(workers, json={}, trust_env=False).raise_for_status().json())
                == WORKERS
            )
        )
        yield environment
    finally:
        for process in reversed(processes):
            for number in (signal.SIGINT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(15)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def _wait(ready: Any) -> None:
    for _ in range(600):
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        sleep(0.3)
    raise RuntimeError("the server or its workers did not start within three minutes")


def _python() -> tuple[str, str]:
    return sys.executable, "-m"


def _call(command: tuple[str, ...], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    typer.run(main)
