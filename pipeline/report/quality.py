"""Metrics of the accepted images as pages show them: numbers with intervals, or the refusal."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.report.record import Record

_BETTER = {"low": "low", "high": "high", "middle": "near the ceiling"}


class QualityRow(Record):
    """A metric in synthesize/summary.json.

    Attributes:
        label: the metric in words.
        encoder: whose numbers it was taken from.
        value: None where it was refused.
        low: lower end of the 95 % interval.
        high: upper end.
        n_real: real images that the fake ones were compared with; 0 where there are none.
        n_fake: images that were measured.
        ceiling: the same metric of real images.
        ceiling_low: lower end of its interval; None where the ceiling is known.
        ceiling_high: upper end, likewise.
        better: which values are good; `middle` is near the ceiling.
        refusal: why there is no value.
    """

    label: str
    encoder: str
    value: float | None
    low: float | None
    high: float | None
    n_real: int
    n_fake: int
    ceiling: float | None
    ceiling_low: float | None
    ceiling_high: float | None
    better: Literal["low", "high", "middle"]
    refusal: str | None


@dataclass(frozen=True)
class QualityLine:
    """A row of the table, as text that is not yet escaped; empty where there is nothing to say.

    Attributes:
        label: the metric.
        encoder: whose numbers.
        value: the number.
        interval: `low to high`.
        ceiling: the number of real images.
        ceiling_interval: likewise.
        images: how many fake ones, and against how many real ones.
        better: which values are good.
        refusal: why there is no number.
    """

    label: str
    encoder: str
    value: str
    interval: str
    ceiling: str
    ceiling_interval: str
    images: str
    better: str
    refusal: str


def quality_lines(rows: Iterable[QualityRow]) -> list[QualityLine]:
    """Return the lines of the table, in the order of the rows."""
    return [
        QualityLine(
            label=row.label,
            encoder=row.encoder,
            value=_number(row.value),
            interval=_interval(row.low, row.high),
            ceiling=_number(row.ceiling),
            ceiling_interval=_interval(row.ceiling_low, row.ceiling_high),
            images=f"{row.n_fake:,}" + (f" against {row.n_real:,}" if row.n_real else ""),
            better=_BETTER[row.better],
            refusal=(row.refusal or "not measured") if row.value is None else "",
        )
        for row in rows
    ]


def _number(value: float | None) -> str:
    """Return three digits that mean something; the minus is a true one."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
