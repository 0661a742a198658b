import json

import pytest
from tracking.full_run import write_run, write_sheet

from pipeline.folders import write_manifest
from pipeline.tracking.facts import (
    StageClock,
    log_results,
    outcome_lines,
    read_verdict,
)

VERDICT = {
    "decision": "use",
    "sentence": "Use them: \x1b[31m+3 points",
    "best_baseline": "real_balanced",
    "best_synthetic": "mixed_50",
    "gain_points": 3.0,
    "interval_points": [1.0, 5.0],
    "tail_gain_points": 6.0,
    "arms": [
        {
            "name": name,
            "role": role,
            "share": share,
            **{
                score: {"mean": mean, "sd": 0.01}
                for score in (
                    "validation_balanced_accuracy",
                    "test_balanced_accuracy",
                    "test_macro_f1",
                    "tail_recall",
                )
            },
        }
        for name, role, share, mean in (
            ("real_balanced", "baseline", None, 0.9),
            ("mixed_50", "synthetic", 0.5, 0.93),
        )
    ],
}


PRETRAINED = {
    "base": "pool",
    "base_digest": "b" * 64,
    "images": 90,
    "steps": 200,
    "heldout_loss": 0.25,
}
TRAINED = {
    "final_loss": 0.5,
    "validation_loss": 0.75,
    "parameters": 100,
    "steps": 615,
    "kept_step": 308,
    "ema_length": 0.1,
    "copy_share": 0.0,
    "kernel_distance": -0.002,
    "loss_gap": 0.01,
}


def finish(artifacts, stage, files):
    folder = artifacts / stage
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    write_manifest(folder, stage, "k", {}, {})


@pytest.fixture
def artifacts(tmp_path):
    root = tmp_path / "artifacts"
    info = {"digest": "e" * 64, "counts": {"train": {"a": 6, "b": 4}, "test": {"a": 3, "b": 3}}}
    finish(root, "prepare", {"summary.json": {"quarantined": 2}, "dataset/dataset.json": info})
    finish(
        root,
        "pretrain",
        {"summary.json": PRETRAINED, "samples/step-000200.png": "", "base/base.json": "{}"},
    )
    finish(
        root,
        "train",
        {
            "summary.json": TRAINED,
            "checks.csv": "step\n",
            "samples/step-000500.png": "",
            "samples/step-001000.png": "",
        },
    )
    classes = [{"name": "a", "shortfall": 0}, {"name": "b", "shortfall": 3}]
    finish(root, "synthesize", {"summary.json": {"accepted": 5, "classes": classes}})
    finish(root, "evaluate", {"verdict.json": VERDICT, "arms.csv": "name\n"})
    finish(root, "assemble", {"dataset/dataset.json": info, "dataset/README.md": "card"})
    finish(root, "report", {"index.html": "<p>"})
    return root


def test_finished_folders_are_told_with_stable_names(artifacts, recording_tracker):
    log_results(artifacts, recording_tracker, root=artifacts)
    last = recording_tracker.last_metric
    assert last("prepare/images") == 16
    assert last("prepare/quarantined") == 2
    assert (last("pretrain/steps"), last("pretrain/images")) == (200, 90)
    assert (last("train/steps"), last("train/kept_step")) == (615, 308)
    assert last("train/ema_length") == 0.1
    assert last("train/kept_copy_share") == 0
    assert last("train/kept_kernel_distance") == -0.002
    assert last("train/kept_loss_gap") == 0.01
    assert last("synthesize/shortfall") == 3
    assert (last("evaluate/gain_low_points"), last("evaluate/gain_high_points")) == (1, 5)
    assert last("evaluate/best_baseline_balanced_accuracy") == 0.9
    assert last("evaluate/best_synthetic_balanced_accuracy") == 0.93
    assert last("evaluate/use") == 1
    assert recording_tracker.datasets == [
        ("prepared-training", "e" * 64, 10, "training"),
        ("prepared-evaluation", "e" * 64, 6, "evaluation"),
        ("assembled", "e" * 64, 16, "training"),
    ]
    assert [name for _, name in recording_tracker.artifacts] == [
        "train/checks.csv",
        "evaluate/verdict.json",
        "evaluate/arms.csv",
        "assemble/dataset/README.md",
        "report/index.html",
    ]
    name, params, metrics = recording_tracker.arms[1]
    assert (name, params) == ("mixed_50", {"role": "synthetic", "share": 0.5})
    assert metrics["test_balanced_accuracy"] == 0.93
    assert metrics["test_balanced_accuracy_sd"] == 0.01
    assert ("decision", "use") in [
        one for tags in recording_tracker.tags_calls for one in tags.items()
    ]
    assert {"base": "pool", "base_digest": "b" * 64} in recording_tracker.tags_calls


def test_without_a_base_and_without_a_look_nothing_is_made_up(artifacts, recording_tracker):
    summary = {**TRAINED, "copy_share": None, "kernel_distance": None, "loss_gap": None}
    nothing = {"base": "none", "base_digest": None, "images": 0, "steps": 0, "heldout_loss": None}
    (artifacts / "train" / "summary.json").write_text(json.dumps(summary))
    (artifacts / "pretrain" / "summary.json").write_text(json.dumps(nothing))
    log_results(artifacts, recording_tracker, ("pretrain", "train"), root=artifacts)
    told = {name for values, _ in recording_tracker.metrics_calls for name in values}
    assert "train/kept_step" in told
    assert not any("copy_share" in name or name.startswith("pretrain/") for name in told)
    assert not any("base" in tags for tags in recording_tracker.tags_calls)


def test_an_unfinished_a_missing_and_a_damaged_folder_are_passed_over(artifacts, recording_tracker):
    (artifacts / "train" / "manifest.json").unlink()
    (artifacts / "pretrain" / "manifest.json").unlink()
    (artifacts / "prepare" / "manifest.json").write_text("{")
    (artifacts / "evaluate" / "verdict.json").write_text("{")
    (artifacts / "synthesize" / "summary.json").write_text('{"accepted": "many", "classes": 3}')
    log_results(artifacts, recording_tracker, root=artifacts)
    told = {name for values, _ in recording_tracker.metrics_calls for name in values}
    assert told == {"synthesize/shortfall"}
    assert recording_tracker.arms == []


def test_the_end_says_arms_verdict_seconds_and_where_to_look(artifacts):
    (artifacts / "mlflow.db").touch()
    text = "\n".join(outcome_lines(artifacts, {"prepare": 1.0, "train": 64.0}, root=artifacts))
    assert "mixed_50       synthetic  93.0 +- 1.0" in text
    assert "Verdict: Use them: \\x1b[31m+3 points" in text
    assert "Time:    prepare 1.0 s, train 1 min 04 s; 1 min 05 s in all" in text
    assert f"Report:  {artifacts / 'report' / 'index.html'}" in text
    assert f"sqlite:///{artifacts / 'mlflow.db'}" in text


def test_the_end_of_nothing_is_nothing(tmp_path):
    assert outcome_lines(tmp_path / "none", root=tmp_path) == []
    assert read_verdict(tmp_path) == {}


def test_the_clock_keeps_the_seconds_of_a_failed_stage_too():
    clock = StageClock()
    with pytest.raises(RuntimeError), clock.stage("train"):
        raise RuntimeError
    assert clock.seconds["train"] >= 0


def test_guidance_has_flat_names_and_the_search_its_table(artifacts, recording_tracker):
    row = {"guidance": "autoguidance 2", "kernel_distance": 0.1, "coverage": 0.8, "evaluations": 40}
    summary = {
        "guidance": "autoguidance 2",
        "guidance_weight": 2.0,
        "guidance_low": 0.0,
        "guidance_high": None,
        "search": [{**row, "chosen": True}, {**row, "kernel_distance": 0.3, "chosen": False}],
    }
    finish(artifacts, "synthesize", {"summary.json": summary, "search.csv": "guidance\n"})
    log_results(artifacts, recording_tracker, ("synthesize",), root=artifacts)
    last = recording_tracker.last_metric
    assert (last("synthesize/guidance_weight"), last("synthesize/guidance_low")) == (2, 0)
    assert last("synthesize/guidance_tried") == 2
    assert last("synthesize/guidance_kernel_distance") == 0.1
    assert (last("synthesize/guidance_coverage"), last("synthesize/guidance_evaluations")) == (
        0.8,
        40,
    )
    told = {name for values, _ in recording_tracker.metrics_calls for name in values}
    assert "synthesize/guidance_high" not in told
    assert {"guidance": "autoguidance 2"} in recording_tracker.tags_calls
    assert [name for _, name in recording_tracker.artifacts] == ["synthesize/search.csv"]


def test_a_student_has_flat_names(artifacts, recording_tracker):
    student = {
        "accepted": False,
        "steps": 4,
        "difference_points": -2.5,
        "standard_error_points": 0.5,
        "student_copy_share": 0.01,
        "student_kernel_distance": None,
        "teacher_kernel_distance": 0.25,
        "reason": "worse",
    }
    finish(artifacts, "train", {"summary.json": {"student": student}})
    log_results(artifacts, recording_tracker, ("train",), root=artifacts)
    told = {k: v for values, _ in recording_tracker.metrics_calls for k, v in values.items()}
    assert {k: v for k, v in told.items() if "student" in k or "teacher" in k} == {
        "train/teacher_kernel_distance": 0.25,
        "train/student_accepted": 0,
        "train/student_gain_points": -2.5,
        "train/student_gain_error_points": 0.5,
        "train/student_steps": 4,
        "train/student_copy_share": 0.01,
    }


def test_quality_and_rules_of_the_kept_images_are_told(artifacts, recording_tracker):
    summary = {
        "accepted": 5,
        "quality": [
            {"name": "frechet_distance", "value": 1.5, "ceiling": 0.4},
            {"name": "vendi_score", "value": None, "ceiling": None, "refusal": "too few"},
        ],
        "rules": [{"rule": "near_copies", "rejected": 4}],
    }
    finish(artifacts, "synthesize", {"summary.json": summary, "quality.csv": "", "plan.csv": ""})
    log_results(artifacts, recording_tracker, root=artifacts)
    last = recording_tracker.last_metric
    assert last("synthesize/quality_frechet_distance") == 1.5
    assert last("synthesize/quality_frechet_distance_ceiling") == 0.4
    assert last("synthesize/rejected_near_copies") == 4
    told = {name for values, _ in recording_tracker.metrics_calls for name in values}
    assert not any("vendi" in name for name in told)
    sent = [name for _, name in recording_tracker.artifacts]
    assert {"synthesize/quality.csv", "synthesize/plan.csv"} <= set(sent)


class Keeping:
    """Gives a recording tracker the calls that it would pass over."""

    def __init__(self, tracker):
        self.images, self.models = [], []
        tracker.image = lambda path, key, step: self.images.append((path.name, key, step))
        tracker.model = self.models.append


def test_contact_sheets_are_a_series_of_at_most_fifty_with_the_last(tmp_path, recording_tracker):
    for step in range(1, 102):
        write_sheet(tmp_path / "train" / "samples" / f"step-{step:06d}.png")
    (tmp_path / "train" / "samples" / "step-odd.png").touch()
    finish(tmp_path, "train", {"summary.json": TRAINED})
    kept = Keeping(recording_tracker)
    log_results(tmp_path, recording_tracker, ("train",), root=tmp_path)
    steps = [step for _, key, step in kept.images if key == "train/samples"]
    assert steps == sorted(steps)
    assert len(kept.images) == len(steps) <= 50
    assert steps[-1] == 101


def test_a_run_says_its_verdict_where_the_report_is_and_its_digests(tmp_path, recording_tracker):
    write_run(tmp_path)
    Keeping(recording_tracker)
    log_results(tmp_path, recording_tracker, root=tmp_path)
    tags = {k: v for one in recording_tracker.tags_calls for k, v in one.items()}
    text = tags["description"]
    assert text.startswith(r"**Use them\: \<b\>\+3 points**")
    assert r"- class a\|b \*fell\*" in text
    assert "artifact report/index.html, on disk" in text
    assert tags["dataset_digest"] == "e" * 64
    assert "results_digest" in recording_tracker.tags_calls[0]
    synthetic = ("synthetic-accepted", "5" * 64, 200, "training")
    assert synthetic in recording_tracker.datasets


def test_without_a_verdict_nothing_is_described(tmp_path, recording_tracker):
    finish(tmp_path, "train", {"summary.json": TRAINED})
    log_results(tmp_path, recording_tracker, root=tmp_path)
    assert not any("description" in one for one in recording_tracker.tags_calls)
