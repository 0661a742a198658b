"""Seconds a stage and peak memory of the whole flow: `python benchmarks/demo.py --json FILE`.

Runs `python -m flows.augment` in a folder of its own, as `make demo` does, and samples the
resident memory of the process and its children. `--quick` trains and compares a tenth of the steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

ROOT = Path(__file__).parents[1]
QUICK = ("train.steps=60", "evaluate.steps=25", "evaluate.seeds=2", "synthesize.judge_steps=25")


def main(
    params: Annotated[Path, typer.Option(help="Params file.")] = ROOT / "params.yaml",
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the steps.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Run the flow once and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "flows.augment", "--params", str(params.resolve())]
        command += ["--artifacts", str(Path(folder) / "artifacts")]
        for override in QUICK if quick else ():
            command += ["--set", override]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        running = subprocess.Popen(command, cwd=folder, env=environment)
        peak = 0
        while running.poll() is None:
            peak = max(peak, _resident_bytes(running.pid))
            time.sleep(0.2)
        seconds = time.monotonic() - began
        if running.returncode:
            raise SystemExit(running.returncode)
        figures = {
            "seconds": round(seconds, 1),
            "peak_mib": round(peak / 2**20),
            "stage_seconds": _stage_seconds(Path(folder) / "runs"),
        }
    text = json.dumps(figures, indent=2)
    typer.echo(text)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")


def _resident_bytes(pid: int) -> int:
    """Return the sum of the proportional memory of a process and its children."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
    except psutil.NoSuchProcess:
        return 0
    return total


def _stage_seconds(runs: Path) -> dict[str, float]:
    events = [
        json.loads(line)
        for path in sorted(runs.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {
        event["stage"]: round(event["fields"]["seconds"], 1)
        for event in events
        if event.get("event") == "stage_end"
    }


if __name__ == "__main__":
    typer.run(main)
