"""The one schema of every line in runs/: the logs of runs, of shards, and the index.

    {"time": "2026-01-31T09:30:00.123+00:00", "level": "info", "run_id": "...", "stage": "train",
     "event": "metrics", "fields": {"step": 3, "values": {"train/loss": 0.5}}}

docs/observability.md has the table of events; a test holds it equal to this module.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.tracking.secrets import clean

Level = Literal["debug", "info", "warning", "error"]

# Event -> its fields. A level is that of `LEVELS`, or else info.
EVENTS: dict[str, tuple[str, ...]] = {
    "run_begin": (
        "driver",
        "version",
        "host",
        "pid",
        "artifacts",
        "mlflow_run_id",
        "prefect_run_id",
    ),
    "run_end": ("seconds", "error", "message"),
    "stage_begin": (),
    "stage_end": ("seconds", "error", "message"),
    "params": ("values",),
    "metrics": ("step", "values"),
    "series": ("points",),
    "progress": ("task", "done", "total", "unit"),
    "note": ("message",),
    "warning": ("message",),
    "artifact": ("path", "name"),
    "image": ("path", "key", "step"),
    "model": ("name", "path", "tags"),
    "dataset": ("name", "digest", "rows", "context"),
    "arm": ("name", "params", "metrics"),
    "tags": ("values",),
    "shard_done": ("shard", "images", "seconds", "attempt", "sha256", "worker"),
    "shard_failed": ("shard", "message", "attempt", "worker"),
    "shard_retried": ("shard", "message", "attempt", "worker"),
    "stage_made": (
        "digest",
        "key",
        "manifest_md5",
        "settings_digest",
        "artifacts",
        "mlflow_run_id",
        "prefect_run_id",
        "started",
        "ended",
        "seconds",
        "resumed",
        "numbers",
        "memory_bytes",
    ),
    "stage_failed": (
        "error",
        "message",
        "artifacts",
        "mlflow_run_id",
        "prefect_run_id",
        "started",
        "ended",
        "seconds",
        "resumed",
        "memory_bytes",
    ),
}
LEVELS: dict[str, Level] = {
    "progress": "debug",
    "metrics": "debug",
    "warning": "warning",
    "shard_retried": "warning",
    "shard_failed": "error",
    "stage_failed": "error",
}


class Line(BaseModel):
    """One line.

    Attributes:
        time: when, in UTC.
        level: how much it matters.
        run_id: the run that it belongs to; empty where nobody gave one.
        stage: the stage at work; None between stages.
        event: a key of `EVENTS`.
        fields: exactly those of the event.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    time: AwareDatetime
    level: Level
    run_id: str
    stage: str | None
    event: str
    fields: dict[str, Any]

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.event not in EVENTS:
            raise ValueError(f"event {self.event!r} is not known")
        if set(self.fields) != set(EVENTS[self.event]):
            raise ValueError(f"fields of {self.event} are {', '.join(EVENTS[self.event])}")
        if self.time.utcoffset() != UTC.utcoffset(None):
            raise ValueError("the time is not in UTC")
        return self


def check_line(text: str) -> Line:
    """Return a line that keeps to the schema.

    Raises:
        InputError: it does not; the message says where.
    """
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"]) or "line"
        raise InputError(
            f"{where}: {first['msg']}; a line of runs/*.jsonl is as docs/observability.md says"
        ) from None


def line_text(
    run_id: str,
    stage: str | None,
    event: str,
    fields: Mapping[str, Any],
    now: datetime,
    level: Level | None = None,
) -> str:
    """Return a line as text, in ASCII: no text of a user's can break it, and no secret is in it."""
    line = {
        "time": now.astimezone(UTC).isoformat(timespec="milliseconds"),
        "level": level or LEVELS.get(event, "info"),
        "run_id": run_id,
        "stage": stage,
        "event": event,
        "fields": fields,
    }
    return json.dumps(clean(_finite(line)), allow_nan=False, default=_text)


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def _text(value: Any) -> Any:
    return clean(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # NumPy's scalars are numbers here too; `item` gives the plain one.
    item = getattr(value, "item", None)
    return _finite(item()) if callable(item) else value
