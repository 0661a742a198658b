"""What finished stage folders say of a run, for trackers and for the end of a command.

Reads the files that the stages wrote; knows no tracking server and no stage's code.
"""

import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from pipeline.errors import InputError, StageError
from pipeline.folders import read_manifest, safe_join
from pipeline.hashing import digest_file
from pipeline.params import SECTIONS
from pipeline.tracking.console import printable, seconds_text
from pipeline.tracking.tracker import NullTracker, Tracker

_GIT_SECONDS = 10
_ARM_SCORES = ("validation_balanced_accuracy", "test_balanced_accuracy", "test_macro_f1")
_ARM_SCORES_ALL = (*_ARM_SCORES, "tail_recall")


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


def git_facts(root: Path) -> dict[str, str]:
    """Return `git_commit` and `git_dirty` ("true" or "false") of `root`; nothing if no repository.

    Tracked files alone make a tree dirty.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    facts = {"git_commit": commit}
    if changed is not None:
        facts["git_dirty"] = "true" if changed else "false"
    return facts


def run_tags(root: Path) -> dict[str, str]:
    """Return the labels that tie a run to the project folder: git facts and dvc.lock's sha256."""
    tags = git_facts(root)
    try:
        tags["dvc_lock_sha256"] = digest_file(root / "dvc.lock")
    except OSError:
        pass
    return tags


def _git(root: Path, *arguments: str) -> str | None:
    # A repository's own settings must not start a program here, nor git wait for a lock.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
    tracker.tags(run_tags(Path.cwd() if root is None else root))
    for name in SECTIONS:
        folder = artifacts / name
        if name in stages and _finished(folder, name):
            _LOGGERS[name](folder, tracker)


def _log_prepare(folder: Path, tracker: Tracker) -> None:
    summary = _read(folder / "summary.json")
    info = _read(folder / "dataset" / "dataset.json")
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
    summary = _read(folder / "summary.json")
    base = str(summary.get("base", "none"))
    made_here = bool(_number(summary.get("steps")))
    names = ("steps", "images", "heldout_loss")
    if made_here:
        _log_numbers(tracker, {f"pretrain/{name}": summary.get(name) for name in names})
    if base != "none":
        tracker.tags({"base": base, "base_digest": str(summary.get("base_digest") or "")})
    _log_last_sheet(folder, tracker)


def _log_train(folder: Path, tracker: Tracker) -> None:
    summary = _read(folder / "summary.json")
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
    _log_last_sheet(folder, tracker)


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


def _log_last_sheet(folder: Path, tracker: Tracker) -> None:
    sheets = sorted((folder / "samples").glob("step-*.png"))
    if sheets:
        tracker.artifact(sheets[-1], f"{folder.name}/{sheets[-1].name}")


def _log_synthesize(folder: Path, tracker: Tracker) -> None:
    summary = _read(folder / "summary.json")
    classes = [c for c in _list(summary.get("classes")) if isinstance(c, dict)]
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
            "synthesize/shortfall": sum(_number(c.get("shortfall")) or 0 for c in classes),
            **{
                f"synthesize/{name}": summary.get(name)
                for name in ("guidance_weight", "guidance_low", "guidance_high")
            },
            **_chosen_guidance(_list(summary.get("search"))),
            **_quality(_list(summary.get("quality"))),
            **_rules(_list(summary.get("rules"))),
        },
    )
    if isinstance(guidance := summary.get("guidance"), str):
        tracker.tags({"guidance": guidance})
    _log_files(folder, tracker, ("search.csv", "quality.csv", "plan.csv"))


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
    verdict = _read(folder / "verdict.json")
    if not verdict:
        return
    arms = _arms(verdict)
    interval = _list(verdict.get("interval_points"))
    low, high = interval if len(interval) == 2 else (None, None)
    means = {str(arm.get("name")): _score(arm, "test_balanced_accuracy")[0] for arm in arms}
    decision = str(verdict.get("decision", ""))
    _log_numbers(
        tracker,
        {
            "evaluate/gain_points": verdict.get("gain_points"),
            "evaluate/gain_low_points": low,
            "evaluate/gain_high_points": high,
            "evaluate/tail_gain_points": verdict.get("tail_gain_points"),
            "evaluate/use": 1.0 if decision == "use" else 0.0,
            "evaluate/best_baseline_balanced_accuracy": means.get(
                str(verdict.get("best_baseline"))
            ),
            "evaluate/best_mixed_balanced_accuracy": means.get(str(verdict.get("best_mixed"))),
        },
    )
    for arm in arms:
        metrics: dict[str, float] = {}
        for name in _ARM_SCORES_ALL:
            mean, sd = _score(arm, name)
            metrics |= {k: v for k, v in ((name, mean), (f"{name}_sd", sd)) if v is not None}
        tracker.arm(
            str(arm.get("name")), {"role": arm.get("role"), "share": arm.get("share")}, metrics
        )
    tracker.tags({"decision": decision})
    _log_files(folder, tracker, ("verdict.json", "arms.csv"))


def _log_assemble(folder: Path, tracker: Tracker) -> None:
    info = _read(folder / "dataset" / "dataset.json")
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
    return _read(folder / "verdict.json") if _finished(folder, "evaluate") else {}


def arms_table(verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return one row an arm: its name, role and mean +- sd over seeds, as text in percent."""
    rows = []
    for arm in _arms(verdict):
        cells = {"arm": printable(str(arm.get("name"))), "role": printable(str(arm.get("role")))}
        for name in _ARM_SCORES_ALL:
            mean, sd = _score(arm, name)
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
    if _finished(artifacts / "report", "report"):
        lines.append(f"Report:  {page}")
    if _finished(artifacts / "assemble", "assemble"):
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


def _finished(folder: Path, stage: str) -> bool:
    try:
        manifest = read_manifest(folder)
    except (StageError, OSError):
        return False
    return manifest is not None and manifest.stage == stage


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _arms(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [arm for arm in _list(verdict.get("arms")) if isinstance(arm, dict)]


def _score(arm: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    found = arm.get(name)
    if not isinstance(found, dict):
        return None, None
    return _number(found.get("mean")), _number(found.get("sd"))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _counts(info: Mapping[str, Any]) -> dict[str, int]:
    counts = info.get("counts")
    if not isinstance(counts, dict):
        return {}
    return {
        str(split): sum(int(_number(n) or 0) for n in classes.values())
        for split, classes in counts.items()
        if isinstance(classes, dict)
    }


def _log_numbers(tracker: Tracker, values: Mapping[str, object]) -> None:
    numbers = {name: _number(value) for name, value in values.items()}
    tracker.metrics({name: value for name, value in numbers.items() if value is not None})


def _log_files(folder: Path, tracker: Tracker, names: Sequence[str]) -> None:
    for name in names:
        try:
            path = safe_join(folder, name)
        except InputError:
            continue
        if path.is_file():
            tracker.artifact(path, f"{folder.name}/{Path(name).as_posix()}")
