"""What finished stage folders say of a run, for trackers and for the end of a command.

Reads the files that the stages wrote; knows no tracking server and no stage's code.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline.errors import InputError
from pipeline.folders import safe_join
from pipeline.params import SECTIONS
from pipeline.tracking.console import escape_markdown, printable, seconds_text
from pipeline.tracking.lineage import result_tags, run_tags
from pipeline.tracking.models import run_models
from pipeline.tracking.reading import (
    as_list,
    finished,
    number,
    numbers,
    read_object,
    records,
    spread,
)
from pipeline.tracking.tracker import NullTracker, Tracker
from pipeline.tracking.verdict_facts import ARM_SCORES, tell_controls, tell_verdict

REPORT = "report/index.html"
# What fits on a terminal; the page and MLflow have the others.
_SHOWN_SCORES = ARM_SCORES[:4]
_SHEETS = re.compile(r"step-(\d+)\.png")
_MOST_SHEETS = 50


class StageClock(NullTracker):
    """Remembers how long each stage took."""

    def __init__(self) -> None:
        """Start with no stages."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """See Tracker."""
        began = monotonic()
        try:
            yield
        finally:
            self.seconds[name] = monotonic() - began


def log_results(
    artifacts: Path,
    tracker: Tracker,
    stages: Sequence[str] = SECTIONS,
    root: Path | None = None,
) -> None:
    """Tell the tracker what the finished folders hold: numbers, arms, data, files, labels.

    A stage that was up to date has told the tracker nothing, so this says it for all of them;
    a folder that is missing, unfinished or damaged is passed over.

    Args:
        artifacts: the folder of the stages' folders.
        tracker: the MLflow tracker, or any other.
        stages: the stages to speak of.
        root: the project folder; the working directory by default.
    """
    # First, so that a record that ends half-way can be told from another run's.
    tracker.tags(
        {**run_tags(Path.cwd() if root is None else root), **result_tags(artifacts, stages)}
    )
    for name in SECTIONS:
        folder = artifacts / name
        if name in stages and finished(folder, name):
            _LOGGERS[name](folder, tracker)
    if "evaluate" in stages:
        tell_controls(artifacts, tracker)
        for model in run_models(artifacts):
            tracker.model(model)
    if description := _description(artifacts, stages):
        tracker.tags({"description": description})


def _description(artifacts: Path, stages: Sequence[str]) -> str:
    """Return what a page shows above a run, as Markdown: the verdict, and where the report is."""
    verdict = read_verdict(artifacts) if "evaluate" in stages else {}
    if not verdict:
        return ""
    lines = [f"**{escape_markdown(verdict.get('sentence', ''))}**", ""]
    lines += [f"- {escape_markdown(reason)}" for reason in as_list(verdict.get("reasons"))]
    if finished(artifacts / "report", "report"):
        page = (artifacts / "report" / "index.html").absolute()
        lines.append(f"- Report: artifact {REPORT}, on disk {escape_markdown(page)}")
    return "\n".join(lines)


def _log_prepare(folder: Path, tracker: Tracker) -> None:
    summary = read_object(folder / "summary.json")
    info = read_object(folder / "dataset" / "dataset.json")
    counts = _counts(info)
    digest = str(info.get("digest", ""))
    if counts and digest:
        held_out = counts.get("validation", 0) + counts.get("test", 0)
        tracker.dataset("prepared-training", digest, counts.get("train", 0), "training")
        tracker.dataset("prepared-evaluation", digest, held_out, "evaluation")
    _log_numbers(
        tracker,
        {
            "prepare/images": sum(counts.values()) or None,
            "prepare/quarantined": summary.get("quarantined"),
        },
    )


def _log_pretrain(folder: Path, tracker: Tracker) -> None:
    summary = read_object(folder / "summary.json")
    base = str(summary.get("base", "none"))
    made_here = bool(number(summary.get("steps")))
    names = ("steps", "images", "heldout_loss")
    if made_here:
        _log_numbers(tracker, {f"pretrain/{name}": summary.get(name) for name in names})
    if base != "none":
        tracker.tags({"base": base, "base_digest": str(summary.get("base_digest") or "")})
    _log_sheets(folder, tracker)


def _log_train(folder: Path, tracker: Tracker) -> None:
    summary = read_object(folder / "summary.json")
    _log_numbers(
        tracker,
        {
            "train/final_loss": summary.get("final_loss"),
            "train/final_validation_loss": summary.get("validation_loss"),
            **{
                f"train/{name}": summary.get(name)
                for name in ("parameters", "steps", "kept_step", "ema_length")
            },
            # Of the kept network. Without `kept_` they would be hidden by the last check's, which
            # have the larger step.
            **{
                f"train/kept_{name}": summary.get(name)
                for name in ("copy_share", "kernel_distance", "loss_gap")
            },
            **_student_numbers(summary.get("student")),
        },
    )
    _log_files(folder, tracker, ("checks.csv",))
    _log_sheets(folder, tracker)


def _student_numbers(student: object) -> dict[str, object]:
    if not isinstance(student, dict):
        return {}
    return {
        "train/student_accepted": 1.0 if student.get("accepted") is True else 0.0,
        # What its images bring to a classifier beyond its teacher's, on validation rows.
        "train/student_gain_points": student.get("difference_points"),
        "train/student_gain_error_points": student.get("standard_error_points"),
        **{
            f"train/student_{name}": student.get(name if name == "steps" else f"student_{name}")
            for name in ("steps", "copy_share", "kernel_distance")
        },
        # Of the same comparison: `kept_kernel_distance` is of samples without guidance.
        "train/teacher_kernel_distance": student.get("teacher_kernel_distance"),
    }


def _log_sheets(folder: Path, tracker: Tracker) -> None:
    """Give the contact sheets as a series by step, at most 50 of them and always the last."""
    found = sorted(
        (int(match[1]), path)
        for path in (folder / "samples").glob("step-*.png")
        if (match := _SHEETS.fullmatch(path.name))
    )
    every = -(-len(found) // _MOST_SHEETS)
    for step, path in found[::-1][::every][::-1] if found else []:
        tracker.image(path, f"{folder.name}/samples", step)


def _log_synthesize(folder: Path, tracker: Tracker) -> None:
    summary = read_object(folder / "summary.json")
    classes = [c for c in as_list(summary.get("classes")) if isinstance(c, dict)]
    _log_numbers(
        tracker,
        {
            **{
                f"synthesize/{name}": summary.get(name)
                for name in (
                    "accepted",
                    "candidates",
                    "acceptance_rate",
                    "judge_validation_accuracy",
                )
            },
            "synthesize/shortfall": sum(number(c.get("shortfall")) or 0 for c in classes),
            **{
                f"synthesize/{name}": summary.get(name)
                for name in ("guidance_weight", "guidance_low", "guidance_high")
            },
            **_chosen_guidance(as_list(summary.get("search"))),
            **_quality(as_list(summary.get("quality"))),
            **_rules(as_list(summary.get("rules"))),
        },
    )
    if isinstance(guidance := summary.get("guidance"), str):
        tracker.tags({"guidance": guidance})
    _log_files(folder, tracker, ("search.csv", "quality.csv", "plan.csv"))
    info = read_object(folder / "accepted" / "dataset.json")
    if digest := str(info.get("digest") or ""):
        tracker.dataset("synthetic-accepted", digest, sum(_counts(info).values()), "training")


def _quality(rows: Sequence[Any]) -> dict[str, object]:
    """Return each metric of the kept images and its ceiling; refused ones have neither."""
    return {
        f"synthesize/quality_{row.get('name')}{end}": row.get(key)
        for row in rows
        if isinstance(row, dict)
        for key, end in (("value", ""), ("ceiling", "_ceiling"))
    }


def _rules(rows: Sequence[Any]) -> dict[str, object]:
    return {
        f"synthesize/rejected_{row.get('rule')}": row.get("rejected")
        for row in rows
        if isinstance(row, dict)
    }


def _chosen_guidance(search: Sequence[Any]) -> dict[str, object]:
    tried = [row for row in search if isinstance(row, dict)]
    if not tried:
        return {}
    chosen: dict[str, Any] = next((row for row in tried if row.get("chosen") is True), {})
    names = ("kernel_distance", "coverage", "evaluations")
    numbers = {f"synthesize/guidance_{name}": chosen.get(name) for name in names}
    return {"synthesize/guidance_tried": len(tried), **numbers}


def _log_evaluate(folder: Path, tracker: Tracker) -> None:
    verdict = read_object(folder / "verdict.json")
    if not verdict:
        return
    tell_verdict(verdict, tracker)
    names = ("verdict.json", "arms.csv", "per_class.csv", "runs.csv", "search.csv")
    _log_files(folder, tracker, names)


def _log_assemble(folder: Path, tracker: Tracker) -> None:
    info = read_object(folder / "dataset" / "dataset.json")
    digest = str(info.get("digest", ""))
    if digest:
        rows = sum(_counts(info).values())
        tracker.dataset("assembled", digest, rows, "training")
    _log_files(folder, tracker, ("dataset/README.md",))


def _log_report(folder: Path, tracker: Tracker) -> None:
    _log_files(folder, tracker, ("index.html",))


_LOGGERS = {
    "prepare": _log_prepare,
    "pretrain": _log_pretrain,
    "train": _log_train,
    "synthesize": _log_synthesize,
    "evaluate": _log_evaluate,
    "assemble": _log_assemble,
    "report": _log_report,
}


def read_verdict(artifacts: Path) -> dict[str, Any]:
    """Return verdict.json of a finished `evaluate` folder, or an empty dict."""
    folder = artifacts / "evaluate"
    return read_object(folder / "verdict.json") if finished(folder, "evaluate") else {}


def arms_table(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row an arm: its name, role and mean +- sd over seeds, as text in percent."""
    rows = []
    for arm in records(verdict.get("arms")):
        cells = {"arm": printable(str(arm.get("name"))), "role": printable(str(arm.get("role")))}
        for name in _SHOWN_SCORES:
            mean, sd = spread(arm, name)
            cells[name] = "-" if mean is None else f"{100 * mean:.1f}"
            if mean is not None and sd is not None:
                cells[name] += f" +- {100 * sd:.1f}"
        rows.append(cells)
    return rows


def outcome_lines(
    artifacts: Path, seconds: Mapping[str, float] | None = None, root: Path | None = None
) -> list[str]:
    """Return what a command says at its end: arms, verdict, seconds, where to look.

    Args:
        artifacts: the folder of the stages' folders.
        seconds: seconds of each stage (`StageClock.seconds`), if known.
        root: the project folder that holds mlflow.db; the working directory by default.
    """
    root = Path.cwd() if root is None else root
    lines: list[str] = []
    verdict = read_verdict(artifacts)
    if verdict:
        lines += _table(arms_table(verdict))
        lines += [
            "accuracies and recalls in percent, mean +- sd over seeds; the test split is real",
            "",
            f"Verdict: {printable(str(verdict.get('sentence', '')))}",
        ]
    if seconds:
        each = ", ".join(f"{name} {seconds_text(value)}" for name, value in seconds.items())
        lines.append(f"Time:    {each}; {seconds_text(sum(seconds.values()))} in all")
    page = artifacts / "report" / "index.html"
    if finished(artifacts / "report", "report"):
        lines.append(f"Report:  {page}")
    if finished(artifacts / "assemble", "assemble"):
        lines.append(f"Dataset: {artifacts / 'assemble' / 'dataset'}")
    database = root.absolute() / "mlflow.db"
    if database.is_file():
        lines.append(f"MLflow:  make ui, or: mlflow ui --backend-store-uri 'sqlite:///{database}'")
    return lines


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    headings = {name: name.replace("_", " ") for name in rows[0]}
    widths = {
        name: max(len(heading), *(len(row[name]) for row in rows))
        for name, heading in headings.items()
    }
    lines = ["  ".join(headings[name].ljust(width) for name, width in widths.items()).rstrip()]
    lines.append("  ".join("-" * width for width in widths.values()))
    lines += ["  ".join(row[n].ljust(w) for n, w in widths.items()).rstrip() for row in rows]
    return lines


def _counts(info: Mapping[str, Any]) -> dict[str, int]:
    counts = info.get("counts")
    if not isinstance(counts, dict):
        return {}
    return {
        str(split): sum(int(number(n) or 0) for n in classes.values())
        for split, classes in counts.items()
        if isinstance(classes, dict)
    }


def _log_numbers(tracker: Tracker, values: Mapping[str, object]) -> None:
    tracker.metrics(numbers(values))


def _log_files(folder: Path, tracker: Tracker, names: Sequence[str]) -> None:
    for name in names:
        try:
            path = safe_join(folder, name)
        except InputError:
            continue
        if path.is_file():
            tracker.artifact(path, f"{folder.name}/{Path(name).as_posix()}")
