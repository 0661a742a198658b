"""The numbers of a training so far; part of its checkpoint, so that a resumed curve is whole."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from pipeline.diffusion.stopping import Check
from pipeline.folders import write_bytes
from pipeline.tracking.tracker import Tracker

CHECK_COLUMNS = tuple(field.name for field in fields(Check))
_CURVE_COLUMNS = ("step", "loss", "gradient_norm", "learning_rate")


class Curves:
    """Rows of the training curve, and the checks."""

    def __init__(self, task: str) -> None:
        """Begin; the metrics are sent as `<task>/loss` and so on."""
        self._task = task
        self.rows: list[tuple[int, float, float, float]] = []
        self.checks: list[Check] = []
        self.lengths: Sequence[Check] = ()

    @property
    def last_step(self) -> int:
        """Return the step of the last row of the curve."""
        return self.rows[-1][0] if self.rows else 0

    @property
    def last_loss(self) -> float:
        """Return the loss of the last row of the curve."""
        return self.rows[-1][1] if self.rows else math.nan

    def add(
        self, step: int, loss: float, norm: float, rate: float, speed: float, tracker: Tracker
    ) -> None:
        """Add a row to the curve."""
        self.rows.append((step, loss, norm, rate))
        tracker.metrics(
            {
                f"{self._task}/loss": loss,
                f"{self._task}/gradient_norm": norm,
                f"{self._task}/learning_rate": rate,
                f"{self._task}/images_per_second": speed,
            },
            step,
        )

    def add_check(self, check: Check, tracker: Tracker) -> None:
        """Add a check."""
        self.checks.append(check)
        seen = {
            "heldout_train_loss": check.training_loss,
            "validation_loss": check.heldout_loss,
            "loss_gap": check.heldout_loss - check.training_loss,
            "copy_share": check.copy_share,
            "kernel_distance": check.quality,
        }
        finite = {f"{self._task}/{k}": v for k, v in seen.items() if math.isfinite(v)}
        tracker.metrics(finite, check.step)

    def numbers(self) -> dict[str, Any]:
        """Return all as plain numbers, for a checkpoint; NaN is None there, as JSON wants."""
        checks = [[_none(value) for value in astuple(check)] for check in self.checks]
        return {"rows": self.rows, "checks": checks}

    def load(self, numbers: Mapping[str, Any]) -> None:
        """Take over what `numbers` returned."""
        self.rows = [(int(row[0]), row[1], row[2], row[3]) for row in numbers["rows"]]
        rows = [[math.nan if v is None else v for v in row] for row in numbers["checks"]]
        self.checks = [Check(int(row[0]), *row[1:]) for row in rows]

    def write(self, work: Path) -> None:
        """Write curve.csv, checks.csv and lengths.csv."""
        _write_csv(work / "curve.csv", _CURVE_COLUMNS, self.rows)
        _write_csv(work / "checks.csv", CHECK_COLUMNS, [astuple(c) for c in self.checks])
        _write_csv(work / "lengths.csv", CHECK_COLUMNS, [astuple(c) for c in self.lengths])


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_csv(path: Path, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_bytes(path, buffer.getvalue().encode())


def _cell(value: float) -> str:
    if isinstance(value, int):  # a step: all its digits
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"
