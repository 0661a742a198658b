"""What the checks of the images found, with the pictures that they name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.checks.findings import CHECKS, Finding, read_findings
from pipeline.data.store import iterate_tables, read_info
from pipeline.report.gallery import data_address

EXAMPLE_BYTES = 500_000  # of all pictures, as base64
_SHOWN = 8  # examples of one finding
_NAME_CHARS = 80
_SPLITS = ("train", "validation", "test", "pool")


@dataclass(frozen=True)
class ShownExample:
    """One image that a check names.

    Attributes:
        name: as its source names it, shortened.
        detail: what was found in it.
        picture: `data:` address; empty where the image is set aside or found no room.
        other: that of the image it is found with, likewise.
    """

    name: str
    detail: str
    picture: str
    other: str


@dataclass(frozen=True)
class ShownFinding:
    """One row of the table of findings, and its examples."""

    severity: str
    count: int
    message: str
    action: str
    examples: tuple[ShownExample, ...]


def read_shown(prepared: Path) -> tuple[ShownFinding, ...] | None:
    """Return the findings with their pictures, the gravest first; None where nobody checked.

    Args:
        prepared: prepare's folder.

    Raises:
        StageError: the file of findings is damaged.
    """
    path = prepared / CHECKS
    if not path.is_file():
        return None
    findings = read_findings(path)
    examples = [one for finding in findings for one in finding.examples[:_SHOWN]]
    wanted = [one.id for one in examples] + [one.other_id for one in examples if one.other_id]
    pictures = _pictures(prepared / "dataset", wanted)
    return tuple(_shown(finding, pictures) for finding in findings)


def _shown(finding: Finding, pictures: dict[str, str]) -> ShownFinding:
    return ShownFinding(
        severity=finding.severity,
        count=finding.count,
        message=finding.message,
        action=finding.action,
        examples=tuple(
            ShownExample(
                name=_shortened(one.name),
                detail=one.detail,
                picture=pictures.get(one.id, ""),
                other=pictures.get(one.other_id or "", ""),
            )
            for one in finding.examples[:_SHOWN]
        ),
    )


def _pictures(store: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Return id -> `data:` address, in the order of the ids, as far as the bytes reach."""
    mode = read_info(store).image_mode
    order = list(dict.fromkeys(wanted))
    found: dict[str, bytes] = {}
    missing = set(order)
    for table in iterate_tables(store, _SPLITS, ("id", "image")):
        if not missing:
            break
        images = table.column("image")
        for row in _rows_of(table.column("id").to_pylist(), missing):
            identity = table.column("id")[row].as_py()
            found[identity] = images[row].as_py()["bytes"]
            missing.discard(identity)
    addresses: dict[str, str] = {}
    left = EXAMPLE_BYTES
    for identity in order:
        if identity in found:
            address = data_address(found[identity], mode)
            left -= len(address)
            if left < 0:
                break
            addresses[identity] = address
    return addresses


def _rows_of(ids: Iterable[str], wanted: set[str]) -> list[int]:
    return [row for row, identity in enumerate(ids) if identity in wanted]


def _shortened(name: str) -> str:
    """Return a name whose end, which tells files apart, is kept."""
    return name if len(name) <= _NAME_CHARS else "…" + name[1 - _NAME_CHARS :]
