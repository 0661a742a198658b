"""What a check reports, and how it is written, read and told.

Imports nothing but the small helpers: the report reads findings without what made them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pipeline.errors import StageError
from pipeline.folders import write_bytes

CHECKS = "checks.json"
MAX_EXAMPLES = 20
_VERSION = 1
_MAX_BYTES = 16 << 20

Severity = Literal["error", "warning", "info"]
_RANK: dict[str, int] = {severity: rank for rank, severity in enumerate(get_args(Severity))}


@dataclass(frozen=True)
class Example:
    """One image that a check found.

    Attributes:
        name: of the item, as its source names it.
        id: digest of its pixels.
        detail: what was found in this very image.
        other_id: the image that it is found with, if any.
    """

    name: str
    id: str
    detail: str
    other_id: str | None = None


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: stable name.
        severity: `error`: the run will stop or its answer be worthless; `warning`: look at it;
            `info`: good to know.
        count: how many images, pairs, groups or classes, as the message says.
        message: what was found, in one sentence.
        action: what Replenish does about it, and what the user can do.
        examples: at most `MAX_EXAMPLES`, the plainest first.
    """

    check: str
    severity: Severity
    count: int
    message: str
    action: str
    examples: tuple[Example, ...] = ()


class Aside(NamedTuple):
    """A row that must be quarantined: its index, a stable reason, and what was found in it."""

    row: int
    reason: str
    detail: str


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, the gravest first, then by name."""
    return tuple(sorted(findings, key=lambda one: (_RANK[one.severity], one.check, one.message)))


def finding_notes(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return a line for the log for each finding that is an error or a warning."""
    return tuple(
        f"prepare: {one.severity}: {one.message}; {one.action}"
        for one in ordered(findings)
        if one.severity != "info"
    )


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write the findings as JSON: same findings, same bytes."""
    data = {"version": _VERSION, "findings": [asdict(one) for one in ordered(findings)]}
    write_bytes(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def read_findings(path: Path) -> tuple[Finding, ...]:
    """Return what `write_findings` wrote.

    Raises:
        StageError: the file is missing, larger than 16 MiB, or damaged.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']!r}, not {_VERSION}")
        return tuple(_finding(one) for one in data["findings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StageError(
            f"{path}: findings not readable ({type(error).__name__}: {error}); run the stage "
            f"`{path.parent.name}` again"
        ) from None


def _finding(data: dict[str, Any]) -> Finding:
    if data["severity"] not in _RANK:
        raise ValueError(f"unknown severity {data['severity']!r}")
    texts = [data[key] for key in ("check", "message", "action")]
    examples = tuple(Example(**one) for one in data["examples"][:MAX_EXAMPLES])
    for one in examples:
        texts += [one.name, one.id, one.detail, one.other_id or ""]
    if not all(isinstance(text, str) for text in texts) or type(data["count"]) is not int:
        raise TypeError("a value of another type than expected")
    return Finding(**{**data, "examples": examples})
