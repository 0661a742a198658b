"""How long work will take: from its pace now, and from what earlier runs took.

Where neither says anything the answer is None, never a guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from pipeline.tracking.index import Made
from pipeline.tracking.reading import number

RATE_SECONDS = 120.0  # the pace is that of this long
_RUNS = 5  # the latest that count


@dataclass(frozen=True)
class Step:
    """The piece of work that a stage is at.

    Attributes:
        task: its name.
        done: so much of it.
        total: of so much.
        unit: that both count.
        rate: units a second; None where it is not known yet.
        heard: when it told so.
    """

    task: str
    done: int
    total: int
    unit: str
    rate: float | None
    heard: datetime

    def ends(self, now: datetime) -> datetime | None:
        """Return when it will end at this pace; None where that is not known or over already."""
        if self.done >= self.total or not self.rate:
            return None
        end = self.heard + timedelta(seconds=(self.total - self.done) / self.rate)
        return end if end >= now else None


@dataclass(frozen=True)
class Usual:
    """What a stage took in earlier runs.

    Attributes:
        seconds: the median.
        runs: number of runs that it is of.
        same_params: did they run with the params in question?
    """

    seconds: float
    runs: int
    same_params: bool


def stage_lines(lines: Sequence[dict[str, Any]], stage: str) -> list[dict[str, Any]] | None:
    """Return the lines of a log since the stage began last; None where its beginning is not there.

    The lines are those of `pipeline.tracking.schema`.
    """
    for i in range(len(lines) - 1, -1, -1):
        if lines[i].get("event") == "stage_begin" and lines[i].get("stage") == stage:
            return [line for line in lines[i:] if line.get("stage") == stage]
    return None


def current_step(lines: Sequence[dict[str, Any]]) -> Step | None:
    """Return the step that the progress lines of a stage tell of last, with its pace."""
    told = [found for line in lines if (found := _progress(line)) is not None]
    if not told:
        return None
    last, fields = told[-1]
    points = [(last, fields["done"])]
    for when, earlier in reversed(told[:-1]):
        if earlier["task"] != fields["task"]:
            continue
        again = earlier["done"] > points[-1][1]  # it began anew since
        if again or (last - when).total_seconds() > RATE_SECONDS:
            break
        points.append((when, earlier["done"]))
    first, before = points[-1]
    gained, seconds = fields["done"] - before, (last - first).total_seconds()
    rate = gained / seconds if gained > 0 and seconds > 0 else None
    return Step(fields["task"], fields["done"], fields["total"], fields["unit"], rate, last)


def rounds_total(lines: Sequence[dict[str, Any]], task: str) -> int:
    """Return the sum of a task's totals over its rounds, each of which begins at 0 again."""
    total, before = 0, None
    for line in lines:
        found = _progress(line)
        if found is None or found[1]["task"] != task:
            continue
        done = found[1]["done"]
        if before is None or done < before:
            total += found[1]["total"]
        before = done
    return total


def usual_seconds(made: Sequence[Made], stage: str, settings: str | None) -> Usual | None:
    """Return what a stage took in earlier runs: with the same params if there are any, else others.

    Args:
        made: the index, oldest first.
        stage: the stage.
        settings: `settings_digest` of its params; None where they are not known.
    """
    # One that went on from what a killed run left tells nothing of the whole.
    whole = [one for one in made if one.stage == stage and not one.resumed]
    same = [one for one in whole if one.settings_digest == settings]
    chosen = (same or whole)[-_RUNS:]
    if not chosen:
        return None
    return Usual(median(one.seconds for one in chosen), len(chosen), bool(same))


def time_of(value: object) -> datetime | None:
    """Return a time as it stands in a line; None where there is none with a zone."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _progress(line: dict[str, Any]) -> tuple[datetime, dict[str, Any]] | None:
    fields, when = line.get("fields"), time_of(line.get("time"))
    if line.get("event") != "progress" or not isinstance(fields, dict) or when is None:
        return None
    done, total = number(fields.get("done")), number(fields.get("total"))
    if done is None or total is None:
        return None
    names = {name: str(fields.get(name)) for name in ("task", "unit")}
    return when, {**names, "done": int(done), "total": int(total)}
