"""What `replenish status` shows: a few lines for people, or JSON for programs."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.params import Params
from pipeline.status import RunStatus, StageStatus, run_status
from pipeline.tracking.console import printable, seconds_text
from pipeline.tracking.identity import LOGS
from pipeline.tracking.index import Made, made_folders, read_index
from pipeline.tracking.lookup import find_made
from pipeline.tracking.schema import utc_now


def show_status(
    artifacts: Path,
    params: Params | None,
    say: Callable[[str], None],
    *,
    as_json: bool,
    every_seconds: float | None,
) -> None:
    """Say where the run stands; again and again, until it is interrupted, if `every_seconds`."""

    def look() -> str:
        status = run_status(artifacts, params, LOGS, utc_now())
        if as_json:
            indent = None if every_seconds else 2
            return json.dumps(status_object(status), indent=indent)
        return "\n".join(status_lines(status, utc_now()))

    if every_seconds is None:
        say(look())
        return
    console = Console()
    try:
        if as_json or not console.is_terminal:
            while True:
                say(look())
                time.sleep(every_seconds)
        with Live(Text(look()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every_seconds)
                live.update(Text(look()), refresh=True)
    except KeyboardInterrupt:
        return


def show_makers(wanted: str, artifacts: Path, say: Callable[[str], None], as_json: bool) -> None:
    """Say which runs made the folder that goes by a digest or id.

    Raises:
        InputError: see `pipeline.tracking.lookup.find_made`.
    """
    found = find_made(made_folders(read_index(LOGS)), wanted, artifacts, Path.cwd())
    if as_json:
        say(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    for one in found:
        for line in _maker_lines(one):
            say(line)


def status_lines(status: RunStatus, now: datetime) -> list[str]:
    """Return the status as lines of text."""
    lines = []
    if status.run_id:
        how = "at work" if status.alive else "ended" if status.ended else "was killed"
        since = f" since {_clock(status.since)}" if status.since and status.alive else ""
        lines.append(f"Run {printable(status.run_id)} ({printable(status.driver)}): {how}{since}")
    else:
        lines.append(f"{status.artifacts}: no run is known here")
    lines += [f"{one.name:<12}{one.state:<12}{_detail(one, now)}".rstrip() for one in status.stages]
    if status.alive:
        if status.expected_end is None:
            lines.append(f"Ends: unknown; {status.basis}")
        else:
            left = seconds_text(max(0.0, (status.expected_end - now).total_seconds()))
            lines.append(f"Ends: about {_clock(status.expected_end)}, in {left}; {status.basis}")
    elif status.remaining_seconds is None:
        lines.append(f"Left to do: unknown; {status.basis}")
    elif status.remaining_seconds > 0:
        lines.append(f"Left to do: {seconds_text(status.remaining_seconds)}; {status.basis}")
    return lines


def status_object(status: RunStatus) -> dict[str, Any]:
    """Return the status as plain data: times in ISO 8601, paths as text."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(status), default=_plain))
    return plain


def _detail(one: StageStatus, now: datetime) -> str:
    parts = []
    if one.state in ("running", "interrupted", "failed"):
        parts += [f"process {one.process}"] if one.state == "running" and one.process else []
        parts += [f"after {seconds_text(one.seconds)}"] if one.seconds is not None else []
        if one.step is not None:
            parts.append(_step(one, now))
        if one.part is not None:
            total = f" of {one.part.total:,}" if one.part.total else ""
            parts.append(f"on disk: {one.part.what} {one.part.done:,}{total}")
        if one.expected_end is not None:
            parts.append(f"ends about {_clock(one.expected_end)}")
        elif one.state == "running":
            parts.append("end unknown")
    elif one.since is not None:
        took = f" in {seconds_text(one.seconds)}" if one.seconds is not None else ""
        parts.append(f"made {_clock(one.since)}{took} by run {one.run_id}")
    elif one.usual is not None:
        parts.append(f"takes about {seconds_text(one.usual.seconds)}")
    parts += [one.reason] if one.reason else []
    return printable("; ".join(parts))


def _step(one: StageStatus, now: datetime) -> str:
    step = one.step
    if step is None:
        return ""
    text = f"{step.task}: {step.done:,} of {step.total:,} {step.unit}"
    if one.state == "running" and step.rate:
        rate = f"{step.rate:,.0f}" if step.rate >= 10 else f"{step.rate:.2g}"
        text += f", {rate} {step.unit}/s"
        if (end := step.ends(now)) is not None:
            text += f", {seconds_text((end - now).total_seconds())} left"
    return text


def _maker_lines(one: Made) -> list[str]:
    lines = [
        f"{one.stage} {one.digest}",
        f"  made {_clock(one.ended)} in {seconds_text(one.seconds)} at {one.artifacts}",
        f"  run      {one.run_id}",
    ]
    lines += [f"  MLflow   {one.mlflow_run_id}"] if one.mlflow_run_id else []
    lines += [f"  Prefect  {one.prefect_run_id}"] if one.prefect_run_id else []
    return [printable(line) for line in lines]


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
