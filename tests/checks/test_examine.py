import json
from pathlib import Path

import numpy as np
import pytest
from checks.sets import blobs, examined
from sklearn.datasets import load_digits

from pipeline.checks.examine import examine
from pipeline.checks.examined import Examined, Settings
from pipeline.checks.findings import (
    Example,
    Finding,
    finding_notes,
    read_findings,
    write_findings,
)
from pipeline.errors import StageError

QUIET = Settings(label_issues=False)


def nothing(task: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def faulty() -> Examined:
    images = blobs(80)
    images[1] = images[0]  # an exact copy
    images[2] = images[3]  # a label conflict
    images[4] = images[5]  # a leak into test
    images[6] = np.clip(images[7] * 0.8 + 10, 0, 255)  # a near duplicate
    images[8] = np.clip(images[9] * 0.8 + 10, 0, 255)  # another one, across splits
    labels = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, *([0, 1] * 35)]
    splits: list[str | None] = ["train"] * 80
    splits[5] = splits[9] = "test"
    splits[40:70] = ["test"] * 30
    return examined(images, labels, splits=splits)


def test_all_checks_together(faulty: Examined) -> None:
    done = []
    checked = examine(faulty, QUIET, lambda task, now, total: done.append((task, now, total)))
    assert [(one.row, one.reason) for one in checked.aside] == [
        (2, "label conflict"),
        (3, "label conflict"),
        (4, "also in test"),
    ]
    found = {one.check: one.count for one in checked.findings}
    assert found == {
        "label_conflicts": 2,
        "leaks_to_test": 1,
        "exact_duplicates": 1,
        "near_duplicates": 1,
        "near_duplicate_leaks": 1,
    }
    clusters = checked.clusters
    assert clusters[1] == clusters[0] == 0
    assert clusters[6] == clusters[7] == 6
    assert len(np.unique(clusters)) == 80 - 3
    assert ("compare hashes", 76, 76) in done
    assert done[-1][0] == "compare pixels"
    assert done[-1][1] == done[-1][2]


def test_the_result_does_not_depend_on_threads(faulty: Examined) -> None:
    one = examine(faulty, QUIET, nothing)
    two = examine(faulty, Settings(label_issues=False, threads=2), nothing)
    assert one.findings == two.findings
    np.testing.assert_array_equal(one.clusters, two.clusters)


def test_near_duplicates_can_be_left_out_and_are_skipped_above_the_limit(
    faulty: Examined,
) -> None:
    off = Settings(near_duplicates=False, label_issues=False)
    assert not any("near" in one.check for one in examine(faulty, off, nothing).findings)
    few = Settings(label_issues=False, near_duplicate_rows=10)
    checked = examine(faulty, few, nothing)
    (skipped,) = [one for one in checked.findings if "near" in one.check]
    assert (skipped.check, skipped.severity) == ("near_duplicates_skipped", "info")
    assert "at most 10 are searched" in skipped.message
    np.testing.assert_array_equal(checked.clusters, [0, 0, *range(2, 80)])  # the exact copy alone


def test_dropped_labels_are_set_aside_by_their_own_rows() -> None:
    digits = load_digits()
    images = np.clip(digits.images[:250] * 16, 0, 255).astype(np.uint8)[..., None]
    labels = digits.target[:250].copy()
    images[1] = images[0]  # a conflict that goes first, so that rows shift
    labels[:2] = 0, 1
    labels[100] = (labels[100] + 5) % 10
    one = examined(images, labels.tolist())
    settings = Settings(drop_label_issues=True, near_duplicates=False)
    aside = examine(one, settings, nothing).aside
    assert [row.row for row in aside if row.reason == "label conflict"] == [0, 1]
    assert 100 in [row.row for row in aside if row.reason == "likely wrong label"]


def test_an_empty_set_and_one_image_are_examined_without_fuss() -> None:
    assert examine(examined(blobs(1)[:0], classes=()), Settings(), nothing).findings == ()
    checked = examine(examined(blobs(1)), Settings(), nothing)
    assert [one.check for one in checked.findings] == ["class_small"]


def test_findings_go_through_a_file_and_into_notes(tmp_path: Path, faulty: Examined) -> None:
    findings = examine(faulty, QUIET, nothing).findings
    write_findings(tmp_path / "checks.json", findings[::-1])
    first = (tmp_path / "checks.json").read_bytes()
    assert read_findings(tmp_path / "checks.json") == findings
    write_findings(tmp_path / "checks.json", findings)
    assert (tmp_path / "checks.json").read_bytes() == first
    notes = finding_notes(findings)
    assert len(notes) == sum(one.severity != "info" for one in findings) == 3
    assert notes[0].startswith("prepare: warning: 2 images have the same pixels as one under")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"findings": 3},
        {"findings": [{"check": "a"}]},
        {"findings": [{"severity": "shout"}]},
        {"findings": "count"},
        {"findings": "example"},
    ],
)
def test_damaged_files_are_one_clear_error(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "prepare" / "checks.json"
    path.parent.mkdir()
    write_findings(path, [Finding("a", "info", 1, "b", "c", (Example("d", "e", "f"),))])
    data = json.loads(path.read_text())
    if change == {"findings": "count"}:
        data["findings"][0]["count"] = "many"
    elif change == {"findings": "example"}:
        data["findings"][0]["examples"][0]["name"] = 7
    else:
        data |= change
    path.write_text(json.dumps(data))
    with pytest.raises(StageError, match="run the stage `prepare` again"):
        read_findings(path)


def test_a_missing_file_and_no_json_are_the_same_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="findings not readable"):
        read_findings(tmp_path / "checks.json")
    (tmp_path / "checks.json").write_text("[" * 100_000)
    with pytest.raises(StageError, match="findings not readable"):
        read_findings(tmp_path / "checks.json")
